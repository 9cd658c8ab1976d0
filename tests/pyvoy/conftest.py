"""A service inside Envoy, started once: the lab of the command line's tests, with some more to say."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from tests.cli.lab import Serving, serving, write
from tests.tools import tool

SERVICE = '''\
"""The lab, and what tests of a wire want to see."""

import asyncio
from contextlib import contextmanager

import grpc

from framework import Service
from lab.v1.lab_pb2 import Number, Text
from lab_service import Lab


class Wired(Lab):
    def __init__(self):
        self.ended = []

    @contextmanager
    def noted(self, name):
        try:
            yield
        finally:
            self.ended.append(name)

    async def Greet(self, request, context):
        match request.text.split(maxsplit=1):
            case ["wait", name]:
                with self.noted(name):
                    await asyncio.Event().wait()
            case ["ended"]:
                return Text(text=" ".join(self.ended))
            case ["metadata"]:
                await context.send_initial_metadata((("x-lab-head", "a"), ("x-lab-head-bin", b"\\0\\1")))
                context.set_trailing_metadata((("x-lab-tail-bin", b"\\2"),))
                return Text(text="told")
            case ["large", size]:
                return Text(text="x" * int(size))
            case ["packed"]:
                context.set_compression(grpc.Compression.Gzip)
                return Text(text="x" * 10_000)
        return await super().Greet(request, context)

    async def Count(self, request, context):
        with self.noted("Count"):
            yield Number(the_number=1)
            if request.the_number < 0:
                await asyncio.Event().wait()
            async for number in super().Count(request, context):
                if number.the_number > 1:
                    yield number

    async def Add(self, requests, context):
        first = await anext(requests)
        if first.the_number == 1000:  # let all of it come first
            await asyncio.sleep(0.5)
        with self.noted("Add"):
            return Number(the_number=sum([request.the_number async for request in requests], first.the_number))

    async def Shout(self, requests, context):
        with self.noted("Shout"):
            async for request in requests:
                yield Text(text=request.text.upper())


service = Service("wired", servicers=[Wired()])
'''


@pytest.fixture(scope="session")
def path() -> str:
    """Where Python finds pyvoy."""
    return str(Path(tool("pyvoy")).parents[1])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the service is."""
    found = write(tmp_path_factory.mktemp("pyvoy"))
    (found / "wired.py").write_text(SERVICE)
    return found


@pytest.fixture(scope="session")
def server(folder: Path, path: str) -> Iterator[Serving]:
    """The service, serving."""
    command = ("-m", "framework", "run", "wired", "--engine", "pyvoy", "--registry", "none")
    with serving(folder, *command, PYTHONPATH=path) as found:
        yield found
        found.end()


@pytest_asyncio.fixture
async def channel(server: Serving) -> AsyncIterator[grpc.aio.Channel]:
    """A channel of grpc.aio's own."""
    limit = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    async with grpc.aio.insecure_channel(server.address, options=limit) as found:
        yield found
