"""`framework run app --workers 2` as a process of its own, and a service for it that says who answers."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from textwrap import indent
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from framework import Instance, Settings, connect
from framework.discovery.targets import open_registry
from tests.cli.lab import PLAIN
from tests.invariants.echo import EchoClient, text

ROOT = Path(__file__).parents[2]

APP = '''\
"""Does what a request says, and answers with its version and the process."""

import asyncio
import os
import time
from contextlib import asynccontextmanager

from framework import FrameworkError, Service
from tests.invariants.echo import Echo, text

VERSION = "1"


async def behave(requests, context):
    async for request in requests:
        word, _, argument = request.value.partition(" ")
        if word == "sleep":
            print("sleeps", flush=True)
            await asyncio.sleep(float(argument))
        elif word == "block":
            print("blocks", flush=True)
            time.sleep(float(argument))
        yield text(f"{VERSION} {os.getpid()}")


@asynccontextmanager
async def lifespan(service):
    service.add(Echo(behave))
    yield


service = Service("echo", lifespan=lifespan, version=VERSION)

if __name__ == "__main__":
    service.run()
'''


class Supervised:
    """The supervisor's process.

    Attributes:
        said: what it and its workers have said, without dates.
        port: where it serves.
    """

    def __init__(self, process: asyncio.subprocess.Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.said: list[str] = []
        self.port = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def workers(self) -> list[int]:
        """The process ids of all workers that have ever served."""
        return [int(found[1]) for line in self.said if (found := re.search(r"\(pid (\d+)\) serves", line))]

    async def until(self, pattern: str) -> re.Match[str]:
        """Read what is said up to a line like this one."""
        while True:
            line = await self._line()
            assert line, "\n".join((f"it ended without {pattern!r}:", *self.said))
            if found := re.search(pattern, self.said[-1]):
                return found

    async def _line(self) -> bytes:
        assert self.process.stderr is not None
        try:
            line = await asyncio.wait_for(self.process.stderr.readline(), 15)
        except TimeoutError:
            raise AssertionError("\n".join(("nothing more is said:", *self.said))) from None
        if line:
            self.said.append(re.sub(r"^[0-9:.]+ \[\w+ *\] ", "", line.decode().rstrip("\n")))
        return line

    async def serves(self) -> None:
        """It and its workers are up."""
        self.port = int((await self.until(r"^(?:echo|the gateway) serves on \S+:(\d+)"))[1])

    async def ended(self, by: signal.Signals | None = None) -> int:
        """Send a signal, if any, and read to the end, which is when the last process has ended; the exit code."""
        if by is not None:
            os.kill(self.pid, by)
        while await self._line():
            pass
        return await asyncio.wait_for(self.process.wait(), 15)

    async def ask(self, request: str = "") -> str:
        """One call on a connection of its own."""
        async with connect(f"127.0.0.1:{self.port}", settings=Settings()) as channel:
            return (await EchoClient(channel).UnaryUnary(text(request), timeout=20)).value

    async def answering(self, count: int = 2) -> set[int]:
        """The process ids of those who answer, once there are so many."""
        found: set[int] = set()
        async with asyncio.timeout(15):
            while len(found) < count:
                found.add(int((await self.ask()).split()[1]))
        return found

    async def in_flight(self, request: str) -> asyncio.Task[str]:
        """A call that has reached its handler."""
        assert self.process.stdout is not None
        call = asyncio.create_task(self.ask(request))
        await asyncio.wait_for(self.process.stdout.readline(), 15)
        return call

    async def health(self) -> str:
        """What whoever gets the connection says of itself."""
        async with grpc.aio.insecure_channel(f"127.0.0.1:{self.port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            status = (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status
        return health_pb2.HealthCheckResponse.ServingStatus.Name(status)

    async def registered(self) -> list[Instance]:
        """What is in the registry."""
        registry = open_registry(f"sqlite:///{self.folder}/registry.db")
        try:
            return [one for snapshot in (await registry.services()).values() for one in snapshot.values()]
        finally:
            await registry.aclose()

    async def deregistered(self) -> None:
        """Wait until nothing is in the registry."""
        registry = open_registry(f"sqlite:///{self.folder}/registry.db")
        try:
            async with asyncio.timeout(15):
                async for snapshot in registry.watch("echo"):
                    if not snapshot:
                        return
        finally:
            await registry.aclose()


def write(folder: Path, old: str = "", new: str = "", *, first: str = "") -> None:
    """Put `app.py` into a folder, with something replaced, or with statements that stand first in the lifespan."""
    if first:
        old = "    service.add"
        new = indent(first, "    ") + "\n" + old
    assert old in APP
    (folder / "app.py").write_text(APP.replace(old, new) if old else APP)


@asynccontextmanager
async def supervised(folder: Path, *arguments: str, command: Any = None, **variables: Any) -> AsyncIterator[Supervised]:
    """The command run in a folder; nothing of it is left afterwards."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("FRAMEWORK_", "GRPC_"))}
    given = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",  # a file that is written twice within a second would not be compiled again
        "FRAMEWORK_REGISTRY": f"sqlite:///{folder}/registry.db",
        "FRAMEWORK_SERVER_DRAIN_DELAY": "0",
        "FRAMEWORK_SERVER_CONNECTION_AGE": "200ms",
        **variables,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, *(command or ("-m", "framework", "run", "app", "--workers", "2")), *arguments,
        cwd=folder, env=own | PLAIN | {name: str(value) for name, value in given.items()}, start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    running = Supervised(process, folder)
    try:
        yield running
        assert not [pid for pid in running.workers if runs(pid)]
    finally:
        for pid in (process.pid, *running.workers):
            if runs(pid):
                os.kill(pid, signal.SIGKILL)
        await process.communicate()


def runs(pid: int) -> bool:
    """Whether this process of ours has not ended."""
    try:
        return b"framework" in Path(f"/proc/{pid}/cmdline").read_bytes()  # a zombie has none
    except (FileNotFoundError, ProcessLookupError):
        return False
