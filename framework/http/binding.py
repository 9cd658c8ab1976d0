"""From path, query and body to the request message; what does not fit is told field by field.

The body comes first, then the query, then the path, which has the last word. A query parameter names a field by proto
or JSON names, `filter.author.givenName`, an entry of a map as `labels[key]`, and a repeated field as often as it likes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import error_details_pb2

from framework.errors import InvalidArgument
from framework.http.json import Json, JsonError
from framework.http.relay import is_relayed
from framework.http.rules import Rule, find_field, is_map
from framework.http.text import Convert, converter
from framework.http.unknown import explained, no_field

HTTP_BODY = "google.api.HttpBody"
FIELD_MASK = "google.protobuf.FieldMask"
Unknown = Literal["reject", "ignore"]

SYSTEM = frozenset(
    ("access_token", "alt", "callback", "fields", "key", "oauth_token", "prettyPrint", "quotaUser", "uploadType")
)
"""System parameters of Google's APIs, which clients send whether or not anybody reads them; so is all with a `$`."""

MOST_NAMES = 1000
"""Names of query parameters that are remembered; a recursive message has any number of them."""

LONGEST_NAME = 200
"""Characters of a name that is remembered; with the key of a map it can be as long as a server lets it."""

MOST_VIOLATIONS = 20
"""Query parameters that are told to be wrong; then nobody looks at the rest."""

DEEPEST = 100
"""Messages that may be in one another in a query parameter: more cannot be read from JSON or the wire, either."""

LARGEST_LOCATED = 1 << 16
"""Bytes of a body in which the place of a mistake is still looked for."""

_NAME = re.compile(r"(?P<name>[^.\[\]]+)(?:\[(?P<key>[^\]]*)\])?(?:\.|$)")


class Violation(Exception):
    """One field that is wrong."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(field, description)
        self.field = field
        self.description = description


def invalid(violations: Iterable[Violation]) -> InvalidArgument:
    """What the caller is told: the first in the message, all of them as `google.rpc.BadRequest`."""
    found = list(violations)
    details = error_details_pb2.BadRequest()
    for one in found:
        details.field_violations.add(field=one.field, description=one.description)
    first = f"{found[0].field}: {found[0].description}" if found[0].field else found[0].description
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return InvalidArgument(f"{first}{more}", details=[details])


@dataclass(frozen=True, slots=True)
class Target:
    """What a path variable or a query parameter sets.

    Attributes:
        name: as it is told in violations, `filter.author.given_name`.
        steps: the fields down to it; one that is followed by a key is a map.
        keys: the keys of the maps among them, by position.
        convert: what its text becomes; None for a message that is more than one value.
    """

    name: str
    steps: tuple[FieldDescriptor, ...]
    keys: Mapping[int, Any]
    convert: Convert | None

    def set(self, message: Any, value: Any) -> None:
        """Raises Violation when a oneof on the way is set to something else."""
        last = len(self.steps) - 1
        for number, step in enumerate(self.steps):
            oneof = step.containing_oneof
            if oneof is not None and len(oneof.fields) > 1:
                other = message.WhichOneof(oneof.name)
                if other is not None and other != step.name:
                    raise Violation(self.name, f"only one of {oneof.name} can be set, and {other} is")
            if number == last:
                break
            message = getattr(message, step.name)
            if number in self.keys:
                message = message[self.keys[number]]
        name = step.name
        if last in self.keys:
            if step.message_type.fields_by_name["value"].message_type is None:  # type: ignore[union-attr]  # a map
                getattr(message, name)[self.keys[last]] = value
            else:
                getattr(message, name)[self.keys[last]].CopyFrom(value)
        elif step.is_repeated:
            getattr(message, name).append(value)
        elif step.message_type is None:
            setattr(message, name, value)
        else:
            getattr(message, name).CopyFrom(value)


Preset = tuple[tuple[Target, Any], ...]
"""What path and query set, in every message of the request."""


class Binder:
    """Makes the request messages of one rule.

    Args:
        rule: the rule.
        codecs: ProtoJSON.
        unknown: what becomes of query parameters that are no fields.
    """

    def __init__(self, rule: Rule, codecs: Json, unknown: Unknown = "reject") -> None:
        self.rule = rule
        self._codecs = codecs
        self._unknown = unknown
        self._kind: Any = rule.method.request
        self._descriptor: Descriptor = self._kind.DESCRIPTOR
        self._variables = tuple(self._variable(fields) for fields in rule.fields)
        self._bound = tuple(fields for fields in rule.fields)
        self._body = find_field(self._descriptor, rule.body) if rule.body not in ("", "*") else None
        self._names: dict[str, Target] = {}
        holder = self._descriptor if rule.body == "*" else self._body.message_type if self._body is not None else None
        self.raw = holder is not None and holder.full_name == HTTP_BODY
        """The body is no JSON, but bytes for an HttpBody."""
        self._raw_kind = message_factory.GetMessageClass(holder) if self.raw and holder is not None else None
        self._mask = derived_mask(rule)
        self._parse = self._parser()

    def _variable(self, fields: tuple[FieldDescriptor, ...]) -> Target:
        convert = converter(fields[-1], self._codecs)
        assert convert is not None  # the rule would have been refused
        return Target(".".join(field.name for field in fields), fields, {}, convert)

    def preset(self, values: tuple[str, ...], query: bytes) -> Preset:
        """What the variables of the path and the query set.

        Raises:
            InvalidArgument: with a violation for each part that does not fit.
        """
        if not values and not query:
            return ()
        found: list[tuple[Target, Any]] = []
        violations: list[Violation] = []
        if query:
            seen: set[str] = set()
            for part in query.split(b"&"):
                if len(violations) >= MOST_VIOLATIONS:
                    break
                try:
                    if part and (one := self._parameter(part, seen)) is not None:
                        found.append(one)
                except Violation as violation:
                    violations.append(violation)
        for target, text in zip(self._variables, values, strict=True):
            try:
                assert target.convert is not None  # the rule would have been refused
                found.append((target, target.convert(text)))
            except ValueError as error:
                violations.append(Violation(target.name, str(error)))
        if violations:
            raise invalid(violations)
        return tuple(found)

    def _parameter(self, part: bytes, seen: set[str]) -> tuple[Target, Any] | None:
        raw_name, _, raw_value = part.partition(b"=")
        name = _decoded(raw_name, "")
        target = self._names.get(name)
        if target is None:
            try:
                target = self._target(name)
            except Violation:
                if name.startswith("$") or name in SYSTEM or self._unknown == "ignore":
                    return None
                raise
            if len(self._names) < MOST_NAMES and len(name) <= LONGEST_NAME:
                self._names[name] = target
        if not target.steps[-1].is_repeated or len(target.steps) - 1 in target.keys:
            if target.name in seen:
                raise Violation(target.name, "this is set twice")
            seen.add(target.name)
        assert target.convert is not None  # or there would be no target
        try:
            return target, target.convert(_decoded(raw_value, target.name))
        except ValueError as error:
            raise Violation(target.name, str(error)) from None

    def _target(self, name: str) -> Target:
        shown = name if len(name) <= 100 else f"{name[:97]}..."
        if self.rule.body == "*":
            raise Violation(shown, "query parameters are not read here: the body is the whole request")
        target = target_of(self._descriptor, name, self._codecs)
        self._refuse_bound(shown, target.steps)
        return target

    def _refuse_bound(self, name: str, steps: tuple[FieldDescriptor, ...]) -> None:
        if self._body is not None and steps[0].name == self._body.name:
            raise Violation(name, "the body sets this")
        for bound in self._bound:
            shorter = min(len(bound), len(steps))
            if [one.name for one in bound[:shorter]] == [one.name for one in steps[:shorter]]:
                raise Violation(name, "the path sets this")

    # The body

    def message(self, preset: Preset, body: bytes, content_type: str = "") -> Any:
        """The request of a body, which is empty when there is none.

        Raises:
            InvalidArgument: with a violation for what does not fit.
        """
        message = self._parse(body, content_type)
        if self._mask is not None and body:
            self._set_mask(message, preset, body)
        return self.fill(message, preset) if preset else message

    def fill(self, message: Any, preset: Preset) -> Any:
        """A request with what path and query set. Raises InvalidArgument, as `message` does."""
        violations = []
        for target, value in preset:
            try:
                target.set(message, value)
            except Violation as violation:
                violations.append(violation)
        if violations:
            raise invalid(violations)
        return message

    def _parser(self) -> Callable[[bytes, str], Any]:
        kind, field = self._kind, self._body
        if self._raw_kind is not None:
            raw_kind: Any = self._raw_kind

            def raw(body: bytes, content_type: str) -> Any:
                held = raw_kind(content_type=content_type, data=body)
                return held if field is None else kind(**{field.name: held})

            return raw
        if self.rule.body == "*":
            codec = self._codecs.codec(kind)
            relay = is_relayed(self.rule.method) and not self.rule.fields
            parse, nothing = (codec.pack, bytes) if relay else (codec.parse, kind)

            def whole(body: bytes, content_type: str) -> Any:
                if not body:
                    return nothing()
                try:
                    return parse(body)
                except JsonError as error:
                    raise self._broken(error, body, self._descriptor, "") from None

            return whole
        if field is None:
            return self._nothing
        return self._part(field)

    def _nothing(self, body: bytes, content_type: str) -> Any:
        if body and not body.isspace():
            raise invalid([Violation("", "this takes no body")])
        return self._kind()

    def _part(self, field: FieldDescriptor) -> Callable[[bytes, str], Any]:
        kind, name, held = self._kind, field.name, field.message_type
        if held is not None:
            parse = self._codecs.codec(message_factory.GetMessageClass(held)).parse

            wrapped = held.file.name == "google/protobuf/wrappers.proto"

            def message(body: bytes, content_type: str) -> Any:
                if not body or (wrapped and body.strip() == b"null"):
                    return kind()
                try:
                    return kind(**{name: parse(body)})
                except JsonError as error:
                    raise self._broken(error, body, held, name) from None

            return message
        whole = self._codecs.codec(kind).parse

        def scalar(body: bytes, content_type: str) -> Any:
            if not body:
                return kind()
            try:
                return whole(b'{"%s":%s}' % (field.json_name.encode(), json.dumps(json.loads(body)).encode()))
            except (ValueError, RecursionError):
                raise invalid([Violation(name, "this is no JSON")]) from None
            except JsonError as error:
                raise invalid([Violation(name, explained(error, self._descriptor))]) from None

        return scalar

    def _broken(self, error: JsonError, body: bytes, descriptor: Descriptor, prefix: str) -> InvalidArgument:
        where = error.field.rpartition(".")[2]
        if error.field and len(body) <= LARGEST_LOCATED:
            try:
                places = list(_places(json.loads(body), descriptor, error.field, ""))
            except (ValueError, RecursionError):
                places = []
            where = places[0] if len(places) == 1 else where
        return invalid([Violation(".".join(part for part in (prefix, where) if part), explained(error, descriptor))])

    def _set_mask(self, message: Any, preset: Preset, body: bytes) -> None:
        mask, field = self._mask, self._body
        assert mask is not None
        assert field is not None
        assert field.message_type is not None
        if any(target.steps[0].name == mask.name for target, _ in preset):
            return
        getattr(message, mask.name).paths.extend(_paths(json.loads(body), field.message_type, ""))


def derived_mask(rule: Rule) -> FieldDescriptor | None:
    """The field that a PATCH without an explicit mask sets from the fields in its body."""
    request: Descriptor = rule.method.request.DESCRIPTOR
    body = find_field(request, rule.body) if rule.http == "PATCH" and rule.body not in ("", "*") else None
    if body is None or body.message_type is None or body.message_type.full_name == HTTP_BODY:
        return None
    masks = [
        field
        for field in request.fields
        if field.message_type is not None and field.message_type.full_name == FIELD_MASK and not field.is_repeated
    ]
    return masks[0] if len(masks) == 1 else None


def target_of(descriptor: Descriptor, name: str, codecs: Json, *, whole: bool = False) -> Target:
    """What a name means that a query parameter or a part of a form has.

    Args:
        whole: it may be a message that is more than one value.

    Raises:
        Violation: there is no such field.
    """
    shown = name if len(name) <= 100 else f"{name[:97]}..."
    holder: Descriptor | None = descriptor
    steps: list[FieldDescriptor] = []
    keys: dict[int, Any] = {}
    told: list[str] = []
    at = 0
    while at < len(name):
        token = _NAME.match(name, at)
        field = None if token is None or holder is None else find_field(holder, token["name"])
        if token is not None and holder is not None and field is None:
            raise Violation(shown, no_field(holder, token["name"]))
        if token is None or field is None or (steps and steps[-1].is_repeated and len(steps) - 1 not in keys):
            raise Violation(shown, no_field(descriptor, shown))
        steps.append(field)
        if len(steps) > DEEPEST:
            raise Violation(shown, f"this is nested deeper than {DEEPEST} messages")
        holder = field.message_type
        told.append(field.name)
        if token["key"] is not None:
            if not is_map(field):
                raise Violation(shown, f"{field.name} is no map")
            keys[len(steps) - 1] = _key(field, token["key"], shown, codecs)
            told[-1] += f"[{token['key']}]"
            holder = field.message_type.fields_by_name["value"].message_type  # type: ignore[union-attr]  # a map
        at = token.end()
    if not steps or name.endswith("."):
        raise Violation(shown, no_field(descriptor, shown))
    last: FieldDescriptor = steps[-1]
    if is_map(last):
        if len(steps) - 1 not in keys:
            raise Violation(shown, f"a map is set by its keys: {shown}[key]=value")
        last = last.message_type.fields_by_name["value"]  # type: ignore[union-attr]  # a map
    convert = converter(last, codecs)
    if convert is None and not whole:
        inner: Any = last.message_type
        raise Violation(shown, f"{inner.full_name} is more than one value; name its fields: {shown}.field=value")
    return Target(".".join(told), tuple(steps), keys, convert)


def _key(field: FieldDescriptor, text: str, shown: str, codecs: Json) -> Any:
    convert = converter(field.message_type.fields_by_name["key"], codecs)  # type: ignore[union-attr]  # a map
    assert convert is not None
    try:
        return convert(text)
    except ValueError as error:
        raise Violation(shown, str(error)) from None


def _decoded(raw: bytes, name: str) -> str:
    if b"+" in raw:
        raw = raw.replace(b"+", b" ")
    if b"%" in raw:
        if re.search(rb"%(?![0-9A-Fa-f]{2})", raw):
            raise Violation(name, "a '%' here begins no escape")
        raw = unquote_to_bytes(raw)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Violation(name, "this is no UTF-8 when it is decoded") from None


def _places(data: Any, descriptor: Descriptor, wanted: str, prefix: str) -> Iterator[str]:
    """Where a field of this full name, or a name that is no field, stands in a body."""
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        field = find_field(descriptor, key)
        if field is None:
            if key == wanted:
                yield f"{prefix}{key}"
            continue
        where = f"{prefix}{field.name}"
        if field.full_name == wanted:
            yield where
        held = field.message_type
        if held is None:
            continue
        if is_map(field):
            inner, entries = held.fields_by_name["value"].message_type, value
            if inner is not None and isinstance(entries, dict):
                for name, entry in entries.items():
                    yield from _places(entry, inner, wanted, f"{where}[{name}].")
        elif isinstance(value, list):
            for number, entry in enumerate(value):
                yield from _places(entry, held, wanted, f"{where}[{number}].")
        else:
            yield from _places(value, held, wanted, f"{where}.")


def _paths(data: Any, descriptor: Descriptor, prefix: str) -> Iterator[str]:
    """The fields that a body sets, as a field mask names them."""
    for key, value in data.items() if isinstance(data, dict) else ():
        field = find_field(descriptor, key)
        if field is None:
            continue
        held = field.message_type
        nested = held is not None and not field.is_repeated and not held.full_name.startswith("google.protobuf.")
        if nested and held is not None and isinstance(value, dict) and value:
            yield from _paths(value, held, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"
