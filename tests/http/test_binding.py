"""From path, query and body to the request."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.api import http_pb2
from google.protobuf import text_format

from framework.call import Call
from framework.errors import InvalidArgument
from framework.http.app import HttpApp
from framework.http.binding import Binder, Unknown
from framework.http.json import Json
from framework.http.methods import http_rule_of, services_in
from framework.http.routes import Router
from framework.http.rules import rules_of
from framework.options import method_of
from tests.http import lab
from tests.http.driver import ask

CODECS = Json([lab.file("library")])
(LIBRARY,) = services_in(lab.pool(), ["lab.v1.Library"])


class Bound:
    def __init__(self, rule: Any, unknown: Unknown) -> None:
        self.rule = rule
        self.binder = Binder(rule, CODECS, unknown)


def _table(unknown: Unknown) -> Router[Bound]:
    found = []
    for descriptor in LIBRARY.methods:
        annotation = http_rule_of(descriptor)
        if annotation is not None:
            found += [Bound(rule, unknown) for rule in rules_of(method_of(descriptor), annotation)]
    return Router(found)


TABLE = _table("reject")
LENIENT = _table("ignore")


def bind(request: str, body: bytes = b"", table: Router[Bound] = TABLE, content_type: str = "") -> Any:
    """The message of a request, which is given as `GET /path?query`."""
    http, _, target = request.partition(" ")
    path, _, query = target.partition("?")
    match = table.find(http, path)
    assert match.route is not None
    binder = match.route.binder
    return binder.message(binder.preset(match.values, query.encode()), body, content_type)


def text(message: Any) -> str:
    return text_format.MessageToString(message, as_one_line=True, as_utf8=True)


BOOKS = "GET /v1/shelves/1/books?"


@pytest.mark.parametrize(
    ("request_", "body", "expected"),
    [
        ("GET /v1/shelves/1/books/2", "", 'name: "shelves/1/books/2"'),
        ("GET /v1/books/a%2Fb%20c", "", 'name: "a/b c"'),
        ("GET /v1/shelves/a%2Fb/books/c%20d", "", 'name: "shelves/a%2Fb/books/c d"'),
        (f"{BOOKS}page_size=7&pageToken=x", "", 'shelf: "shelves/1" page_size: 7 page_token: "x"'),
        (f"{BOOKS}filter.tags=a+b&filter.tags=c%2Bd&", "", 'shelf: "shelves/1" filter { tags: "a b" tags: "c+d" }'),
        (f"{BOOKS}filter.author.givenName=x", "", 'shelf: "shelves/1" filter { author { given_name: "x" } }'),
        (f"{BOOKS}filter.color=RED&filter.colors=2", "", 'shelf: "shelves/1" filter { color: RED colors: COLOR_BLUE }'),
        (f"{BOOKS}filter.scores%5Ba%5D=1", "", 'shelf: "shelves/1" filter { scores { key: "a" value: 1 } }'),
        (f"{BOOKS}filter.digest=-_8", "", 'shelf: "shelves/1" filter { digest: "\\373\\377" }'),
        (f"{BOOKS}filter.digest=%2B/8%3D", "", 'shelf: "shelves/1" filter { digest: "\\373\\377" }'),
        (
            f"{BOOKS}filter.weight=-1.5e3&filter.sold=false",
            "",
            'shelf: "shelves/1" filter { weight: -1500.0 sold { } }',
        ),
        (f"{BOOKS}filter.ratio=3.4028235e%2B38", "", 'shelf: "shelves/1" filter { ratio: 3.4028235e+38 }'),
        (f"{BOOKS}filter.ratio=NaN", "", 'shelf: "shelves/1" filter { ratio: nan }'),
        (f"{BOOKS}filter.after=1970-01-01T00:00:02Z", "", 'shelf: "shelves/1" filter { after { seconds: 2 } }'),
        (f"{BOOKS}filter.age=1.5s", "", 'shelf: "shelves/1" filter { age { seconds: 1 nanos: 500000000 } }'),
        (f"{BOOKS}$alt=json&key=k&fields=x&prettyPrint=true", "", 'shelf: "shelves/1"'),
        (
            "GET /v1/books/1?readMask=fooBar,x.bazQux&big=1",
            "",
            'name: "1" read_mask { paths: "foo_bar" paths: "x.baz_qux" } big: true',
        ),
        ("POST /v1/books:get", '{"name": "x"}', 'name: "x"'),
        ("POST /v1/books:get", "", ""),
        ("POST /v1/rooms/r1/lines", '{"room": "other", "text": "t"}', 'room: "r1" text: "t"'),
        (
            "POST /v1/shelves/1/books?request_id=5",
            '{"title": "t"}',
            'shelf: "shelves/1" book { title: "t" } request_id: "5"',
        ),
        ("POST /v1/shelves/1/books", "", 'shelf: "shelves/1"'),
        ("DELETE /v1/shelves/1/books/2", " \n", 'name: "shelves/1/books/2"'),
    ],
)
def test_requests(request_: str, body: str, expected: str) -> None:
    """Path, query and body make the request."""
    assert expected == text(bind(request_, body.encode()))


WRAPPED = """
syntax = "proto3";
package wrapped;
import "google/api/annotations.proto";
import "google/protobuf/wrappers.proto";
message Note { google.protobuf.StringValue text = 1; }
service Notes { rpc Put(Note) returns (Note) { option (google.api.http) = { put: "/note" body: "text" }; } }
"""


@pytest.mark.parametrize(("body", "reply"), [("null", {}), ('""', {"text": ""}), ('"a"', {"text": "a"})])
async def test_a_wrapper_as_body(body: str, reply: Any) -> None:
    """Null leaves it out, as in any JSON of it."""

    async def echo(call: Call) -> Any:
        return call.request

    app = HttpApp(services_in(lab.compile_text(WRAPPED), ["wrapped.Notes"]), lambda method: echo)
    response = await ask(app, "PUT /note", body)
    assert (response.status, response.json) == (200, reply)


def test_maps_and_nesting() -> None:
    """Entries of maps by their keys, fields of their messages, JSON for what has no other text, nesting."""
    message = bind(
        f"{BOOKS}filter.scores[a]=1&filter.scores[b.c]=2&filter.writers[x].givenName=y&filter.writers[x].family_name=z"
        '&filter.any_value={"a":null}&filter.also.also.pages=1&filter.also.also.pages=2'
    ).filter
    assert dict(message.scores) == {"a": 1, "b.c": 2}
    assert text(message.writers["x"]) == 'given_name: "y" family_name: "z"'
    assert dict(message.any_value.struct_value) == {"a": None}
    assert list(message.also.also.pages) == [1, 2]


@pytest.mark.parametrize(
    ("request_", "body", "violations"),
    [
        (f"{BOOKS}page_size=x", "", [("page_size", "'x' is no whole number")]),
        (f"{BOOKS}page_size=1_0", "", [("page_size", "'1_0' is no whole number")]),
        (f"{BOOKS}page_size=2147483648", "", [("page_size", "'2147483648' is not from -2147483648 to 2147483647")]),
        (f"{BOOKS}nope=1", "", [("nope", 'lab.v1.ListBooksRequest has no field "nope"')]),
        (f"{BOOKS}filter.nope=1", "", [("filter.nope", 'lab.v1.ListBooksRequest.Filter has no field "nope"')]),
        (
            f"{BOOKS}filter=1",
            "",
            [("filter", "lab.v1.ListBooksRequest.Filter is more than one value; name its fields: filter.field=value")],
        ),
        (
            f"{BOOKS}filter.authors.given_name=1",
            "",
            [("filter.authors.given_name", 'lab.v1.ListBooksRequest has no field "filter.authors.given_name"')],
        ),
        (
            f"{BOOKS}filter.authors=1",
            "",
            [("filter.authors", "lab.v1.Author is more than one value; name its fields: filter.authors.field=value")],
        ),
        (f"{BOOKS}filter.tags[0]=1", "", [("filter.tags[0]", "tags is no map")]),
        (f"{BOOKS}filter.scores=1", "", [("filter.scores", "a map is set by its keys: filter.scores[key]=value")]),
        (
            f"{BOOKS}page_sise=1&pageSzie=1&filter.colour=RED&pages=1&{'x' * 999}=1",
            "",
            [
                ("page_sise", 'lab.v1.ListBooksRequest has no field "page_sise"; did you mean "page_size"?'),
                ("pageSzie", 'lab.v1.ListBooksRequest has no field "pageSzie"; did you mean "pageSize"?'),
                ("filter.colour", 'lab.v1.ListBooksRequest.Filter has no field "colour"; did you mean "color"?'),
                ("pages", 'lab.v1.ListBooksRequest has no field "pages"'),
                (f"{'x' * 97}...", f'lab.v1.ListBooksRequest has no field "{"x" * 97}..."'),
            ],
        ),
        (
            f"{BOOKS}page_size.=1",
            "",
            [("page_size.", 'lab.v1.ListBooksRequest has no field "page_size."; did you mean "page_size"?')],
        ),
        (f"{BOOKS}=1", "", [("", 'lab.v1.ListBooksRequest has no field ""')]),
        (f"{BOOKS}shelf=2", "", [("shelf", "the path sets this")]),
        (f"{BOOKS}page_size=1&pageSize=2", "", [("page_size", "this is set twice")]),
        (f"{BOOKS}filter.scores[a]=1&filter.scores[a]=2", "", [("filter.scores[a]", "this is set twice")]),
        (
            f"{BOOKS}filter.year=1&filter.after=1970-01-01T00:00:00Z",
            "",
            [("filter.after", "only one of when can be set, and year is")],
        ),
        (
            f"{BOOKS}filter.color=NOPE",
            "",
            [("filter.color", "'NOPE' is no lab.v1.Color; there are COLOR_UNSPECIFIED, RED, COLOR_BLUE")],
        ),
        (f"{BOOKS}filter.after=today", "", [("filter.after", "'today' is no google.protobuf.Timestamp")]),
        (f"{BOOKS}filter.sold=yes", "", [("filter.sold", "'yes' is neither true nor false")]),
        (f"{BOOKS}filter.digest=a", "", [("filter.digest", "'a' is no base64")]),
        (f"{BOOKS}filter.digest=%3D", "", [("filter.digest", "'=' is no base64")]),
        (f"{BOOKS}filter.weight=1e999", "", [("filter.weight", "'1e999' is too large")]),
        (
            f"{BOOKS}filter.{'also.' * 99}color=RED",
            "",
            [(f"filter.{'also.' * 18}...", "this is nested deeper than 100 messages")],
        ),
        (f"{BOOKS}page_token=%zz", "", [("page_token", "a '%' here begins no escape")]),
        (f"{BOOKS}page_token=%ff", "", [("page_token", "this is no UTF-8 when it is decoded")]),
        (
            f"{BOOKS}page_size=x&nope=1",
            "",
            [("page_size", "'x' is no whole number"), ("nope", 'lab.v1.ListBooksRequest has no field "nope"')],
        ),
        (
            "POST /v1/books:get?big=true",
            "{}",
            [("big", "query parameters are not read here: the body is the whole request")],
        ),
        ("POST /v1/shelves/1/books?book.title=x", "{}", [("book.title", "the body sets this")]),
        ("POST /v1/shelves/1/books", '{"pages": "x"}', [("book.pages", "invalid integer value: 'x'")]),
        ("POST /v1/shelves/1/books", '{"nope": 1}', [("book.nope", 'lab.v1.Book has no field "nope"')]),
        (
            "POST /v1/shelves/1/books",
            '{"titel": ""}',
            [("book.titel", 'lab.v1.Book has no field "titel"; did you mean "title"?')],
        ),
        ("POST /v1/shelves/1/books", "{", [("book", "this is no JSON: EOF while parsing an object, line 1 column 2")]),
        (
            "QUERY /v1/echo",
            '{"rinner": [{"n": 1}, {"child": {"n": "x"}}, {"text": "n"}]}',
            [("n", "invalid integer value: 'x'")],
        ),
        ("QUERY /v1/echo", r'{"i32": "x", "\ud800": 1}', [("i32", "invalid integer value: 'x'")]),
        ("QUERY /v1/echo", '{"minner": {"k": {"n": "x"}}}', [("minner[k].n", "invalid integer value: 'x'")]),
        ("DELETE /v1/shelves/1/books/2", "{}", [("", "this takes no body")]),
    ],
)
def test_what_does_not_fit_is_told_field_by_field(request_: str, body: str, violations: list[tuple[str, str]]) -> None:
    """INVALID_ARGUMENT has a violation for each field that is wrong, and the first in its message."""
    with pytest.raises(InvalidArgument) as raised:
        bind(request_, body.encode())
    (details,) = raised.value.details
    assert violations == [(one.field, one.description) for one in details.field_violations]
    assert raised.value.message.startswith(": ".join(part for part in violations[0] if part))


def test_unknown_parameters_may_be_ignored() -> None:
    """A setting lets parameters be that are no fields, and no others."""
    assert text(bind(f"{BOOKS}nope=1&page_size=1", table=LENIENT)) == 'shelf: "shelves/1" page_size: 1'
    with pytest.raises(InvalidArgument, match="page_size: 'x' is no whole number"):
        bind(f"{BOOKS}nope=1&page_size=x", table=LENIENT)


@pytest.mark.parametrize(
    ("request_", "body", "mask"),
    [
        ("PATCH /v1/shelves/1/books/2", '{"title": "t", "author": {"givenName": "a"}}', ["title", "author.given_name"]),
        (
            "PATCH /v1/shelves/1/books/2",
            '{"author": {}, "tags": [], "labels": {"a": "b"}}',
            ["author", "tags", "labels"],
        ),
        ("PATCH /v1/shelves/1/books/2", '{"published": null, "extra": {"a": {"b": 1}}}', ["published", "extra"]),
        ("PATCH /v1/shelves/1/books/2?updateMask=pages", '{"title": "t"}', ["pages"]),
        ("PATCH /v1/shelves/1/books/2?updateMask.paths=pages", '{"title": "t"}', ["pages"]),
        ("PATCH /v1/shelves/1/books/2?dryRun=true", "", []),
        ("PUT /v1/shelves/1/books/2", '{"title": "t"}', []),
    ],
)
def test_the_mask_of_a_patch(request_: str, body: str, mask: list[str]) -> None:
    """A PATCH with a named body sets its field mask from the fields that are there, unless the caller did."""
    message = bind(request_, body.encode())
    assert mask == list(message.update_mask.paths)
    assert message.book.name == "shelves/1/books/2"


def test_a_raw_body() -> None:
    """An HttpBody takes the bytes and their type as they are."""
    message = bind("PUT /v1/files/a/b?note=x", b"\xff\x00", content_type="image/png")
    assert (
        message.path,
        message.note,
        message.file.content_type,
        message.file.data,
    ) == ("a/b", "x", "image/png", b"\xff\x00")


def test_a_body_that_is_one_value() -> None:
    """A body may be a field that is no message; one that is more than its value is refused."""
    rule = http_pb2.HttpRule(post="/v1/x", body="request_id")
    (found,) = rules_of(method_of(LIBRARY.methods_by_name["CreateBook"]), rule)
    binder = Binder(found, CODECS)
    assert text(binder.message((), b'"5"')) == 'request_id: "5"'
    assert text(binder.message((), b"")) == ""
    for body, told in (
        (b"5", "request_id: expected string got: number"),
        (b"{", "request_id: this is no JSON"),
        (b'"5","shelf":"x"', "request_id: this is no JSON"),
    ):
        with pytest.raises(InvalidArgument, match=re.escape(told)):
            binder.message((), body)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("mi[x]", "a", "mi[x]: 'x' is no whole number"),
        ("mb[yes]", "1", "mb[yes]: 'yes' is neither true nor false"),
        ("db", "1_0", "db: '1_0' is no number"),
        ("fl", "3.41e38", "fl: '3.41e38' is too large"),
        ("color", "4294967296", "color: '4294967296' is no lab.v1.Color"),
        ("st", "%E9", "st: this is no UTF-8 when it is decoded"),
    ],
)
def test_texts_that_are_no_values(field: str, value: str, told: str) -> None:
    """Each kind of field says what its text should have been."""
    (found,) = rules_of(method_of(LIBRARY.methods_by_name["Echo"]), http_pb2.HttpRule(get="/v1/x"))
    with pytest.raises(InvalidArgument) as raised:
        Binder(found, CODECS).preset((), f"{field}={value}".encode())
    assert raised.value.message == told


def test_texts_of_every_kind() -> None:
    """Keys of maps, wrappers, and what is JSON because it has no other text."""
    (found,) = rules_of(method_of(LIBRARY.methods_by_name["Echo"]), http_pb2.HttpRule(get="/v1/x"))
    binder = Binder(found, CODECS)
    query = b"mi[-5]=a&mb[true]=Infinity&wi64=-7&wby=_w&ts=1970-01-01T00:00:01Z&list=[1]&rts=1970-01-01T00:00:02Z"
    message = binder.message(binder.preset((), query), b"")
    assert (dict(message.mi), dict(message.mb)) == ({-5: "a"}, {True: float("inf")})
    assert (message.wi64.value, message.wby.value, message.ts.seconds) == (-7, b"\xff", 1)
    assert ([value.number_value for value in message.list.values], message.rts[0].seconds) == ([1.0], 2)


def test_a_path_whose_text_is_no_value() -> None:
    """Variables are told like parameters."""
    (found,) = rules_of(method_of(LIBRARY.methods_by_name["Echo"]), http_pb2.HttpRule(get="/v1/{i32}/{color}"))
    with pytest.raises(InvalidArgument, match=r"i32: 'x' is no whole number \(and 1 more\)"):
        Binder(found, CODECS).preset(("x", "NOPE"), b"")


def test_a_query_of_nothing_but_mistakes() -> None:
    """Not more than a page of them is told, however many there are."""
    with pytest.raises(InvalidArgument, match=r"\(and 19 more\)") as raised:
        bind(BOOKS + "&".join(f"no{number}=1" for number in range(5000)))
    (details,) = raised.value.details
    assert len(details.field_violations) == 20
