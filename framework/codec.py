"""Messages to bytes and back, with errors that say which message it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf.message import DecodeError

from framework.errors import Internal


def encoder(kind: Any, method: str) -> Callable[[Any], bytes]:
    """Bytes of messages of one class; anything else is a TypeError that names the method and both classes."""
    serialize = kind.SerializeToString

    def encode(message: Any) -> bytes:
        if type(message) is not kind:
            raise TypeError(f"{method} takes {kind.__name__} here, not {type(message).__name__}")
        encoded: bytes = serialize(message)
        return encoded

    return encode


def decoder(kind: Any, method: str) -> Callable[[bytes], Any]:
    """Messages of one class from bytes; bytes that are none raise Internal, as the specification of gRPC says."""
    parse = kind.FromString

    def decode(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError as error:
            raise Internal(f"{method}: these bytes are no {kind.DESCRIPTOR.full_name}: {error}") from None

    return decode
