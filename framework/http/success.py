"""What a method declares about its success, and conditional requests.

    option (framework.http) = { status: 201 location: "/v1/orders/{id}" etag: "version" if_match: "version" };

An entity tag is what the reply declares, or what the handler sends as metadata `etag`. A field holds it without quotes.

Source: RFC 9110, sections 8.8.3 and 13
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from framework import options_pb2
from framework.call import Method
from framework.errors import Aborted, Code, InvalidArgument, RpcError
from framework.http.rules import STAR, STARS, RuleError, Template, find_field, is_map
from framework.http.status import Headers, HttpError

WHOLE = "*"
"""Instead of the name of a field: a tag is made of the whole reply."""

_TAG = re.compile(r'\s*(W/)?"([^"]*)"\s*')
_PLAIN = "!#$&'()*+,-./:;<=>?@[\\]^_`{|}~"
_NUMBERS = (
    *(FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_INT64),
    *(FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64),
)

Fields = tuple[FieldDescriptor, ...]


@dataclass(frozen=True, slots=True)
class Success:
    """How a method is answered.

    Attributes:
        status: when all went well.
        location: the path of what the reply is, and the fields that its variables are.
        etag: the field that is the entity tag; empty when the whole reply is, None for none.
        if_match: the field of the request that `If-Match` sets; empty for none.
    """

    status: int = 200
    location: tuple[Template, tuple[Fields, ...]] | None = None
    etag: Fields | None = None
    if_match: Fields = ()

    @classmethod
    def of(cls, method: Method[Any, Any], said: Any) -> Success:
        """What `framework.HttpOptions` say. Raises RuleError for what cannot be."""
        request, reply = method.request.DESCRIPTOR, method.reply.DESCRIPTOR
        location: tuple[Template, tuple[Fields, ...]] | None = None
        etag: Fields | None = None
        if_match: Fields = ()
        name = ""  # of what is being looked at
        try:
            if method.server_streaming:
                raise ValueError("a stream of replies cannot have it")
            if name := "status" if said.status else "":
                _check_status(said.status)
            if name := "location" if said.location else "":
                location = _location(reply, said.location)
            if name := "etag" if said.etag else "":
                etag = () if said.etag == WHOLE else _fields(reply, said.etag.split("."), "etag")
            if name := "if_match" if said.if_match else "":
                if method.client_streaming:
                    raise ValueError("if_match is not for a stream of requests")
                if_match = _fields(request, said.if_match.split("."), "if_match")
        except ValueError as error:
            place = (said.DESCRIPTOR.fields_by_name[name].number,) if name else ()
            raise RuleError(
                f"{method.full_name}: (framework.http): {error}", (options_pb2.HTTP_FIELD_NUMBER, *place)
            ) from None
        return cls(said.status or 200, location, etag, if_match)

    def headers(self, reply: Any, body: bytes, root: str) -> Headers:
        """What an answer says about the reply.

        Args:
            body: the reply as it is sent.
            root: what is before all paths here.
        """
        said: Headers = []
        if self.location is not None and (path := _expanded(reply, *self.location)):
            said.append((b"location", (quote(root) + path).encode()))
        if self.etag == ():
            said.append((b"etag", b'W/"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()))
        elif self.etag and (value := _value(reply, self.etag)):
            said.append((b"etag", f'"{quote(value, safe=_PLAIN)}"'.encode()))
        return said

    def demand(self, request: Any, headers: Mapping[bytes, bytes]) -> None:
        """Set the field of a request that is to be the entity tag of what it changes.

        Raises:
            HttpError: a tag that cannot be, whatever there is.
            InvalidArgument: it is no tag, or several.
        """
        raw = headers.get(b"if-match")
        if raw is None or not self.if_match or raw.strip() == b"*":
            return
        found = _TAG.fullmatch(raw.decode("latin-1"))
        if found is None:
            raise InvalidArgument('If-Match must be one entity tag in quotes, as in If-Match: "7"')
        if found[1]:
            raise HttpError(412, Aborted("a weak entity tag does not do for If-Match"))
        *path, last = self.if_match
        for step in path:
            request = getattr(request, step.name)
        text = unquote(found[2])
        try:
            setattr(request, last.name, text if last.cpp_type == last.CPPTYPE_STRING else int(text))
        except ValueError:  # none that was ever sent from here
            raise HttpError(412, Aborted(f"the entity tag is not {text[:40]!r}")) from None


def unchanged(http: str, asked: Mapping[bytes, bytes], headers: Headers) -> bool:
    """The client has the answer already: a GET names its entity tag."""
    wanted = asked.get(b"if-none-match")
    if wanted is None or http not in ("GET", "HEAD"):
        return False
    tag = next((value for name, value in headers if name == b"etag"), None)
    if tag is None:
        return False
    found = [one[2] for one in _TAG.finditer(wanted.decode("latin-1"))]
    return wanted.strip() == b"*" or tag.decode("latin-1").removeprefix("W/").strip('"') in found


_UNMET = (Code.ABORTED, Code.FAILED_PRECONDITION)


def precondition_failed(error: RpcError, http: str, headers: Mapping[bytes, bytes]) -> bool:
    """A call failed because of what its client demanded in a header, which the service has compared."""
    if b"if-match" in headers:
        return error.code in _UNMET
    if http in ("GET", "HEAD"):
        return False
    return b"if-none-match" in headers and (error.code in _UNMET or error.code is Code.ALREADY_EXISTS)


def _check_status(status: int) -> None:
    if not 200 <= status <= 299:
        raise ValueError(f"status {status} is no success; choose one from 200 to 299")


def _fields(descriptor: Descriptor, path: list[str] | tuple[str, ...], what: str) -> Fields:
    """The fields from a message down to one that a piece of text can be."""
    fields: list[FieldDescriptor] = []
    held: Descriptor | None = descriptor
    shown = f"{what} {'.'.join(path)!r}"
    for name in path:
        if held is None:
            raise ValueError(f"{shown}: {fields[-1].name} holds no fields")
        found = find_field(held, name)
        if found is None:
            there = ", ".join(one.name for one in held.fields)
            raise ValueError(f"{shown} is no field of {held.full_name}; it has {there or 'none'}")
        if found.is_repeated:
            raise ValueError(f"{shown}: {found.name} is {'a map' if is_map(found) else 'repeated'}; take one value")
        fields.append(found)
        held = found.message_type
    if fields[-1].type not in (FieldDescriptor.TYPE_STRING,) and fields[-1].cpp_type not in _NUMBERS:
        raise ValueError(f"{shown} must be a string or a whole number")
    return tuple(fields)


def _location(reply: Descriptor, text: str) -> tuple[Template, tuple[Fields, ...]]:
    try:
        template = Template.parse(text)
    except ValueError as error:
        raise ValueError(f'location "{text}": {error}') from None
    covered = {n for one in template.variables for n in range(one.start, one.end or len(template.segments))}
    if any(segment in (STAR, STARS) and n not in covered for n, segment in enumerate(template.segments)):
        raise ValueError(f'location "{text}" has a {STAR} outside of a variable')
    return template, tuple(_fields(reply, one.path, "location") for one in template.variables)


def _value(message: Any, fields: Fields) -> str:
    """The text of a field; empty when it has none."""
    for one in fields:
        message = getattr(message, one.name)
    return str(message) if message else ""


def _expanded(reply: Any, template: Template, fields: tuple[Fields, ...]) -> str:
    parts = [quote(segment, safe="!$&'()*+,;=:@~") for segment in template.segments]
    for variable, path in reversed(list(zip(template.variables, fields, strict=True))):
        value = _value(reply, path)
        if not value:
            return ""
        parts[variable.start : variable.end] = [quote(value, safe="~" if variable.single else "/~")]
    verb = f":{quote(template.verb)}" if template.verb else ""
    return f"/{'/'.join(parts)}{verb}"
