"""What can be broken between processes: a TCP proxy that stops forwarding, and a Consul that says what is not so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web


class Blackhole:
    """A TCP proxy to one address. While `flow` is cleared nothing comes through, and nobody is told."""

    def __init__(self) -> None:
        self.flow = asyncio.Event()
        self.flow.set()
        self._server: asyncio.Server | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def listen(self, address: str) -> str:
        """Begin to forward to an address; gives the one to dial instead."""
        host, _, port = address.rpartition(":")

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._running.add(task)
            try:
                await self._join(reader, writer, host, int(port))
            except (OSError, asyncio.CancelledError):  # either side is gone, or the proxy is closed
                pass
            finally:
                self._running.discard(task)
                writer.close()

        self._server = await asyncio.start_server(accept, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        await self.flow.wait()
        peer_reader, peer_writer = await asyncio.open_connection(host, port)
        pumps = [
            asyncio.create_task(self._pump(reader, peer_writer)),
            asyncio.create_task(self._pump(peer_reader, writer)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            peer_writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self.flow.wait()
            writer.write(data)
            await writer.drain()
        await self.flow.wait()

    async def aclose(self) -> None:
        """Close every connection."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


@asynccontextmanager
async def blackhole() -> AsyncIterator[Blackhole]:
    """A proxy that is closed at the end."""
    proxy = Blackhole()
    try:
        yield proxy
    finally:
        await proxy.aclose()


class FalseConsul:
    """Before a real agent: passes on what is asked and answered, or does worse.

    Attributes:
        address: `host:port` to ask instead of the agent.
    """

    def __init__(self, agent: str) -> None:
        self.address = ""
        self._agent = agent
        self._mode = "pass"
        self._changed = asyncio.Event()
        self._session: aiohttp.ClientSession | None = None

    def turn(self, mode: str) -> None:
        """From now on, and for those who wait for an answer already:

        pass: pass on; down: break connections off; fail: 500; empty: nobody is there, except to `consistent` queries,
        as a server says that lags behind.
        """
        self._mode = mode
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[None]:
        """Be there while the block runs."""
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0, access_log=None)
        await runner.setup()
        async with aiohttp.ClientSession() as self._session:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.address = f"127.0.0.1:{runner.addresses[0][1]}"
            try:
                yield
            finally:
                await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if self._mode == "pass":
            passing = asyncio.create_task(self._pass(request))
            turning = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait((passing, turning), return_when=asyncio.FIRST_COMPLETED)
                if passing.done():
                    return passing.result()
            finally:
                passing.cancel()
                turning.cancel()
                await asyncio.gather(passing, turning, return_exceptions=True)
        if self._mode == "fail":
            return web.Response(status=500, text="No cluster leader")
        if self._mode == "empty":
            if "consistent" in request.query:
                return await self._pass(request)
            index = int(request.query.get("index", "1")) + 1
            return web.json_response([], headers={"X-Consul-Index": str(index)})
        assert request.transport is not None
        request.transport.abort()
        return web.Response()  # goes nowhere

    async def _pass(self, request: web.Request) -> web.Response:
        assert self._session is not None
        url = f"http://{self._agent}{request.path_qs}"
        async with self._session.request(request.method, url, data=await request.read()) as answer:
            headers = {name: value for name, value in answer.headers.items() if name.startswith("X-Consul")}
            return web.Response(
                status=answer.status, body=await answer.read(), headers=headers, content_type="application/json"
            )


@asynccontextmanager
async def false_consul(agent: str) -> AsyncIterator[FalseConsul]:
    """A proxy before an agent."""
    proxy = FalseConsul(agent)
    async with proxy.listen():
        yield proxy
