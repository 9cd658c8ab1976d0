"""One service over gRPC and over HTTP, in one process: what handlers and interceptors see is the same."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from framework import Context, InvalidArgument, NotFound, RpcError, Service, connect
from framework.call import Call, Handler, Method, Reply, current
from framework.client.stub import StreamReply, UnaryReply
from framework.config import Drain, ServerSettings, Settings
from framework.errors import Code
from framework.http.methods import services_in
from framework.options import method_of
from framework.server.server import Server
from framework.web import WebSettings
from tests.gateway.lab import AT_ONCE, SHOP, Shop, pool, until

(DESCRIPTOR,) = services_in(pool(SHOP), ["lab.Shop"])
METHODS = {one.name: method_of(one) for one in DESCRIPTOR.methods}
Thing: Any = METHODS["Get"].request
PATHS = {"Get": "/v1/things/{}", "Watch": "/v1/things/{}:watch"}


class Odd(Exception):
    """Of the service's own."""


class Handlers(Shop):
    """Does what a thing is named."""

    def __init__(self) -> None:
        super().__init__()
        self.context: dict[str, Any] = {}

    async def _do(self, request: Any, context: Context) -> Any:
        serving = current.get()
        assert serving is not None
        self.context = {
            "peer": re.sub(r"\d+$", "PORT", context.peer()),
            "request_id": serving.request_id,
            "own": [value for key, value in context.invocation_metadata() if key == "x-own"],
            "deadline": (context.time_remaining() or 0) > 0,
            "current": serving is context.call,
        }
        match request.name:
            case "missing":
                raise NotFound("no such thing", metadata=(("x-why", "fire"),))
            case "odd":
                raise Odd("odd")
            case "bug":
                raise ZeroDivisionError("secret")
            case "abort":
                await context.abort(Code.ABORTED, "given up")
            case "status":
                context.set_code(Code.DATA_LOSS)
                context.set_details("worn out")
            case "other":
                await UnaryReply(_refusing, METHODS["Get"], Thing())
            case "group":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._fail())
            case "wrong type":
                return "text"
            case "slow":
                self.entered.set()
                try:
                    await self.go_on.wait()
                finally:
                    self.cancelled.set()
        return request

    async def _fail(self) -> None:
        raise InvalidArgument("in a group")

    async def Get(self, request: Any, context: Context) -> Any:
        return await self._do(request, context)

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield Thing(name="first")
        yield await self._do(request, context)


async def _refusing(call: Call) -> Reply:
    raise NotFound("nobody", method="a.B/C", remote=True)


@dataclass
class Seen:
    """What an interceptor saw."""

    calls: list[tuple[str, str, Code]] = field(default_factory=list)
    open: int = 0
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, method: Method[Any, Any], next: Handler) -> Handler:
        async def handler(call: Call) -> Reply:
            self.open += 1

            def end(outcome: Any) -> None:
                self.open -= 1
                error = type(outcome.error).__name__
                self.calls.append((method.name, error, outcome.code))
                self.ended.set()

            call.on_end(end)
            return await next(call)

        return handler


class Both:
    """A service, and clients of both protocols."""

    def __init__(self, handlers: Handlers, seen: Seen, server: Server, channel: Any, http: httpx.AsyncClient) -> None:
        self.handlers, self.seen, self.server = handlers, seen, server
        self.channel, self.http = channel, http

    async def grpc(self, name: str, thing: str, timeout: float | None = None, **metadata: str) -> tuple[Code, str]:
        method = METHODS[name]
        pairs = tuple((key.replace("_", "-"), value) for key, value in metadata.items())
        request = Thing(name=thing)
        try:
            if method.server_streaming:
                async for _ in StreamReply(self.channel.bind(method), method, request, timeout, pairs):
                    pass
            else:
                await UnaryReply(self.channel.bind(method), method, request, timeout, pairs)
        except RpcError as error:
            return error.code, error.message
        return Code.OK, ""

    async def json(self, name: str, thing: str, timeout: float | None = None, **metadata: str) -> tuple[Code, str]:
        headers = {key.replace("_", "-"): value for key, value in metadata.items()}
        if timeout is not None:
            headers["x-server-timeout"] = str(timeout)
        response = await self.http.get(PATHS[name].format(thing), headers=headers)
        told = response.json() if response.status_code != 200 else {}
        if not told and name == "Watch":
            told = httpx.Response(200, content=response.content.splitlines()[-1]).json().get("error", {})
        return Code(told.get("code", 0)), told.get("message", "")


@asynccontextmanager
async def both(drain: Drain = AT_ONCE, **settings: Any) -> AsyncIterator[Both]:
    handlers, seen = Handlers(), Seen()
    service = Service("shop", servicers=[handlers], interceptors=[seen], errors={Odd: InvalidArgument})
    http = WebSettings(port=0, **settings)
    async with (
        service.running(Settings(registry="none", server=ServerSettings(drain=drain, http=http))) as server,
        connect(server.address, settings=Settings()) as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{server.http_port}", timeout=10) as client,
    ):
        yield Both(handlers, seen, server, channel, client)


ASKS: list[Callable[[Both], Any]] = [lambda one: one.grpc, lambda one: one.json]


@pytest.mark.parametrize("name", ["Get", "Watch"])
@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        ("fine", (Code.OK, "")),
        ("missing", (Code.NOT_FOUND, "no such thing")),
        ("odd", (Code.INVALID_ARGUMENT, "odd")),
        ("bug", (Code.INTERNAL, "internal error ID; its cause stands in the log of the server")),
        ("abort", (Code.ABORTED, "given up")),
        ("status", (Code.DATA_LOSS, "worn out")),
        ("other", (Code.INTERNAL, "internal error ID; its cause stands in the log of the server")),
        ("group", (Code.INVALID_ARGUMENT, "in a group")),
        ("wrong type", (Code.INTERNAL, "internal error ID; its cause stands in the log of the server")),
    ],
)
async def test_how_calls_end(name: str, thing: str, expected: tuple[Code, str]) -> None:
    """The caller is told the same, the interceptors see the same, and nothing is left in flight."""
    async with both() as shop:
        told, seen, contexts = [], [], []
        for ask in ASKS:
            code, message = await ask(shop)(name, thing, 5.0, x_own="mine", x_request_id="r1")
            told.append((code, re.sub("error [0-9a-f]{8}", "error ID", message)))
            seen.append(shop.seen.calls.pop())
            contexts.append(shop.handlers.context)
            assert (shop.seen.open, shop.server.pipeline.calls) == (0, set())
        assert told == [expected, expected]
        assert seen[0] == seen[1]
        assert contexts[0] == contexts[1]
        assert contexts[1] == {
            "peer": "ipv4:127.0.0.1:PORT",
            "request_id": "r1",
            "own": ["mine"],
            "deadline": True,
            "current": True,
        }


@pytest.mark.parametrize("name", ["Get", "Watch"])
async def test_a_deadline(name: str) -> None:
    """The handler is cancelled, and everybody agrees that it was the deadline."""
    async with both() as shop:
        for ask in ASKS:
            shop.seen.ended.clear()
            shop.handlers.cancelled.clear()
            code, _ = await ask(shop)(name, "slow", 0.2)
            assert code is Code.DEADLINE_EXCEEDED
            async with asyncio.timeout(5):
                await shop.handlers.cancelled.wait()
                await shop.seen.ended.wait()
            assert shop.seen.calls.pop()[2] is Code.DEADLINE_EXCEEDED
            assert shop.server.pipeline.calls == set()


@pytest.mark.parametrize("name", ["Get", "Watch"])
async def test_a_caller_that_goes(name: str) -> None:
    """The handler is cancelled, and the interceptors see CANCELLED."""
    async with both() as shop:
        for ask in ASKS:
            shop.seen.ended.clear()
            shop.handlers.entered.clear()
            shop.handlers.cancelled.clear()
            calling = asyncio.create_task(ask(shop)(name, "slow"))
            async with asyncio.timeout(5):
                await shop.handlers.entered.wait()
                assert len(shop.server.pipeline.calls) == 1
                calling.cancel()
                await shop.handlers.cancelled.wait()
                await shop.seen.ended.wait()
            assert shop.seen.calls.pop()[2] is Code.CANCELLED
            assert shop.server.pipeline.calls == set()


async def test_one_drain() -> None:
    """Both protocols stop together: not ready, streams told, calls finished."""
    drain = Drain(delay=0.2, grace=20.0, streams=0.2)
    answers: list[Any] = []
    async with httpx.AsyncClient(timeout=10) as client:
        async with both(drain) as shop:
            base = f"http://127.0.0.1:{shop.server.http_port}"
            assert (await client.get(f"{base}/readyz")).status_code == 200
            slow = asyncio.create_task(client.get(f"{base}/v1/things/slow"))
            await shop.handlers.entered.wait()
            shop.handlers.entered.clear()
            stream = asyncio.create_task(client.get(f"{base}/v1/things/slow:watch"))
            await shop.handlers.entered.wait()

            async def watch() -> None:
                response = await until(client, f"GET {base}/readyz", 503)
                answers.append(response.json())
                answers.append((await client.get(f"{base}/v1/things/fine")).status_code)
                answers.append((await stream).text.splitlines()[-1])
                shop.handlers.go_on.set()

            watching = asyncio.create_task(watch())
        await watching
        assert answers[0] == {"status": "NOT_SERVING", "reason": f"{shop.server.address} does not serve"}
        assert answers[1] == 200
        assert '"error":{"code":14,' in answers[2]
        assert (await slow).status_code == 200


async def test_limits_hold_here_too() -> None:
    """Settings of HTTP are those of `[server.http]`."""
    from framework.web import CorsSettings, RateSettings

    async with both(
        rate_limits={"lab.Shop": RateSettings(rate=0.01)}, cors=CorsSettings(origins=("https://a.example",))
    ) as shop:
        first = await shop.http.get("/v1/things/fine", headers={"origin": "https://a.example"})
        assert (first.status_code, first.headers["access-control-allow-origin"]) == (200, "https://a.example")
        assert (await shop.http.get("/v1/things/fine")).status_code == 429
        assert (await shop.grpc("Get", "fine"))[0] is Code.OK


async def test_docs_say_where_grpc_is() -> None:
    """The page beside a service can tell what to dial."""
    async with both() as service:
        document = (await service.http.get("/openapi.json")).json()
        assert (document["x-grpc-target"], document["x-grpc-tls"]) == (service.server.address, False)


async def test_rules_that_nobody_serves(caplog: pytest.LogCaptureFixture) -> None:
    """Without HTTP a service starts whatever its rules are, and says which could not be served."""
    broken = SHOP.replace("{name}:watch", "{nam}:watch")
    service = Service("shop", servicers=[Shop(broken)], settings=Settings(registry="none"))
    async with service.running():
        pass
    [line] = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert line.startswith("lab.Shop/Watch: get \"/v1/things/{nam}:watch\": variable 'nam' is no field of lab.Thing")
    assert line.endswith(". HTTP cannot be served with this, neither here nor by a gateway")


async def test_a_port_that_is_taken() -> None:
    """The message says which, and what to change."""
    from framework.errors import ConfigError

    async with both() as shop:
        http = WebSettings(port=shop.server.http_port)
        second = Service("shop", servicers=[Handlers()])
        with pytest.raises(ConfigError, match=rf"port {http.port} on 127.0.0.1 is in use.* Choose another with --http"):
            async with second.running(Settings(registry="none", server=ServerSettings(http=http))):
                pass
