"""Routing: precedence, verbs, decoding, and what is reported at start."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import given
from hypothesis import strategies as st

from framework.call import Method
from framework.http.routes import BadPath, Router
from framework.http.rules import Rule, Template


@dataclass(frozen=True)
class Route:
    rule: Rule


def route(text: str, http: str = "GET", name: str = "") -> Route:
    method = Method[Any, Any]("t.T", name or f"{http} {text}", StringValue, StringValue)
    return Route(Rule(method, http, Template.parse(text)))


def router(*texts: str) -> Router[Route]:
    routes = [route(text.partition(" ")[2], text.partition(" ")[0]) for text in texts]
    random.Random(0).shuffle(routes)
    return Router(routes)


def found(table: Router[Route], path: str, http: str = "GET") -> Any:
    """The template that a path is taken to and what it captured, or the HTTP methods there are."""
    match = table.find(http, path)
    return sorted(match.allowed) if match.route is None else (match.route.rule.template.text, *match.values)


TABLE = router(
    "GET /",
    "GET /v1/books",
    "GET /v1/books/latest",
    "GET /v1/books/{id}",
    "POST /v1/books/{id}",
    "GET /v1/books/{id}/pages/{page}",
    "GET /v1/{kind}/{id}/pages/first",
    "GET /v1/{name=shelves/*}",
    "GET /v1/{name=shelves/*/books/*}",
    "GET /v1/{name=shelves/*}:watch",
    "POST /v1/books/{id}:cancel",
    "GET /v1/files/{path=**}",
    "GET /v1/files/{path=**}:raw",
    "GET /v1/files/special/{id}",
    "* /any/{x}",
    "GET /any/{x=*}",
    "GET /:root",
    "GET /caf%C3%A9",
)


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("/", ("/",)),
        ("/v1/books", ("/v1/books",)),
        ("/v1/books/", []),
        ("//v1/books", []),
        ("/v1/books/latest", ("/v1/books/latest",)),
        ("/v1/books/7", ("/v1/books/{id}", "7")),
        ("/v1/books/latest/pages/1", ("/v1/books/{id}/pages/{page}", "latest", "1")),
        # A literal further left goes before one further right, and what it does not match is given back.
        ("/v1/books/7/pages/first", ("/v1/books/{id}/pages/{page}", "7", "first")),
        ("/v1/films/7/pages/first", ("/v1/{kind}/{id}/pages/first", "films", "7")),
        ("/v1/shelves/1", ("/v1/{name=shelves/*}", "shelves/1")),
        ("/v1/shelves/1/books/2", ("/v1/{name=shelves/*/books/*}", "shelves/1/books/2")),
        ("/v1/shelves/1:watch", ("/v1/{name=shelves/*}:watch", "shelves/1")),
        ("/v1/shelves/1:nope", ("/v1/{name=shelves/*}", "shelves/1:nope")),
        ("/v1/shelves/1%3Awatch", ("/v1/{name=shelves/*}", "shelves/1%3Awatch")),
        ("/v1/shelves/a:b:watch", ("/v1/{name=shelves/*}:watch", "shelves/a:b")),
        ("/v1/shelves/1:cancel", ("/v1/{name=shelves/*}", "shelves/1:cancel")),
        ("/v1/books/x:watch/pages/1", ("/v1/books/{id}/pages/{page}", "x:watch", "1")),
        ("/v1/files", ("/v1/files/{path=**}", "")),
        ("/v1/files/", ("/v1/files/{path=**}", "")),
        ("/v1/files/a/b/c", ("/v1/files/{path=**}", "a/b/c")),
        ("/v1/files/a//c/", ("/v1/files/{path=**}", "a//c/")),
        ("/v1/files/a/b:raw", ("/v1/files/{path=**}:raw", "a/b")),
        ("/v1/files/special/1", ("/v1/files/special/{id}", "1")),
        ("/v1/files/special/1/2", ("/v1/files/{path=**}", "special/1/2")),
        ("/v1/books/a%2Fb%20c", ("/v1/books/{id}", "a/b c")),
        ("/v1/files/a%2fb%20c%3F/%C3%A9", ("/v1/files/{path=**}", "a%2Fb c%3F/é")),
        ("/v1/books/%6Catest", ("/v1/books/latest",)),
        ("/caf%C3%A9", ("/caf%C3%A9",)),
        ("/caf%c3%a9", ("/caf%C3%A9",)),
        ("/:root", ("/:root",)),
        ("/v1/books/7:cancel", ("/v1/books/{id}", "7:cancel")),
        ("/v2", []),
    ],
)
def test_where_a_path_goes(path: str, match: Any) -> None:
    """Literals before `*` before `**`, with backtracking; verbs only where they are registered; decoding by capture."""
    assert match == found(TABLE, path)


@pytest.mark.parametrize(
    ("http", "path", "match"),
    [
        ("POST", "/v1/books/latest", ("/v1/books/{id}", "latest")),
        ("POST", "/v1/books/7:cancel", ("/v1/books/{id}:cancel", "7")),
        ("PUT", "/v1/books/7:cancel", ["GET", "POST"]),
        ("DELETE", "/v1/books/7", ["GET", "POST"]),
        ("PURGE", "/any/1", ("/any/{x}", "1")),
        ("GET", "/any/1", ("/any/{x=*}", "1")),
    ],
)
def test_the_http_method_counts(http: str, path: str, match: Any) -> None:
    """A less specific route is taken when only it has the HTTP method; without one, those there are can be told."""
    assert match == found(TABLE, path, http)


@pytest.mark.parametrize("path", ["/v1/books/%", "/v1/books/%zz", "/v1/books/%ff", "/v1/files/%E9", "/nope/%4"])
def test_malformed_escapes(path: str) -> None:
    """An escape that is none, and what is no UTF-8, is a bad request and not another route."""
    with pytest.raises(BadPath):
        TABLE.find("GET", path)


def test_every_route_of_a_path() -> None:
    """All routes of a path can be asked for, the most specific first."""
    assert [
        f"{one.route.rule.http} {one.route.rule.template.text}"
        for one in TABLE.find_all("/v1/books/latest")
        if one.route
    ] == ["GET /v1/books/latest", "GET /v1/books/{id}", "POST /v1/books/{id}"]


def test_rules_that_match_the_same_are_reported() -> None:
    """Of two rules for the same paths the first by name is taken, in whichever order they come, and it is said."""
    two = [route("/v1/{a}", name="B"), route("/v1/{b=*}", name="A"), route("/v1/{c}", "POST", "C")]
    for routes in (two, two[::-1]):
        table = Router(routes)
        assert table.ambiguous == ["GET /v1/{a} (t.T/B) is never used: GET /v1/{b=*} (t.T/A) matches the same"]
        assert found(table, "/v1/x") == ("/v1/{b=*}", "x")


def test_rules_that_others_take_from_are_reported() -> None:
    """A rule of which another method takes a part is reported, and no other."""
    table = router(
        "GET /v1/{id}", "GET /v1/top", "POST /v1/bottom", "GET /v1/{a}/x", "GET /v1/y/{b}", "GET /v1/y/**", "* /v1/z/**"
    )
    assert table.overlaps() == [
        "GET /v1/y/** (t.T/GET /v1/y/**) does not get what GET /v1/y/{b} (t.T/GET /v1/y/{b}) matches",
        "GET /v1/{a}/x (t.T/GET /v1/{a}/x) does not get what * /v1/z/** (t.T/* /v1/z/**) matches",
        "GET /v1/{a}/x (t.T/GET /v1/{a}/x) does not get what GET /v1/y/** (t.T/GET /v1/y/**) matches",
        "GET /v1/{a}/x (t.T/GET /v1/{a}/x) does not get what GET /v1/y/{b} (t.T/GET /v1/y/{b}) matches",
        "GET /v1/{id} (t.T/GET /v1/{id}) does not get what * /v1/z/** (t.T/* /v1/z/**) matches",
        "GET /v1/{id} (t.T/GET /v1/{id}) does not get what GET /v1/top (t.T/GET /v1/top) matches",
        "GET /v1/{id} (t.T/GET /v1/{id}) does not get what GET /v1/y/** (t.T/GET /v1/y/**) matches",
    ]


# Against a model

segment = st.sampled_from(["a", "b", "*"])
templates = st.builds(
    lambda parts, rest, verb: "/" + "/".join([*parts, *(["**"] if rest else [])]) + (f":{verb}" if verb else ""),
    st.lists(segment, min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(["", "", "v", "w"]),
)
paths = st.builds(
    lambda parts, end: "/" + "/".join(parts) + end,
    st.lists(st.sampled_from(["a", "b", "c", ""]), min_size=1, max_size=4),
    st.sampled_from(["", "", ":v", ":x", ":v:w"]),
)


def matches(template: Template, raw: list[str]) -> bool:
    for number, part in enumerate(template.segments):
        if part == "**":
            return True
        if number >= len(raw) or (part != raw[number] and not (part == "*" and raw[number])):
            return False
    return len(raw) == len(template.segments)


def model(rules: list[Route], path: str) -> str | None:
    """The rule by trying all of them."""
    raw = path[1:].split("/")
    head, colon, verb = raw[-1].rpartition(":")
    verbs = {one.rule.template.verb for one in rules} - {""}
    tries = [("", raw)]
    if colon and verb in verbs:
        tries.insert(0, (verb, [*raw[:-1], head] if head or len(raw) > 1 else []))
    for wanted, segments in tries:
        fitting = [
            one.rule.template
            for one in rules
            if one.rule.template.verb == wanted and matches(one.rule.template, segments)
        ]
        if fitting:
            order = {"*": 1, "**": 3, "end": 2}
            return min(
                (one for one in fitting),
                key=lambda one: ([order.get(part, 0) for part in (*one.segments, "end")], one.text),
            ).text
    return None


@given(st.lists(templates, min_size=1, max_size=8, unique=True), paths, st.randoms())
def test_routing_is_what_trying_all_rules_gives(texts: list[str], path: str, rng: random.Random) -> None:
    """The trie finds what the most specific of all matching rules is, in whatever order the rules came."""
    routes = [route(text) for text in texts]
    rng.shuffle(routes)
    match = Router(routes).find("GET", path).route
    assert model(routes, path) == (match.rule.template.text if match else None)


def test_a_thousand_routes_cost_no_more_than_ten() -> None:
    """The time of a match does not grow with the number of routes."""

    def table(size: int) -> Router[Route]:
        return Router([route(f"/v1/kind{n // 10}/{{id}}/part{n % 10}/{{part}}", name=f"M{n}") for n in range(size)])

    def cost(router: Router[Route]) -> float:
        start = time.perf_counter()
        for _ in range(2000):
            router.find("GET", "/v1/kind0/77/part9/1")
        return time.perf_counter() - start

    small, large = table(10), table(1000)
    assert small.find("GET", "/v1/kind0/77/part9/1").values == large.find("GET", "/v1/kind0/77/part9/1").values
    ratios = sorted(cost(large) / cost(small) for _ in range(9))
    assert ratios[4] <= 1.5
