"""What mypy --strict says about stubs and servicers of grpc's own plugin on our channel and server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from grpc_tools import protoc

from tests.client.route import PROTO

ROOT = Path(__file__).parents[2]
CODE = """
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from framework import Service, connect
from tests_route_pb2 import Note
from tests_route_pb2_grpc import RouteServicer, RouteStub, add_RouteServicer_to_server


class Route(RouteServicer):
    async def Get(self, request: Note, context: Any) -> Note:
        return request

    async def List(self, request: Note, context: Any) -> AsyncIterator[Note]:
        yield request

    async def Record(self, request_iterator: AsyncIterator[Note], context: Any) -> Note:
        return Note(text=" ".join([request.text async for request in request_iterator]))

    async def Chat(self, request_iterator: AsyncIterator[Note], context: Any) -> AsyncIterator[Note]:
        async for request in request_iterator:
            yield request

    async def Missing(self, request: Note, context: Any) -> Note:
        return request

    async def MissingStream(self, request_iterator: AsyncIterator[Note], context: Any) -> AsyncIterator[Note]:
        yield Note()


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    add_RouteServicer_to_server(Route(), service.grpc_server)
    yield


async def use() -> str:
    async with connect("route") as channel:
        stub = RouteStub(channel)
        reply = await stub.Get(Note(text="a"), timeout=1.0)
        text = reply.text
        async for item in stub.List(Note()):
            text += item.text
        call = stub.Chat()
        await call.write(Note())
        await call.done_writing()
        if await call.code() is grpc.StatusCode.OK:
            text += (await stub.Record(iter([Note()]))).text
        await stub.Get("a")  # wrong: the request
        print((await stub.Get(Note())).nam)  # wrong: the field
        add_RouteServicer_to_server(Route(), channel)  # wrong: no server
    return text


service = Service("route", lifespan=lifespan)
"""


def test_types(tmp_path: Path) -> None:
    """Both are accepted, and what is wrong is found, at its line and nowhere else."""
    (tmp_path / "tests_route.proto").write_text(PROTO, encoding="utf-8")
    (tmp_path / "use.py").write_text(CODE, encoding="utf-8")
    bin_ = Path(sys.executable).parent
    plugins = [f"--plugin=protoc-gen-{name}={bin_ / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    outputs = [f"--{name}_out=quiet:{tmp_path}" for name in ("mypy", "mypy_grpc")]
    generate = ["protoc", f"-I{tmp_path}", *plugins, f"--python_out={tmp_path}", f"--grpc_python_out={tmp_path}"]
    assert protoc.main([*generate, *outputs, "tests_route.proto"]) == 0
    found = subprocess.run(
        # With the project's own settings, which are strict, and so with its cache.
        [sys.executable, "-m", "mypy", "--no-error-summary", tmp_path / "use.py"],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    wrong = [number for number, line in enumerate(CODE.splitlines(), 1) if "# wrong" in line]
    lines = [line for line in found.stdout.splitlines() if ": error:" in line]
    assert [int(line.split(":")[1]) for line in lines if "use.py" in line] == wrong, found.stdout + found.stderr
    assert len(lines) == len(wrong), found.stdout
