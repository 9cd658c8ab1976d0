"""`google.api.http` rules: path templates parsed, fields checked against the messages.

    Template  = "/" [ Segments ] [ ":" LITERAL ]
    Segments  = Segment { "/" Segment }
    Segment   = "*" | "**" | LITERAL | "{" FieldPath [ "=" Segments ] "}"

`*` is one segment that is not empty, `**` any number of them, and the last before the verb. Variables do not nest.

Source: https://github.com/googleapis/googleapis/blob/master/google/api/http.proto
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from google.api import annotations_pb2, http_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from framework.call import Method
from framework.errors import FrameworkError

if TYPE_CHECKING:
    from framework.http.success import Success

STAR, STARS = "*", "**"
ANY = "*"
"""The HTTP method of a custom rule that takes every one."""

_IDENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LITERAL = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()+,;=@]|%[0-9A-Fa-f]{2})+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HTTP_METHOD = re.compile(r"[A-Z][A-Z0-9_-]*|\*")

TEXT_MESSAGES = frozenset(
    f"google.protobuf.{name}"
    for name in (
        *("Timestamp", "Duration", "FieldMask", "DoubleValue", "FloatValue", "Int64Value", "UInt64Value"),
        *("Int32Value", "UInt32Value", "BoolValue", "StringValue", "BytesValue"),
    )
)
"""Messages that one piece of text can be the value of."""


class RuleError(FrameworkError):
    """A rule that cannot be served; the message says which method, which rule and what is wrong with it.

    Attributes:
        place: the path in the options of the method to what is wrong.
    """

    def __init__(self, message: str, place: tuple[int, ...] = (annotations_pb2.HTTP_FIELD_NUMBER,)) -> None:
        super().__init__(message)
        self.place = place


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a template.

    Attributes:
        path: the field that it sets, by the names in the template.
        start, end: the segments it captures; `end` None is all that are left.
        single: it is one segment, which is decoded in full.
    """

    path: tuple[str, ...]
    start: int
    end: int | None
    single: bool


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed path template.

    Attributes:
        text: as it was written.
        segments: literals (decoded), STAR and STARS; a literal `*` cannot be written.
        variables: in order.
        verb: what stands behind the `:` at the end, or empty.
    """

    text: str
    segments: tuple[str, ...]
    variables: tuple[Variable, ...]
    verb: str

    @classmethod
    def parse(cls, text: str) -> Template:
        """Raises ValueError, which says what is wrong and where."""
        return _Parser(text).template()


@dataclass(frozen=True, slots=True)
class Rule:
    """One binding of a method.

    Attributes:
        method: what it calls.
        http: the HTTP method, or ANY.
        template: the path.
        body: `*`, the name of a field, or empty.
        response_body: the name of a field, or empty.
        fields: the fields that each variable of the template goes through, in order of the variables.
        success: how it is answered, when that is declared: see `success`.
    """

    method: Method[Any, Any]
    http: str
    template: Template
    body: str = ""
    response_body: str = ""
    fields: tuple[tuple[FieldDescriptor, ...], ...] = field(default=(), compare=False)
    success: Success | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.http} {self.template.text} ({self.method.full_name})"


def default_rule(method: Method[Any, Any]) -> Rule:
    """`POST /package.Service/Method`, which every method has."""
    return Rule(method, "POST", Template(method.path, (method.service, method.name), (), ""), body="*")


def rules_of(method: Method[Any, Any], annotation: http_pb2.HttpRule) -> tuple[Rule, ...]:
    """The rules of an annotation, its additional bindings included.

    Raises:
        RuleError: one cannot be served.
    """
    bindings = [annotation, *annotation.additional_bindings]
    for binding in bindings[1:]:
        if binding.additional_bindings:
            raise RuleError(f"{method.full_name}: additional_bindings have additional_bindings; one level is allowed")
    return tuple(_rule(method, binding) for binding in bindings)


def _rule(method: Method[Any, Any], binding: http_pb2.HttpRule) -> Rule:
    pattern = binding.WhichOneof("pattern")
    if pattern is None:
        raise RuleError(
            f"{method.full_name}: an HTTP rule without a path; write get, put, post, delete, patch or custom"
        )
    if pattern == "custom":
        http, text = binding.custom.kind, binding.custom.path
    else:
        http, text = pattern.upper(), getattr(binding, pattern)
    where = f'{method.full_name}: {pattern} "{text}"'
    if not _HTTP_METHOD.fullmatch(http):
        raise RuleError(f"{where}: {http!r} is no HTTP method; they are written in capitals")
    try:
        template = Template.parse(text)
        fields = tuple(_bound(method.request.DESCRIPTOR, variable) for variable in template.variables)
        _check_once(template)
        _check_body(method, http, binding.body)
        if binding.response_body:
            _field(method.reply.DESCRIPTOR, binding.response_body, "response_body")
    except ValueError as error:
        raise RuleError(f"{where}: {error}") from None
    return Rule(method, http, template, binding.body, binding.response_body, fields)


def find_field(descriptor: Descriptor, name: str) -> FieldDescriptor | None:
    """A field by its proto name or its JSON name."""
    if not name.isascii() and _SURROGATE.search(name):  # JSON may have one; protobuf breaks when asked for it
        return None
    found: FieldDescriptor | None = descriptor.fields_by_name.get(name)
    if found is None:
        found = next((one for one in descriptor.fields if one.json_name == name), None)
    return found


def _field(descriptor: Descriptor, name: str, what: str) -> FieldDescriptor:
    found = find_field(descriptor, name)
    if found is None:
        there = ", ".join(one.name for one in descriptor.fields)
        raise ValueError(f"{what} {name!r} is no field of {descriptor.full_name}; it has {there or 'none'}")
    return found


def _bound(descriptor: Descriptor, variable: Variable) -> tuple[FieldDescriptor, ...]:
    """The fields from the request to what a variable sets."""
    fields: list[FieldDescriptor] = []
    shown = ".".join(variable.path)
    for name in variable.path:
        if fields:
            held = fields[-1].message_type
            if held is None or held.full_name in TEXT_MESSAGES:
                raise ValueError(f"{{{shown}}}: {fields[-1].name} holds no fields")
            descriptor = held
        found = _field(descriptor, name, f"{{{shown}}}:" if len(variable.path) > 1 else "variable")
        if found.is_repeated:
            kind = "a map" if is_map(found) else "repeated"
            raise ValueError(f"{{{shown}}}: {found.name} is {kind}, and cannot be in a path")
        fields.append(found)
    last = fields[-1].message_type
    if last is not None and last.full_name not in TEXT_MESSAGES:
        raise ValueError(f"{{{shown}}}: {last.full_name} cannot be in a path; take one of its fields")
    return tuple(fields)


def _check_once(template: Template) -> None:
    seen: set[tuple[str, ...]] = set()
    for variable in template.variables:
        for other in seen:
            shorter = min(len(other), len(variable.path))
            if other[:shorter] == variable.path[:shorter]:
                raise ValueError(f"{{{'.'.join(variable.path)}}} and {{{'.'.join(other)}}} set the same field")
        seen.add(variable.path)


def _check_body(method: Method[Any, Any], http: str, body: str) -> None:
    if not body or body == "*":
        return
    if "." in body:
        raise ValueError(f"body {body!r} must be a field of the request itself")
    found = _field(method.request.DESCRIPTOR, body, "body")
    if found.is_repeated:
        raise ValueError(f"body {body!r} is {'a map' if is_map(found) else 'repeated'}; it must be one value")


def is_map(one: FieldDescriptor) -> bool:
    """The field is a map."""
    return bool(one.is_repeated and one.message_type is not None and one.message_type.GetOptions().map_entry)


class _Parser:
    """Of one template; raises ValueError with the place."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.segments: list[str] = []
        self.variables: list[Variable] = []

    def template(self) -> Template:
        if not self.take("/"):
            raise ValueError('a path begins with "/"')
        if self.at < len(self.text) and self.text[self.at] != ":":
            self.parse_segments(inside=False)
        verb = ""
        if self.take(":"):
            verb = self.literal("a verb")
        if self.at < len(self.text):
            raise self.unexpected("the end")
        for number, segment in enumerate(self.segments):
            if segment == STARS and number != len(self.segments) - 1:
                raise ValueError('"**" must be the last segment')
        return Template(self.text, tuple(self.segments), tuple(self.variables), verb)

    def parse_segments(self, *, inside: bool) -> None:
        self.segment(inside=inside)
        while self.take("/"):
            self.segment(inside=inside)

    def segment(self, *, inside: bool) -> None:
        if self.take("**"):
            self.segments.append(STARS)
        elif self.take("*"):
            self.segments.append(STAR)
        elif self.take("{"):
            if inside:
                raise ValueError(f"a variable inside a variable at character {self.at}")
            self.variable()
        else:
            self.segments.append(self.literal("a segment"))

    def variable(self) -> None:
        path = [self.ident()]
        while self.take("."):
            path.append(self.ident())
        start = len(self.segments)
        if self.take("="):
            self.parse_segments(inside=True)
        else:
            self.segments.append(STAR)
        if not self.take("}"):
            raise self.unexpected('"}"')
        captured = self.segments[start:]
        end = None if STARS in captured else len(self.segments)
        self.variables.append(Variable(tuple(path), start, end, captured == [STAR]))

    def ident(self) -> str:
        return self.match(_IDENT, "the name of a field")

    def literal(self, what: str) -> str:
        return unquote(self.match(_LITERAL, what), errors="strict")

    def match(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self.text, self.at)
        if found is None:
            raise self.unexpected(what)
        self.at = found.end()
        return found[0]

    def take(self, text: str) -> bool:
        if not self.text.startswith(text, self.at):
            return False
        self.at += len(text)
        return True

    def unexpected(self, wanted: str) -> ValueError:
        found = repr(self.text[self.at]) if self.at < len(self.text) else "the end"
        return ValueError(f"{wanted} expected at character {self.at + 1}, not {found}")
