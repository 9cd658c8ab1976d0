"""Failures as HTTP: status codes, and `google.rpc.Status` as JSON."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from google.protobuf import any_pb2, descriptor_pool, json_format
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2

from framework.errors import Code, RpcError

HTTP_STATUS: Mapping[int, int] = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
"""google/rpc/code.proto."""

Headers = list[tuple[bytes, bytes]]


class HttpError(Exception):
    """A request that is answered before it becomes a call.

    Attributes:
        status: the HTTP status.
        error: what is wrong, as an error of a call.
        headers: to answer with.
    """

    def __init__(self, status: int, error: RpcError, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__(status, error)
        self.status = status
        self.error = error
        self.headers = tuple(headers)


class Details:
    """Shows the details of errors as JSON.

    Args:
        pools: where types are looked up, beside the default pool.
    """

    def __init__(self, pools: Iterable[Any]) -> None:
        self._pools = (*dict.fromkeys(pools), descriptor_pool.Default())

    def status(self, code: int, message: str, details: Sequence[Any] = ()) -> dict[str, Any]:
        """`google.rpc.Status` of an error."""
        shown: dict[str, Any] = {"code": int(code), "message": message}
        if details:
            shown["details"] = [self.shown(packed(detail)) for detail in details]
        return shown

    def shown(self, detail: any_pb2.Any) -> dict[str, Any]:
        """An Any as ProtoJSON; one that nobody here knows keeps its bytes, in base64."""
        for pool in self._pools:
            try:
                shown: dict[str, Any] = json_format.MessageToDict(detail, descriptor_pool=pool)
            except (json_format.Error, TypeError, ValueError, KeyError, DecodeError):
                continue
            return shown
        return {"@type": detail.type_url, "value": base64.b64encode(detail.value).decode()}


def packed(detail: Any) -> any_pb2.Any:
    """A detail as an Any."""
    if isinstance(detail, any_pb2.Any):
        return detail
    holder = any_pb2.Any()
    holder.Pack(detail)
    return holder


def text(shown: Any) -> bytes:
    """JSON on one line."""
    return json.dumps(shown, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


PUSHBACK = "grpc-retry-pushback-ms"


def retry_after(error: RpcError) -> Headers:
    """The header Retry-After of an error that says when to come back, in its details or to gRPC."""
    for detail in error.details:
        if isinstance(detail, error_details_pb2.RetryInfo) and detail.HasField("retry_delay"):
            delay = detail.retry_delay
            return [(b"retry-after", b"%d" % max(0, delay.seconds + (delay.nanos > 0)))]
    for key, value in error.metadata:
        if key == PUSHBACK and isinstance(value, str) and value.isdigit():
            return [(b"retry-after", b"%d" % -(-int(value) // 1000))]
    return []


def challenge(error: RpcError) -> Headers:
    """The header WWW-Authenticate of an error that says how to prove who one is."""
    return [
        (key.encode(), value.encode("latin-1", "replace"))
        for key, value in error.metadata
        if key == "www-authenticate" and isinstance(value, str)
    ]
