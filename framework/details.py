"""google.rpc details of an error, to and from the trailing metadata `grpc-status-details-bin`.

Source: https://github.com/googleapis/googleapis/blob/master/google/rpc/status.proto
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from google.protobuf import any_pb2, symbol_database
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from framework.errors import RpcError

KEY = "grpc-status-details-bin"

ORIGIN = "framework-origin"
"""Trailer that our server puts beside every failure, so that a client can tell it from one that grpc made itself."""

_symbols = symbol_database.Default()
_known = {
    descriptor.full_name: getattr(error_details_pb2, name)
    for name, descriptor in error_details_pb2.DESCRIPTOR.message_types_by_name.items()
}


def pack(error: RpcError) -> bytes:
    """The bytes of `google.rpc.Status` for an error with details."""
    status = status_pb2.Status(code=error.code.value, message=error.message)
    for detail in error.details:
        if isinstance(detail, any_pb2.Any):
            status.details.append(detail)
        else:
            status.details.add().Pack(detail)
    return status.SerializeToString()


def unpack(raw: bytes) -> Sequence[Message]:
    """The details in `google.rpc.Status` bytes; one of a type unknown here stays an `Any`, broken bytes give none."""
    try:
        return tuple(_resolve(packed) for packed in status_pb2.Status.FromString(raw).details)
    except DecodeError:
        return ()


def _resolve(packed: any_pb2.Any) -> Message:
    name = packed.type_url.rpartition("/")[2]
    kind: Any = _known.get(name)
    try:
        if kind is None:
            kind = _symbols.GetSymbol(name)
        message: Message = kind.FromString(packed.value)
    except (KeyError, DecodeError):
        return packed
    return message


def from_metadata(metadata: Iterable[tuple[str, str | bytes]]) -> Sequence[Message]:
    """The details that trailing metadata carries."""
    for key, value in metadata:
        if key == KEY and isinstance(value, bytes):
            return unpack(value)
    return ()
