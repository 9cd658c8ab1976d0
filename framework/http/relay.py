"""Calls that are passed on as bytes: JSON becomes protobuf and back, and no message is made in between.

That is for a gateway, which looks into few messages, and it is not for every method. A message that can hold itself,
or anything, may be nested deeper than the peer reads; one with required fields may lack them; and where a rule takes a
message apart there has to be one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from google.protobuf.descriptor import Descriptor

from framework.call import Method
from framework.codec import encoder
from framework.http.rules import Rule

_OPAQUE = frozenset(("google.api.HttpBody", "google.protobuf.Any"))


def relayed(method: Method[Any, Any], rules: Iterable[Rule]) -> Method[Any, Any] | None:
    """The method with replies that are bytes, and requests that may be; None when it has to have messages."""
    if method.client_streaming or any(rule.response_body or rule.success is not None for rule in rules):
        return None
    if not _simple(method.request.DESCRIPTOR) or not _simple(method.reply.DESCRIPTOR):
        return None
    encode = encoder(method.request, method.full_name)
    return replace(method, encode=lambda request: request if type(request) is bytes else encode(request), decode=unread)


def unread(raw: bytes) -> bytes:
    """A reply as it came."""
    return raw


def is_relayed(method: Method[Any, Any]) -> bool:
    """Its replies are bytes, and its requests may be."""
    return method.decode is unread


def _simple(message: Descriptor) -> bool:
    """All that it may hold is known, and no more than so deep."""
    done: set[str] = set()
    above: set[str] = set()

    def simple(one: Descriptor) -> bool:
        name = one.full_name
        if name in above or name in _OPAQUE or one.is_extendable:
            return False
        if name not in done:
            above.add(name)
            for field in one.fields:
                if field.is_required or (field.message_type is not None and not simple(field.message_type)):
                    return False
            above.remove(name)
            done.add(name)
        return True

    return simple(message)
