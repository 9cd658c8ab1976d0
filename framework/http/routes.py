"""From an HTTP method and a raw path to a rule and what its variables captured.

A trie of segments: a literal goes before `*`, and `*` before `**`, segment by segment from the left, with backtracking.
So what a path matches does not depend on the order in which rules were added, and finding it takes no longer with a
thousand rules than with ten. The last `:` of the last segment begins a verb only when some rule has that verb.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from framework.http.rules import ANY, STAR, STARS, Rule, Variable

_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPES = re.compile(r"((?:%[0-9A-Fa-f]{2})+)")
_RESERVED = frozenset(b":/?#[]@!$&'()*+,;=")
"""What stays encoded in a capture of several segments."""


class BadPath(Exception):
    """A path with a malformed escape, or that is no UTF-8."""


class Routed(Protocol):
    """What a router finds: something with a rule."""

    @property
    def rule(self) -> Rule: ...


R = TypeVar("R", bound=Routed)


class _Node(Generic[R]):
    __slots__ = ("literals", "rest", "routes", "star")

    def __init__(self) -> None:
        self.literals: dict[str, _Node[R]] = {}
        self.star: _Node[R] | None = None
        self.rest: dict[str, R] = {}  # by HTTP method: of templates that go on with `**`
        self.routes: dict[str, R] = {}  # and that end here


@dataclass(frozen=True, slots=True)
class Found(Generic[R]):
    """What a request matches.

    Attributes:
        route: the route, or None.
        values: what each variable of its template captured, decoded.
        allowed: without a route, the HTTP methods that other routes for this path have; empty when there are none.
    """

    route: R | None
    values: tuple[str, ...] = ()
    allowed: frozenset[str] = frozenset()


class Router(Generic[R]):
    """Finds routes.

    Args:
        routes: in any order. Of several that match the same, the one whose method's name is first is taken.
        pages: paths at which somebody else answers GET, before these are looked at.
    """

    def __init__(self, routes: Iterable[R], pages: Iterable[str] = ()) -> None:
        self._roots: dict[str, _Node[R]] = {"": _Node()}
        self._exact: dict[str, dict[str, R]] = {}
        self.ambiguous: list[str] = []
        """Rules that are not reached where they match: others match the same, or a page is there; one line each."""
        for route in sorted(routes, key=lambda one: (one.rule.method.full_name, one.rule.http, one.rule.template.text)):
            self._add(route)
        for page in pages:
            if (found := self.find("GET", page).route) is not None:
                self.ambiguous.append(f"{found.rule} is not reached at {page}: the server has a page of its own there")

    def _add(self, route: R) -> None:
        rule = route.rule
        node = self._roots.setdefault(rule.template.verb, _Node())
        segments = rule.template.segments
        for segment in segments:
            if segment == STARS:
                break
            if segment == STAR:
                node.star = node.star or _Node()
                node = node.star
            else:
                node = node.literals.setdefault(segment, _Node())
        leaves = node.rest if segments[-1:] == (STARS,) else node.routes
        first = leaves.setdefault(rule.http, route)
        if first is not route:
            self.ambiguous.append(f"{rule} is never used: {first.rule} matches the same")
        elif STAR not in segments and STARS not in segments:
            verb = f":{rule.template.verb}" if rule.template.verb else ""
            self._exact.setdefault(f"/{'/'.join(segments)}{verb}", {})[rule.http] = route

    def find(self, http: str, path: str) -> Found[R]:
        """The route for a raw path, which is still percent-encoded.

        Raises:
            BadPath: a malformed escape, or what is no UTF-8 when decoded.
        """
        exact = self._exact.get(path)
        if exact is not None and (route := exact.get(http)) is not None:
            return Found(route)
        if "%" not in path and ":" not in path and (found := self._straight(http, path)) is not None:
            return found
        return next(self._matches(http, path), None) or Found(None, (), self._allowed(path))

    def _straight(self, http: str, path: str) -> Found[R] | None:
        """What is found without going back, as most is; None when it takes more."""
        node = self._roots[""]
        raw = path[1:].split("/")
        for segment in raw:
            child = node.literals.get(segment) or (node.star if segment else None)
            if child is None:
                return None
            node = child
        route = node.routes.get(http)
        if route is None:
            return None
        variables = route.rule.template.variables
        return Found(route, tuple([captured(one, raw, raw) for one in variables]))

    def find_all(self, path: str) -> Iterator[Found[R]]:
        """Every route for a raw path, whatever its HTTP method, the most specific first."""
        return self._matches(None, path)

    def _allowed(self, path: str) -> frozenset[str]:
        return frozenset(found.route.rule.http for found in self.find_all(path) if found.route is not None)

    def _matches(self, http: str | None, path: str) -> Iterator[Found[R]]:
        if "%" in path and _PERCENT.search(path):
            raise BadPath(f"the path {path[:100]!r} has a '%' that begins no escape")
        raw = path[1:].split("/") if path != "/" else []
        if raw and ":" in raw[-1]:
            before, _, verb = raw[-1].rpartition(":")
            root = self._roots.get(unescape(verb)) if verb else None
            if root is not None:
                # The path of a verb may end before it: /v1:verb, or /:verb, where nothing is left.
                cut = [*raw[:-1], before] if before or len(raw) > 1 else []
                yield from self._walk(root, http, cut)
        yield from self._walk(self._roots[""], http, raw)

    def _walk(self, root: _Node[R], http: str | None, raw: list[str]) -> Iterator[Found[R]]:
        plain = raw if not any("%" in segment for segment in raw) else [unescape(segment) for segment in raw]
        for route in _search(root, plain, 0, http):
            variables = route.rule.template.variables
            yield Found(route, tuple(captured(one, raw, plain) for one in variables) if variables else ())

    def overlaps(self) -> list[str]:
        """Rules of which part is taken by more specific ones of other methods, one line each."""
        lines = []
        for root in self._roots.values():
            for rule in _rules(root):
                for other in _before(root, rule.template.segments, 0, higher=False):
                    same = other.http == rule.http or ANY in (other.http, rule.http)
                    if same and other.method is not rule.method:
                        lines.append(f"{rule} does not get what {other} matches")
        return sorted(set(lines))


def _search(node: _Node[R], segments: list[str], at: int, http: str | None) -> Iterator[R]:
    if at == len(segments):
        yield from _leaves(node.routes, http)
    else:
        segment = segments[at]
        if (child := node.literals.get(segment)) is not None:
            yield from _search(child, segments, at + 1, http)
        if node.star is not None and segment:
            yield from _search(node.star, segments, at + 1, http)
    if node.rest:
        yield from _leaves(node.rest, http)


def _leaves(routes: Mapping[str, R], http: str | None) -> Iterator[R]:
    if http is None:
        yield from routes.values()
    elif (route := routes.get(http) or routes.get(ANY)) is not None:
        yield route


def captured(variable: Variable, raw: list[str], plain: list[str]) -> str:
    """What a variable captured: one segment in full, several with what is reserved still encoded."""
    if variable.single:
        return plain[variable.start]
    text = "/".join(raw[variable.start : variable.end])
    return _ESCAPES.sub(_keep_reserved, text) if "%" in text else text


def _keep_reserved(escapes: re.Match[str]) -> str:
    kept = b"".join(b"%%%02X" % byte if byte in _RESERVED else bytes((byte,)) for byte in unquote_to_bytes(escapes[0]))
    return _utf8(kept)


def unescape(text: str) -> str:
    """Text with every escape decoded. Raises BadPath for what is no UTF-8 then."""
    return _utf8(unquote_to_bytes(text)) if "%" in text else text


def _utf8(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise BadPath("the path is no UTF-8 when it is decoded") from None


# The report at start


def _rules(node: _Node[R]) -> Iterator[Rule]:
    for routes in (node.routes, node.rest):
        for route in routes.values():
            yield route.rule
    for child in _children(node):
        yield from _rules(child)


def _children(node: _Node[R]) -> Iterator[_Node[R]]:
    yield from node.literals.values()
    if node.star is not None:
        yield node.star


def _before(node: _Node[R], segments: tuple[str, ...], at: int, *, higher: bool) -> Iterator[Rule]:
    """Rules that match some path of a template, and go before it; `higher` when one already does by now."""
    if at == len(segments):
        if higher:
            yield from (route.rule for routes in (node.routes, node.rest) for route in routes.values())
        return
    segment = segments[at]
    if segment == STARS:
        for child in _children(node):
            yield from _rules(child)
        yield from (route.rule for route in node.routes.values())
        if higher:
            yield from (route.rule for route in node.rest.values())
        return
    for name, child in node.literals.items():
        if segment in (STAR, name):
            yield from _before(child, segments, at + 1, higher=higher or segment == STAR)
    if node.star is not None and (segment == STAR or higher):
        yield from _before(node.star, segments, at + 1, higher=higher)
    if higher:
        yield from (route.rule for route in node.rest.values())
