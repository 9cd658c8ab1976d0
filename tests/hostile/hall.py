"""What is attacked: one service over gRPC and, beside it, HTTP; and what must hold whatever is sent to it."""

from __future__ import annotations

import asyncio
import gc
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import httpx
from google.protobuf import message_factory

from framework import Context, Service, Settings
from framework.config import Drain, ServerSettings
from framework.http.methods import services_in
from framework.options import method_of
from framework.server.server import Server
from framework.server.servicer import Servicer
from tests.hostile.frames import Answer, Frames, frames, message
from tests.http.lab import compile_text

PROTO = """
syntax = "proto3";
package hall;
import "buf/validate/validate.proto";
import "google/api/annotations.proto";
import "google/protobuf/any.proto";
import "google/protobuf/struct.proto";

service Hall {
  rpc Echo(Thing) returns (Thing) {
    option (google.api.http) = {
      post: "/v1/things" body: "*"
      additional_bindings { get: "/v1/things/{text}" }
      additional_bindings { get: "/v1/trees/{text=**}" }
    };
  }
  rpc Count(Thing) returns (stream Thing) { option (google.api.http) = { get: "/v1/count" }; }
  rpc Sum(stream Thing) returns (Thing) { option (google.api.http) = { post: "/v1/sum" body: "*" }; }
  rpc Talk(stream Thing) returns (stream Thing) { option (google.api.http) = { post: "/v1/talk" body: "*" }; }
}

message Thing {
  string text = 1;
  int32 number = 2;
  int64 large = 3;
  double ratio = 4;
  bytes raw = 5;
  map<string, string> labels = 6;
  repeated Thing parts = 7;
  google.protobuf.Any any = 8;
  google.protobuf.Value value = 9;
  repeated int32 numbers = 10;
  string short = 11 [(buf.validate.field).string.max_len = 10];
  Color color = 12;
}

enum Color { GREY = 0; RED = 1; }
"""
AT_ONCE = Drain(delay=0.0, grace=0.5, streams=0.2)
SECRET = "hunter2-do-not-tell"
"""What the service knows and nobody may be told."""

INTERNALS = re.compile(
    r"Traceback|\.py\b|site-packages|0x[0-9a-f]{6,}|hunter2|ZeroDivision|<class|object at|/framework"
)
"""What would tell a caller how this is made."""

ROOM = 96 << 20
"""Bytes that the process may grow by while something is refused: client and server are both in it."""


@cache
def pool() -> Any:
    """The pool of the proto."""
    return compile_text(PROTO)


@cache
def thing() -> Any:
    """The message class."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName("hall.Thing"))


class Hall(Servicer):
    """Answers with what it was asked."""

    __methods__ = tuple(method_of(one) for one in services_in(pool(), ["hall.Hall"])[0].methods)

    def __init__(self) -> None:
        self.secret = SECRET
        self.forget()

    def forget(self) -> None:
        """Nobody has called."""
        self.calls = 0
        self.metadata: tuple[tuple[str, str | bytes], ...] = ()
        self.ids: list[str] = []

    async def Echo(self, request: Any, context: Context) -> Any:
        self.calls += 1
        self.metadata = context.invocation_metadata()
        self.ids.append(context.request_id)
        if request.text == "bug":
            raise ZeroDivisionError(f"{self.secret}\nTraceback")
        if request.text == "hang":
            await asyncio.Event().wait()
        return request

    async def Count(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.calls += 1
        for number in range(request.number):
            yield thing()(number=number)
        if request.text == "hang":
            await asyncio.Event().wait()

    async def Sum(self, requests: Any, context: Context) -> Any:
        self.calls += 1
        total = thing()()
        async for request in requests:
            total.number += 1
            total.large += len(request.text)
        return total

    async def Talk(self, requests: Any, context: Context) -> AsyncIterator[Any]:
        self.calls += 1
        async for request in requests:
            yield request


class Attacked:
    """The service while it is attacked.

    Attributes:
        servicer: what it does.
        server: of gRPC.
        http: a client of the HTTP beside it.
        shown: what an honest caller shows.
    """

    def __init__(self, servicer: Hall, server: Server, http: httpx.AsyncClient) -> None:
        self.servicer = servicer
        self.server = server
        self.http = http
        self.shown: tuple[tuple[str, str], ...] = ()

    @property
    def port(self) -> int:
        """Of gRPC."""
        return self.server.port

    @property
    def http_port(self) -> int:
        return self.server.http_port

    async def idle(self) -> None:
        """Nothing is in flight; raises TimeoutError when that does not come true."""
        limiter = self.server.pipeline.limiter
        await until(lambda: not self.server.pipeline.calls and (limiter is None or not limiter.in_flight))

    @asynccontextmanager
    async def unharmed(self, room: int = ROOM) -> AsyncIterator[None]:
        """After the block nothing is in flight, the process has not grown, and others are served."""
        self.servicer.forget()
        gc.collect()
        before = _reset_peak()
        yield
        await self.idle()
        grown = _peak() - before
        assert grown < room, f"it took {grown >> 20} MB more"
        await self.well()

    async def well(self) -> None:
        """It serves somebody else, over both."""
        async with frames(self.port) as connection:
            answer = await connection.call(
                "/hall.Hall/Echo", message(thing()(text="well").SerializeToString()), self.shown
            )
            assert answer.status == 0
        assert (await self.http.get("/v1/things/well", headers=dict(self.shown))).json() == {"text": "well"}


@asynccontextmanager
async def attacked(*, room: int = ROOM, whole: Settings | None = None, **server: Any) -> AsyncIterator[Attacked]:
    """Serve with these settings of the server, and others; at the end it is well, idle, and no larger than before."""
    settings = ServerSettings.parse({"http": {"port": 0}, **server}, "server")
    object.__setattr__(settings, "drain", AT_ONCE)
    servicer = Hall()
    service = Service(
        "hall", servicers=[servicer], settings=replace(whole or Settings(), registry="none", server=settings)
    )
    async with (
        service.running() as running,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.http_port}", timeout=5) as http,
    ):
        one = Attacked(servicer, running, http)
        async with one.unharmed(room):
            yield one


def _memory(name: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))


def _reset_peak() -> int:
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    return _memory("VmRSS")


def _peak() -> int:
    return _memory("VmHWM")


async def until(condition: Callable[[], Any]) -> None:
    """Return once the condition holds, which it is about to; what is waited for happens in grpc's threads."""
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  # as said
            await asyncio.sleep(0.005)


def told_nothing(*shown: str) -> None:
    """None of this tells how the server is made."""
    for one in shown:
        assert not INTERNALS.search(one), one


__all__ = ["Answer", "Attacked", "Frames", "attacked", "frames", "message", "thing", "told_nothing", "until"]
