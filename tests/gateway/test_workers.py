"""A gateway of several processes, behind which a service runs in this one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.gateway.lab import Shop, Town, eventually
from tests.workers.supervised import Supervised, supervised, write

APP = """\
import os

from framework.gateway import Gateway


def named(method, next):
    def handler(call):
        call.metadata = (*call.metadata, ("x-worker", str(os.getpid())))
        return next(call)

    return handler


Gateway(interceptors=[named]).run()
"""

SERVICE = """\
from tests.gateway.lab import Shop
from tests.gateway.lab import service as described

service = described("echo", Shop())
"""


class Fleet:
    """The gateway's processes, and the service behind them, which is told who called."""

    def __init__(self, processes: Supervised, shop: Shop) -> None:
        self.processes = processes
        self.shop = shop
        self.url = f"http://127.0.0.1:{processes.port}"

    async def ask(self, client: httpx.AsyncClient | None = None) -> int:
        """One call, on a connection of its own without a client; the process id of the worker that passed it on."""
        if client is None:
            async with httpx.AsyncClient(base_url=self.url, timeout=10) as fresh:
                return await self.ask(fresh)
        answer = await client.get("/v1/things/ball")
        assert (answer.status_code, answer.text) == (200, '{"name":"ball","number":7}')
        return int(self.shop.metadata["x-worker"])

    async def answering(self, *pids: int) -> None:
        """Wait until exactly these have answered one after another."""
        found: set[int] = set()

        async def asked() -> bool:
            found.add(await self.ask())
            return found == set(pids)

        await eventually(asked)


class Connection:
    """A client's only one.

    Attributes:
        told: the last answer said that it ends.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.told = False

    async def ask(self) -> None:
        """One call, unless it has ended."""
        if not self.told:
            self.writer.write(b"GET /v1/things/ball HTTP/1.1\r\nhost: shop\r\n\r\n")
            head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)
            assert head.startswith(b"HTTP/1.1 200 ")
            assert await self.reader.readuntil(b"}") == b'{"name":"ball","number":7}'
            self.told = b"connection: close" in head


@asynccontextmanager
async def fleet(town: Town, folder: Path, **variables: Any) -> AsyncIterator[Fleet]:
    """Two workers that know the shop."""
    shop, _ = await town.add("shop")
    (folder / "framework_app.py").write_text(APP)
    given = {"FRAMEWORK_GATEWAY_WORKERS": 2, "FRAMEWORK_GATEWAY_PORT": 0, "FRAMEWORK_GATEWAY_REFRESH": "50ms"}
    async with supervised(folder, command=("framework_app.py",), **given, **variables) as processes:
        await processes.serves()
        yield Fleet(processes, shop)
        if processes.process.returncode is None:
            assert await processes.ended(signal.SIGTERM) == 0


async def test_workers_share_the_port(town: Town, tmp_path: Path) -> None:
    """Each of them knows what is registered before it listens, and none of their calls is answered with 404."""
    async with fleet(town, tmp_path) as gateway:
        await gateway.answering(*gateway.processes.workers)
        assert len(gateway.processes.workers) == 2


async def test_a_worker_that_dies(town: Town, tmp_path: Path) -> None:
    """Another takes its place, and the one that is left serves until then."""
    async with fleet(town, tmp_path) as gateway:
        first, second = gateway.processes.workers
        os.kill(first, signal.SIGKILL)
        await gateway.processes.until(r"was killed by SIGKILL; another one starts")
        assert second == await gateway.ask()
        await gateway.processes.until(r"\(pid \d+\) serves")
        await gateway.answering(second, gateway.processes.workers[-1])


async def test_reload_under_load(town: Town, tmp_path: Path) -> None:
    """SIGHUP puts new processes into all places, and no call is lost, on old connections or new ones."""
    async with fleet(town, tmp_path) as gateway:
        old = gateway.processes.workers
        done = asyncio.Event()

        async def load(*, keep: bool) -> int:
            count = 0
            async with httpx.AsyncClient(base_url=gateway.url, timeout=10) as client:
                while not done.is_set():
                    answer = await (client.get("/v1/things/ball") if keep else _fresh(gateway.url, "/v1/things/ball"))
                    assert answer.status_code == 200
                    assert "SERVING" in (await client.get("/readyz")).text
                    count += 1
            return count

        callers = [asyncio.create_task(load(keep=keep)) for keep in (True, True, False)]
        os.kill(gateway.processes.pid, signal.SIGHUP)
        await gateway.processes.until("has reloaded: 2 workers")
        done.set()
        counts = await asyncio.gather(*callers)
        assert all(count > 3 for count in counts)
        new = [pid for pid in gateway.processes.workers if pid not in old]
        await gateway.answering(*new)


async def test_drain_of_all_workers(town: Town, tmp_path: Path) -> None:
    """SIGTERM makes all of them unready at once; a stream is told, a call in flight ends, and the exit code is 0."""
    variables = {"FRAMEWORK_SERVER_DRAIN_DELAY": "4s", "FRAMEWORK_SERVER_DRAIN_STREAMS": "100ms"}
    async with fleet(town, tmp_path, **variables) as gateway, httpx.AsyncClient(base_url=gateway.url) as client:
        slow = asyncio.create_task(client.get("/v1/things/slow", timeout=10))
        await gateway.shop.entered.wait()
        gateway.shop.entered.clear()
        events = {"accept": "text/event-stream"}
        async with client.stream("GET", "/v1/things/ball:watch", headers=events, timeout=10) as stream:
            await gateway.shop.entered.wait()
            os.kill(gateway.processes.pid, signal.SIGTERM)
            await gateway.processes.until("the gateway drains")

            async def unready() -> bool:
                answers = [await _fresh(gateway.url, "/readyz") for _ in range(4)]
                return {503} == {answer.status_code for answer in answers}

            await eventually(unready)
            answer = await _fresh(gateway.url, "/v1/things/ball")
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
            told = "".join([part async for part in stream.aiter_text()])
        assert "event: error" in told
        gateway.shop.go_on.set()
        assert (await slow).status_code == 200
        assert await gateway.processes.ended() == 0


async def _fresh(url: str, path: str) -> httpx.Response:
    async with httpx.AsyncClient(base_url=url) as client:
        return await client.get(path)


async def test_reload_of_a_service_with_http_beside_it(tmp_path: Path) -> None:
    """No connection of HTTP is closed on a client that might be asking: it is told with an answer."""
    (tmp_path / "app.py").write_text(SERVICE)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    variables = {"FRAMEWORK_SERVER_CONNECTION_AGE": "1500ms"}
    async with supervised(tmp_path, f"--http={port}", **variables) as service, contextlib.AsyncExitStack() as exits:
        await service.serves()
        connections = [Connection(*await asyncio.open_connection("127.0.0.1", port)) for _ in range(8)]
        for connection in connections:
            exits.callback(connection.writer.close)
        await asyncio.gather(*(connection.ask() for connection in connections))
        os.kill(service.pid, signal.SIGHUP)
        while not any(connection.told for connection in connections):
            for connection in connections:
                await connection.ask()
        for connection in connections:  # some of which were idle when their worker had to go
            await connection.ask()
        await service.until("has reloaded: 2 workers")
        assert len(service.workers) == 4
        assert await service.ended(signal.SIGTERM) == 0


async def test_http_port_in_use(tmp_path: Path) -> None:
    """It is another port, with another option, and nobody else's even if they would share it."""
    write(tmp_path)
    with contextlib.closing(socket.socket()) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with supervised(tmp_path, f"--http={port}") as service:
            assert await service.ended() == 2
    assert service.said == [
        f"framework: port {port} on 127.0.0.1 is in use or may not be used. "
        "Choose another with --http, or 0 for any free one."
    ]


async def test_port_in_use(tmp_path: Path) -> None:
    """A mistake is said once, in one line."""
    command = ("-m", "framework", "gateway", "--workers=2")
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        async with supervised(tmp_path, f"--port={port}", command=command) as processes:
            assert await processes.ended() == 2
    assert [
        f"framework: port {port} on 127.0.0.1 is in use or may not be used. "
        "Choose another with --port, or 0 for any free one."
    ] == processes.said


async def test_command_with_nothing_registered(tmp_path: Path) -> None:
    """Workers that find nothing to serve say so, and drain like any."""
    command = ("-m", "framework", "gateway", "--workers=2", "--port=0")
    async with supervised(tmp_path, command=command) as processes:
        await processes.serves()
        answer = await _fresh(f"http://127.0.0.1:{processes.port}", "/readyz")
        assert (answer.status_code, answer.json()["reason"]) == (503, "no service can be called")
        assert await processes.ended(signal.SIGTERM) == 0
