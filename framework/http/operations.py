"""One operation of OpenAPI for one rule: where its parameters, its body and its replies come from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc import status_pb2

from framework.call import Idempotency
from framework.errors import Code
from framework.http import constraints
from framework.http.binding import HTTP_BODY
from framework.http.rules import STAR, STARS, TEXT_MESSAGES, Rule, find_field, is_map
from framework.http.schemas import Schema, Schemas, behaviors, is_demanded, is_wrapper
from framework.http.status import HTTP_STATUS
from framework.http.uploads import FORM, is_bytes

JSON, LINES, EVENTS, RAW = "application/json", "application/x-ndjson", "text/event-stream", "application/octet-stream"

STATUS: Any = status_pb2.Status.DESCRIPTOR
"""What errors are, as JSON."""

_AS_JSON = frozenset(f"google.protobuf.{name}" for name in ("Struct", "Value", "ListValue", "Any"))
_PLURALS = (
    *(("ies", "y"), ("lves", "lf"), ("sses", "ss"), ("xes", "x"), ("ches", "ch"), ("shes", "sh"), ("tuses", "tus")),
    *(("ss", "ss"), ("us", "us"), ("s", "")),
)
_PLAIN = "!$&'()*+,;=@~"

# Paths


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a path where a value goes.

    Attributes:
        name: of the parameter.
        many: the value may hold slashes.
        field: the field that it sets, when it is the whole value of that.
        describes: the field that it sets, or part of it.
    """

    name: str
    many: bool
    field: FieldDescriptor | None
    describes: str


def shape(rule: Rule) -> tuple[Any, ...]:
    """What paths match, whatever their parameters are called."""
    return (rule.template.segments, rule.template.verb)


def slots_of(rule: Rule) -> list[Slot]:
    """The places in the path of a rule; part of a variable is named after the word before it."""
    slots: list[Slot] = []
    taken: set[str] = set()
    segments = rule.template.segments
    for at, segment in enumerate(segments):
        if segment not in (STAR, STARS):
            continue
        name, field_, told = "", None, ""
        for variable, fields in zip(rule.template.variables, rule.fields, strict=True):
            if variable.start <= at and (variable.end is None or at < variable.end):
                whole = variable.start == at and variable.end in (None, at + 1)
                told = ".".join(one.name for one in fields)
                if whole:
                    name, field_ = told, fields[-1]
        before = segments[at - 1] if at else ""
        if not name:
            name = _singular(before) if before.isidentifier() else told.rpartition(".")[2] or "segment"
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.add(unique)
        slots.append(Slot(unique, segment == STARS, field_, told))
    return slots


def _singular(word: str) -> str:
    for end, single in _PLURALS:
        if word.endswith(end) and len(word) > len(end) + 1:
            return word.removesuffix(end) + single
    return word


def path_of(rule: Rule, slots: Iterable[Slot]) -> str:
    """The path as OpenAPI writes it."""
    verb = f":{quote(rule.template.verb, safe=_PLAIN)}" if rule.template.verb else ""
    return f"/{'/'.join(parts_of(rule, (slot.name for slot in slots)))}{verb}"


def parts_of(rule: Rule, names: Iterable[str]) -> list[str]:
    """The segments of a path, with parameters where values go."""
    left = iter(names)
    return [
        f"{{{next(left)}}}" if segment in (STAR, STARS) else quote(segment, safe=_PLAIN)
        for segment in rule.template.segments
    ]


# Operations


class Operations:
    """Makes operations.

    Args:
        schemas: where messages are described.

    Attributes:
        received: the messages that bodies are, by full name.
        examples: of whole messages, by name of the component.
    """

    def __init__(self, schemas: Schemas, *, reject_unknown: bool) -> None:
        self.schemas = schemas
        self.comments = schemas.comments
        self.reject_unknown = reject_unknown
        self.received: dict[str, Descriptor] = {}
        self.examples: dict[str, Any] = {}

    def of(self, rule: Rule, slots: list[Slot]) -> dict[str, Any]:
        """The operation of a rule; `slots` are named as in the path that it stands at."""
        method = rule.method
        shown: dict[str, Any] = {}
        if parameters := [*self.path_parameters(slots), *self.query(rule), *_conditions(rule)]:
            shown["parameters"] = parameters
        if (body := self.request_body(rule)) is not None:
            shown["requestBody"] = body
        shown["responses"] = {**self.successes(rule), **ERROR_REFS}
        if (method.client_streaming or method.server_streaming) and not _raw(rule):
            shown["x-websocket"] = True
        shown["x-grpc"] = self.grpc(rule, slots)
        return shown

    def grpc(self, rule: Rule, slots: list[Slot]) -> dict[str, Any]:
        """How the request message comes from path and body, by JSON names."""
        method = rule.method
        parts = parts_of(rule, (slot.name for slot in slots))
        shown: dict[str, Any] = {"method": method.full_name}
        if method.client_streaming:
            shown["clientStreaming"] = True
        if method.server_streaming:
            shown["serverStreaming"] = True
        if method.idempotency is not Idempotency.UNKNOWN:
            shown["idempotency"] = method.idempotency.name
        if method.timeout is not None:
            shown["timeoutSeconds"] = method.timeout
        if rule.template.variables:
            shown["path"] = {
                ".".join(self.schemas.name(step) for step in fields): "/".join(parts[one.start : one.end])
                for one, fields in zip(rule.template.variables, rule.fields, strict=True)
            }
        if rule.body:
            held = find_field(method.request.DESCRIPTOR, rule.body)
            shown["body"] = rule.body if held is None else self.schemas.name(held)
        return shown

    # Requests

    def path_parameters(self, slots: list[Slot]) -> Iterator[dict[str, Any]]:
        for slot in slots:
            schema: Schema = {"type": "string"}
            if slot.field is not None:
                schema = self.bare(slot.field)
            if schema.get("type") == "string" and "format" not in schema and not slot.many:
                schema = {"minLength": 1, **schema}
            shown: dict[str, Any] = {"name": slot.name, "in": "path", "required": True, "schema": schema}
            text = self.comments.get(slot.field.full_name) if slot.field is not None else None
            if text is None and slot.describes and slot.field is None:
                text = f"Part of `{slot.describes}`."
            if text:
                shown["description"] = text
            if slot.many:
                shown["x-multi-segment"] = True
            yield shown

    def bare(self, one: FieldDescriptor) -> Schema:
        """The value of a field outside JSON, where there is no null; one of them when there may be more."""
        held = one.message_type
        inner = held.fields_by_name["value"] if held is not None and is_wrapper(held.full_name) else one
        found = self.schemas.value(inner)
        return found if one.is_repeated else constraints.bound(one, found)

    def query(self, rule: Rule) -> Iterator[dict[str, Any]]:
        """Parameters for what neither the path nor the body sets."""
        if rule.body == "*":
            return
        request: Descriptor = rule.method.request.DESCRIPTOR
        body = find_field(request, rule.body) if rule.body else None
        bound = {tuple(step.name for step in fields) for fields in rule.fields}
        yield from self.query_of(request, "", (), bound, "" if body is None else body.name, (request.full_name,))

    def query_of(
        self,
        descriptor: Descriptor,
        prefix: str,
        path: tuple[str, ...],
        bound: set[tuple[str, ...]],
        body: str,
        outer: tuple[str, ...],
    ) -> Iterator[dict[str, Any]]:
        for one in descriptor.fields:
            here = (*path, one.name)
            if here in bound or here == (body,) or "OUTPUT_ONLY" in behaviors(one):
                continue
            name = f"{prefix}{self.schemas.name(one)}"
            held = one.message_type
            if is_map(one):
                value: Any = held.fields_by_name["value"] if held is not None else None
                if value.message_type is None or _one_text(value.message_type):
                    shown = self.schemas.plain(one)
                    if value.message_type is not None:
                        shown["additionalProperties"] = self.bare(value)
                    if "propertyNames" not in shown:
                        shown["propertyNames"] = {"pattern": r"^[^\]]*$"}  # which ends the key
                    yield self.parameter(one, name, {"style": "deepObject", "schema": shown})
            elif held is None or _one_text(held):
                schema = self.bare(one)
                if one.is_repeated:
                    schema = constraints.bound(one, {"type": "array", "items": schema})
                yield self.parameter(one, name, {"schema": schema})
            elif held.full_name in _AS_JSON:
                if not one.is_repeated:
                    yield self.parameter(one, name, {"content": {JSON: {"schema": self.schemas.value(one)}}})
            elif not one.is_repeated and held.full_name not in outer:
                inside = (*outer, held.full_name)
                yield from self.query_of(held, f"{name}.", here, bound, "", inside)

    def parameter(self, one: FieldDescriptor, name: str, form: Mapping[str, Any]) -> dict[str, Any]:
        shown: dict[str, Any] = {"name": name, "in": "query"}
        if text := self.comments.get(one.full_name):
            shown["description"] = text
        if is_demanded(one) and "." not in name:
            shown["required"] = True
        if one.GetOptions().deprecated:
            shown["deprecated"] = True
        return {**shown, **form}

    def request_body(self, rule: Rule) -> dict[str, Any] | None:
        if not rule.body:
            return None
        method = rule.method
        request: Descriptor = method.request.DESCRIPTOR
        one = None if rule.body == "*" else find_field(request, rule.body)
        held = request if one is None else one.message_type
        if held is not None and held.full_name == HTTP_BODY:
            return {"description": "Sent as it is, with its content type.", "content": {RAW: {}}}
        if one is None:
            # What the path sets is not asked for again.
            names = {fields[0].name for fields in rule.fields if len(fields) == 1}
            schema = self.schemas.object(request, names) if names else self.schemas.message(request)
            if names:
                schema = {"title": request.name, **schema}
                if self.reject_unknown:
                    schema["additionalProperties"] = False
        else:
            names = set()
            schema = self.schemas.field(one)
            if rule.http == "PATCH" and held is not None and "$ref" in schema:  # only what is to change is sent
                whole = self.schemas.object(held)
                schema = {"title": held.name, **{key: value for key, value in whole.items() if key != "required"}}
                if self.reject_unknown:
                    schema["additionalProperties"] = False
        if held is not None:
            self.received[held.full_name] = held
        shown: dict[str, Any] = {}
        if one is not None and (text := self.comments.get(one.full_name)):
            shown["description"] = text
        if one is not None and is_demanded(one):
            shown["required"] = True
        if method.client_streaming:
            shown["content"] = {
                JSON: {"schema": {"type": "array", "items": schema}, "example": [self.shown(request, one, names)]},
                LINES: {**_lines("One JSON text a line, each a request."), "x-itemSchema": schema},
            }
        else:
            shown["content"] = {JSON: {"schema": schema, **self.example(request, one, names, sent=True)}}
        if one is not None and is_bytes(one):
            shown["content"][RAW] = {}
        elif held is not None and any(_is_file(each) for each in held.fields):
            shown["content"][FORM] = {"schema": self.form(held, names)}
        return shown

    def form(self, held: Descriptor, names: Iterable[str]) -> Schema:
        """A message as a form, without some of its fields and those that OpenAPI cannot put in a form."""
        shown = [each for each in held.fields if each.name not in names and _is_part(each)]
        whole = self.schemas.object(held, {each.name for each in held.fields} - {each.name for each in shown})
        parts = {self.schemas.name(each): _FILE if _is_file(each) else self.bare(each) for each in shown}
        oneofs: Schema = {key: whole[key] for key in ("allOf", "x-oneofs") if key in whole}
        return {"type": "object", "properties": parts, "additionalProperties": False, **oneofs}

    # Replies

    def successes(self, rule: Rule) -> dict[str, Any]:
        """What a rule is answered with, by status, and what else a conditional request may be."""
        success, reply = rule.success, self.reply(rule)
        if success is None:
            return {"200": reply}
        if success.status == 204:
            reply.pop("content", None)
        headers: dict[str, Any] = {}
        if success.location is not None:
            headers["Location"] = {"schema": {"type": "string"}, "description": "Where it is from now on."}
        if success.etag is not None:
            headers["ETag"] = {"schema": {"type": "string"}, "description": "Changes whenever the reply does."}
        if headers:
            reply["headers"] = headers
        shown = {str(success.status): reply}
        if success.etag is not None and rule.http == "GET":
            shown["304"] = {"description": "It is still as it was under the entity tag in `If-None-Match`."}
        if success.if_match:
            shown["412"] = {"$ref": "#/components/responses/Error"}
        return shown

    def reply(self, rule: Rule) -> dict[str, Any]:
        method = rule.method
        reply: Descriptor = method.reply.DESCRIPTOR
        one = find_field(reply, rule.response_body) if rule.response_body else None
        held = reply if one is None else one.message_type
        text = self.comments.get(reply.full_name if one is None else one.full_name, "")
        shown: dict[str, Any] = {"description": first_sentence(text) if text else "OK"}
        if held is not None and held.full_name == HTTP_BODY and (one is None or not one.is_repeated):
            return {**shown, "content": {"*/*": {}}}
        if one is None:
            schema = self.schemas.message(reply)
        else:
            schema = self.schemas.plain(one)
            if held is not None and not one.is_repeated and "$ref" in schema:
                schema = {"anyOf": [schema, {"type": "null"}]}
        if not method.server_streaming:
            return {**shown, "content": {JSON: {"schema": schema, **self.example(reply, one, sent=False)}}}
        failed = {
            "type": "object",
            "properties": {"error": self.schemas.message(STATUS)},
            "required": ["error"],
        }
        records = {"type": "array", "items": {"anyOf": [schema, failed]}}
        last = 'After a failure the last one is `{"error": ...}` with a google.rpc.Status.'
        events = "Events of which `data` is a reply; then one named `end`, or `error` with a google.rpc.Status."
        content = {
            LINES: {**_lines(f"One JSON text a line, each a reply. {last}"), "x-itemSchema": schema},
            JSON: {"schema": {**records, "description": f"All replies. {last}"}},
            EVENTS: {**_lines(events), "x-itemSchema": schema},
        }
        return {**shown, "content": content}

    def example(
        self, holder: Descriptor, one: FieldDescriptor | None, without: Iterable[str] = (), *, sent: bool
    ) -> dict[str, Any]:
        """The example of a message, or of a field of it; one of a whole message is a component."""
        held = holder if one is None else one.message_type
        shown = self.shown(holder, one, without, sent=sent)
        if held is None or (one is not None and one.is_repeated) or without:
            return {"example": shown}
        differs = sent and shown != self.schemas.example(held, sent=False)
        name = f"{held.full_name}.sent" if differs else held.full_name
        self.examples[name] = shown
        return {"examples": {"example": {"$ref": f"#/components/examples/{name}"}}}

    def shown(
        self, holder: Descriptor, one: FieldDescriptor | None, without: Iterable[str] = (), *, sent: bool = True
    ) -> Any:
        """An example itself, without some fields of the message."""
        if one is not None:
            return self.schemas.field_example(one, sent=sent)
        left_out = {self.schemas.name(holder.fields_by_name[name]) for name in without}
        whole = self.schemas.example(holder, sent=sent)
        return {key: value for key, value in whole.items() if key not in left_out} if left_out else whole


def _one_text(descriptor: Descriptor) -> bool:
    return descriptor.full_name in TEXT_MESSAGES


def _raw(rule: Rule) -> bool:
    """A stream that is no JSON on one side, which a WebSocket does not carry."""
    request: Descriptor = rule.method.request.DESCRIPTOR
    one = find_field(request, rule.body) if rule.body not in ("", "*") else None
    held = request if rule.body == "*" else None if one is None else one.message_type
    return HTTP_BODY in (held.full_name if held is not None else "", rule.method.reply.DESCRIPTOR.full_name)


_FILE = {"type": "string", "contentMediaType": RAW}


def _is_file(one: FieldDescriptor) -> bool:
    """Part of a form that a person would choose a file for."""
    return is_bytes(one) or (one.message_type is not None and one.message_type.full_name == HTTP_BODY)


def _is_part(one: FieldDescriptor) -> bool:
    """OpenAPI can say how this field is part of a form."""
    held: Any = one.message_type or one.enum_type
    own = held is not None and held.full_name.startswith("google.protobuf.") and held.full_name not in TEXT_MESSAGES
    return not (one.is_repeated or own or "OUTPUT_ONLY" in behaviors(one))


def _lines(description: str) -> dict[str, Any]:
    return {"schema": {"type": "string", "description": description}}


def first_sentence(text: str) -> str:
    """The beginning of a comment, on one line."""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    first, dot, _ = paragraph.partition(". ")
    return f"{first}." if dot else paragraph


# Errors


def error_response(text: str, schema: Schema) -> dict[str, Any]:
    """A response that is an error."""
    return {"description": text, "content": {JSON: {"schema": schema}}}


def _errors() -> dict[str, str]:
    """The error responses by name: of each HTTP status the codes that become it."""
    codes: dict[int, list[str]] = {}
    for code, status in HTTP_STATUS.items():
        if code != Code.OK:
            codes.setdefault(status, []).append(Code(code).name)
    return {
        **{f"Error{status}": ", ".join(names) for status, names in sorted(codes.items())},
        "Error": "Any other error.",
    }


def _conditions(rule: Rule) -> Iterator[dict[str, Any]]:
    """The headers that make a request conditional."""
    success = rule.success
    if success is not None and success.etag is not None and rule.http == "GET":
        text = "An entity tag that is known already."
        yield {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}, "description": text}
    if success is not None and success.if_match:
        text = "The entity tag of what is to be changed."
        yield {"name": "If-Match", "in": "header", "schema": {"type": "string"}, "description": text}


ERRORS = _errors()
ERROR_REFS = {name.removeprefix("Error") or "default": {"$ref": f"#/components/responses/{name}"} for name in ERRORS}
