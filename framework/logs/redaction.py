"""What must not stand in a log is taken out: fields that a proto marks with `debug_redact`, credentials, secrets.

Messages are shown without what is marked when they are given to the log as they are, `log.info("got %s", request)`;
`f"{request}"` is text before anybody can look at it. In text, what looks like credentials is hidden.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from framework.parsing import Secret

HIDDEN = "[REDACTED]"

DEPTH = 8
"""Levels of lists and tables that are looked into."""

SECRET = re.compile(
    r"(?:^|[-_. ])(?:authorization|cookie|password|passwd|passphrase|secret|token|credentials?|api[-_]?key"
    r"|private[-_]?key)(?:$|[-_. ]bin$|[-_.]value$)",
    re.IGNORECASE,
)
"""Names of metadata, headers and fields of a line whose values are credentials."""

_CREDENTIALS = (
    re.compile(  # callers choose the text: nothing here may be tried again from many places, or be without an end
        r"(?<![^\W_])(?:"  # where a word begins, or a part of one
        r"(?P<scheme>(?:bearer|basic)\s{1,8})[\w.~+/=-]{6,}+"  # of an authorization header
        r"|(?<![\w-])eyJ[\w-]{5,}+\.[\w-]++\.[\w-]*+"  # a JSON web token
        r"|fwk_[a-z0-9-]{1,64}_[0-9a-f]{64}"  # an API key
        r"|(?P<name>(?:authorization|cookie|x-api-key|password)['\"]?\s{0,8}[,:=]\s{0,8})b?(?:'[^']*+'|\"[^\"]*+\")"
        r"|(?P<plain>(?:password|passwd|passphrase|secret|api[-_]?key|token)=)[^\s'\",;&)]++"
        r")|(?P<user>://[^/\s:@]*+:)[^/\s@]++(?=@)"  # the password in a URL
        r"|-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z ]{0,40}PRIVATE KEY-----|$)",
        re.IGNORECASE | re.DOTALL,
    )
)

LONGEST = 16384
"""Characters of a text that are looked at whole: looking takes 0.1 µs for each, while everybody waits. Of a longer one
its beginning and its end are shown."""

_EDGE = 4096
"""Characters at a cut that are looked at and not shown: no credential that is shorter is shown in part."""


def text(given: str) -> str:
    """Text without what looks like credentials; of a very long one the beginning and the end."""
    if len(given) <= LONGEST:
        return _CREDENTIALS.sub(_hide, given)
    begin = _CREDENTIALS.sub(_hide, given[: 3 * _EDGE])[:-_EDGE]
    end = _CREDENTIALS.sub(_hide, given[-2 * _EDGE :])[_EDGE:]
    return f"{begin} ... {len(given) - 3 * _EDGE} characters more ... {end}"


def _hide(match: re.Match[str]) -> str:
    return (match["scheme"] or match["user"] or match["name"] or match["plain"] or "") + HIDDEN


def value(given: Any, depth: int = DEPTH) -> Any:
    """A value without what is not to be logged; the same object when there is nothing to hide in it."""
    kind = type(given)
    if kind is str:
        return text(given)
    if kind is int or kind is float or kind is bool or given is None:
        return given
    if isinstance(given, Message):
        return message(given)
    if isinstance(given, Secret):
        return str(given)
    if isinstance(given, bytes):
        return f"<{len(given)} bytes>"
    if depth <= 0:
        return HIDDEN if isinstance(given, Mapping | list | tuple | set | frozenset) else given
    if isinstance(given, Mapping):
        return {key: HIDDEN if secret(key) else value(one, depth - 1) for key, one in given.items()}
    if isinstance(given, tuple) and len(given) == 2 and secret(given[0]):  # an entry of metadata
        return (given[0], HIDDEN)
    if isinstance(given, list | tuple | set | frozenset):
        return (
            [value(one, depth - 1) for one in given] if kind is list else tuple(value(one, depth - 1) for one in given)
        )
    return given


def secret(name: Any) -> bool:
    """Whether what has this name is a credential."""
    return isinstance(name, str) and SECRET.search(name) is not None


def message(given: Message) -> str:
    """A message as text in one line, without the fields that its proto marks with `debug_redact`."""
    if _hides(given.DESCRIPTOR):
        shown = type(given)()
        shown.CopyFrom(given)
        _clear(shown)
        given = shown
    return text_format.MessageToString(given, as_one_line=True)


def _clear(given: Message) -> None:
    """Take out what is marked. Text says that it was there; other values are as if they were not set."""
    if given.DESCRIPTOR.full_name == "google.protobuf.Any":
        given.ClearField("value")  # whatever it holds
        return
    for field, found in given.ListFields():
        if _marked(field):
            given.ClearField(field.name) if not field.is_extension else given.ClearExtension(field)  # type: ignore[arg-type]
            if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated and not field.is_extension:
                setattr(given, field.name, HIDDEN)
        elif field.message_type is not None and _hides(field.message_type):
            if field.message_type.GetOptions().map_entry:
                inner = list(found.values())
            else:
                inner = list(found) if field.is_repeated else [found]
            for one in inner:
                _clear(one)


@lru_cache(maxsize=4096)
def _hides(kind: Descriptor) -> bool:
    """Whether a message may hold something that is marked, however deep."""
    seen: set[str] = set()
    waiting = [kind]
    while waiting:
        one = waiting.pop()
        if one.full_name in seen:
            continue
        seen.add(one.full_name)
        if one.full_name == "google.protobuf.Any" or one.is_extendable:
            return True
        for field in one.fields:
            if _marked(field):
                return True
            if field.message_type is not None:
                waiting.append(field.message_type)
    return False


@lru_cache(maxsize=4096)
def _marked(field: FieldDescriptor) -> bool:
    """Whether a field is marked itself, or with a value of an enum that is."""
    options = field.GetOptions()
    if options.debug_redact:
        return True
    for option, said in options.ListFields():
        if option.enum_type is not None:
            for number in said if option.is_repeated else (said,):
                found = option.enum_type.values_by_number.get(number)
                if found is not None and found.GetOptions().debug_redact:
                    return True
    return False
