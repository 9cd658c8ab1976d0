"""One instance, as a process: `python -m bench.faults.server SPEC`.

Every execution is appended to a file before it begins, so that not even `kill -9` loses one. How it behaves is told on
standard input while it serves.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import grpc
import grpc.aio
from google.protobuf.wrappers_pb2 import BytesValue, StringValue

from bench.faults.control import clock, commands, tell
from bench.faults.service import HANG, METHODS, SERVICE, id_of
from framework import Drain, ServerSettings, Service, Servicer, Settings
from framework.server.server import Server
from framework.workers.program import run_until_complete

LATE = 3.0
"""Seconds after which a request that is to hang is answered."""


@dataclass(frozen=True, slots=True)
class Behaviour:
    """How an instance behaves.

    Attributes:
        median: seconds that a request takes.
        sigma: spread of a log-normal distribution around it.
        errors: share of requests that fail at once.
        code: what these fail with.
        workers: how many requests it works on at a time, 0 for any number; the others wait in a queue.
        burn: seconds of CPU that each takes as well.
    """

    median: float = 0.02
    sigma: float = 0.4
    errors: float = 0.0
    code: str = "UNAVAILABLE"
    workers: int = 0
    burn: float = 0.0


class Worker(Servicer):
    """Does the work; the same for our server and a bare one."""

    __methods__ = tuple(METHODS.values())

    def __init__(self, name: str, log: str, rng: random.Random) -> None:
        self._name = name
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._rng = rng
        self._behaviour = Behaviour()
        self._room: Any = nullcontext()

    def behave(self, **how: Any) -> None:
        """Change what is named."""
        workers = self._behaviour.workers
        self._behaviour = replace(self._behaviour, **how)
        if workers != self._behaviour.workers:
            self._room = asyncio.Semaphore(self._behaviour.workers) if self._behaviour.workers else nullcontext()

    async def Get(self, request: BytesValue, context: Any) -> StringValue:
        return await self._work("Get", request, context)

    async def Put(self, request: BytesValue, context: Any) -> StringValue:
        return await self._work("Put", request, context)

    async def _work(self, method: str, request: BytesValue, context: Any) -> StringValue:
        id = id_of(request)
        os.write(self._log, f"{id} {method} {time.monotonic():.4f}\n".encode())
        how = self._behaviour
        if how.errors and self._rng.random() < how.errors:
            await context.abort(grpc.StatusCode[how.code], "injected")
        seconds = how.median * self._rng.lognormvariate(0.0, how.sigma) if not id.startswith(HANG) else LATE
        async with self._room:
            end = time.thread_time() + how.burn
            while time.thread_time() < end:
                pass
            await asyncio.sleep(seconds)
        return StringValue(value=self._name)


class Told(Service):
    """Tells the lab once it is registered."""

    @asynccontextmanager
    async def running(self, *arguments: Any, **named: Any) -> AsyncIterator[Server]:
        async with super().running(*arguments, **named) as server:
            tell(serving=time.monotonic())
            yield server


async def listen(worker: Worker) -> None:
    """Do what the lab says; end when it is gone."""
    wall = clock()
    async for command in commands():
        wall.offset = command.pop("clock", wall.offset)
        worker.behave(**command)
        tell(done=time.monotonic())
    os.kill(os.getpid(), signal.SIGKILL)


async def bare(worker: Worker, port: int, grace: float) -> None:
    """Serve with grpc.aio alone until SIGTERM."""
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    server = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(worker, method.name), BytesValue.FromString, StringValue.SerializeToString
        )
        for method in Worker.__methods__
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    tell(serving=time.monotonic())
    await stopping.wait()
    await server.stop(grace)


async def main(spec: dict[str, Any]) -> None:
    """Serve as the lab has it."""
    worker = Worker(spec["name"], spec["log"], random.Random(spec["seed"]))
    worker.behave(**spec["behaviour"])
    listening = asyncio.create_task(listen(worker))
    if spec["kind"] == "bare":
        await bare(worker, spec["port"], spec["grace"])
    else:
        settings = Settings(
            registry=spec["registry"],
            server=ServerSettings(
                port=spec["port"],
                advertise=spec["advertise"],
                drain=Drain(delay=spec["delay"], grace=spec["grace"], streams=1.0),
            ),
        )
        await Told(spec["service"], servicers=[worker]).serve(settings, interactive=False)
    listening.cancel()
    await asyncio.gather(listening, return_exceptions=True)


if __name__ == "__main__":
    run_until_complete(main(json.loads(sys.argv[1])))
