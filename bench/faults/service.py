"""The service of the lab: one method that may be called twice, and one that may not."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from framework.call import Idempotency, Method

SERVICE = "faults.Worker"
GET = Method(SERVICE, "Get", BytesValue, StringValue, idempotency=Idempotency.IDEMPOTENT)
PUT = Method(SERVICE, "Put", BytesValue, StringValue)
METHODS = {"Get": GET, "Put": PUT}

PADDING = b"\n" + b"x" * 100
HANG = "hang"
"""The id of a request begins so when it is to be answered much too late."""

DEADLINE = 1.0
"""Seconds that every call has."""

RETRY_POLICY = {
    "maxAttempts": 3,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "INTERNAL"],
}


def request(id: str, size: int = 0) -> BytesValue:
    """A request with an id of its own, and at least so many bytes."""
    return BytesValue(value=id.encode() + PADDING + bytes(size))


def id_of(request: Any) -> str:
    """The id of a request."""
    value: bytes = request.value
    return value[: value.index(b"\n")].decode()


def rival_config() -> str:
    """The service config that a careful user of bare grpc.aio writes: only what is idempotent is retried."""
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": [{"service": SERVICE, "method": "Get"}], "retryPolicy": RETRY_POLICY}],
        }
    )
