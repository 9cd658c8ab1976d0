"""What gRPC can send as metadata, checked where it is set, so that a mistake is told by name and not by the wire.

And what a server takes, whatever lets every byte through below it: line ends in a log or in a header that is passed on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from framework.call import Metadata
from framework.errors import InvalidArgument, ResourceExhausted, RpcError

PAIR = 32
"""Bytes that a pair of metadata counts beside its key and value. Source: RFC 9113, section 6.5.2."""

_KEY = re.compile(r"[0-9a-z_.-]+")
_VALUE = re.compile(r"[ -~]*")
_PUSHBACK = "grpc-retry-pushback-ms"  # what a server may say of its own; gRFC A6


def pairs(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """Metadata as it can be sent, keys in lower case.

    Raises:
        TypeError, ValueError: something that gRPC cannot send; the message names the key.
    """
    if isinstance(metadata, Mapping):
        raise TypeError('metadata is pairs, not a mapping: (("key", "value"), ...)')
    checked = []
    given: Iterable[Any] = metadata
    for pair in given:
        if not (isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str)):
            raise TypeError(f"metadata is pairs of key and value, and {pair!r} is none")
        key, value = pair[0].lower(), pair[1]
        if not _KEY.fullmatch(key) or (key.startswith("grpc-") and key != _PUSHBACK):
            raise ValueError(f"{pair[0]!r} cannot be a metadata key: letters, digits, '_', '-', '.', and no 'grpc-'")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise TypeError(f"metadata {key} ends in -bin, so its value must be bytes")
        elif not isinstance(value, str):
            raise TypeError(f"metadata {key} must be text; a key of bytes ends in -bin")
        elif not _VALUE.fullmatch(value):
            raise ValueError(f"metadata {key} must be printable ASCII; send other text as bytes, under {key}-bin")
        checked.append((key, value))
    return tuple(checked)


def unwelcome(metadata: Iterable[tuple[str, str | bytes]], most: int) -> RpcError | None:
    """Why a server does not take the metadata of a call; None when it does.

    Args:
        most: bytes that it may have.
    """
    size = 0
    for key, value in metadata:
        size += len(key) + len(value) + PAIR
        if value.__class__ is str and not (value.isascii() and value.isprintable()):
            return InvalidArgument(f"metadata {key} is not printable ASCII")
    if size > most:
        return ResourceExhausted(f"the metadata has {size} bytes, the server takes up to {most} (`limits.metadata`)")
    return None
