"""grpc.health.v1: the status of the server and of each of its services, as an ordinary servicer.

Source: https://github.com/grpc/grpc/blob/master/doc/health-checking.md
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

from grpc_health.v1 import health_pb2 as _health_pb2

from framework.call import Method
from framework.errors import NotFound
from framework.server.context import Context
from framework.server.servicer import Servicer

health_pb2: Any = _health_pb2  # its stubs do not know List yet
_SERVICE = "grpc.health.v1.Health"
_Request = _health_pb2.HealthCheckRequest
_Response = _health_pb2.HealthCheckResponse

SERVING = _Response.SERVING
NOT_SERVING = _Response.NOT_SERVING


class Health(Servicer):
    """Health of a server. The empty name is the server as a whole."""

    __methods__ = (
        Method(_SERVICE, "Check", _Request, _Response),
        Method(_SERVICE, "List", health_pb2.HealthListRequest, health_pb2.HealthListResponse),
        Method(_SERVICE, "Watch", _Request, _Response, server_streaming=True),
    )

    def __init__(self, services: Iterable[str]) -> None:
        self._status = dict.fromkeys(("", *services), NOT_SERVING)
        self._changed = asyncio.Event()
        self._down = False

    def set(self, service: str, status: int) -> None:
        """Set the status of one service; without effect once the server shuts down."""
        if not self._down:
            self._publish({service: status})

    @property
    def is_serving(self) -> bool:
        """The server as a whole is SERVING."""
        status: int = self._status[""]
        return status == SERVING

    def serving(self) -> None:
        """Everything is SERVING."""
        if not self._down:
            self._publish(dict.fromkeys(self._status, SERVING))

    def shut_down(self) -> None:
        """Everything is NOT_SERVING, for good."""
        if not self._down:
            self._publish(dict.fromkeys(self._status, NOT_SERVING))
            self._down = True

    def _publish(self, statuses: dict[str, int]) -> None:
        self._status.update(statuses)  # type: ignore[arg-type]  # the enum's numbers are ints
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def Check(self, request: _Request, context: Context, /) -> _Response:
        status = self._status.get(request.service)
        if status is None:
            raise NotFound(f"this server has no service {request.service!r}")
        return _Response(status=status)

    async def List(self, request: Any, context: Context, /) -> Any:
        return health_pb2.HealthListResponse(
            statuses={name: _Response(status=status) for name, status in self._status.items()}
        )

    async def Watch(self, request: _Request, context: Context, /) -> AsyncIterator[_Response]:
        last = None
        while True:
            changed = self._changed
            status = self._status.get(request.service, _Response.SERVICE_UNKNOWN)
            if status != last:
                last = status
                yield _Response(status=status)
            else:
                await changed.wait()
