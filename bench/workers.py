"""Several workers on one port: what they can do beside one process, and whether a reload loses a call.

Also the service that is measured: `framework run bench.workers:service`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.wrappers_pb2 import BytesValue

from bench.echo import SERVICE, UNARY
from bench.harness import Row, paired, single
from framework import Method, RpcError, Service, Servicer, Settings, UnaryReply, connect

CONNECTIONS = 48
"""So many that the kernel gives each worker enough of them to be busy all the time."""

BLOCK = 1.5
"""Seconds of a measurement."""

ROUNDS = 80_000
"""Of the loop of a busy call: some milliseconds."""

RELOADS = 5

BUSY = Method(SERVICE, "Busy", BytesValue, BytesValue)


class Worker(Servicer):
    """One method that costs next to nothing, and one that is all Python."""

    __methods__ = (UNARY, BUSY)

    async def Unary(self, request: BytesValue, context: Any) -> BytesValue:
        return request

    async def Busy(self, request: BytesValue, context: Any) -> BytesValue:
        total = 0
        for number in range(ROUNDS):
            total += number % 7
        return request


service = Service("workers", servicers=[Worker()])


class Running:
    """The service in processes of its own.

    Attributes:
        workers: the processes that serve.
        address: where.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.workers: list[int] = []
        self.address = ""

    async def until(self, pattern: str) -> re.Match[str]:
        """Read what it says up to a line like this one."""
        assert self.process.stderr is not None
        while line := (await self.process.stderr.readline()).decode():
            if found := re.search(r"\(pid (\d+)\) serves", line):
                self.workers.append(int(found[1]))
            if found := re.search(pattern, line):
                return found
        raise RuntimeError(f"the service ended without {pattern!r}")


@contextlib.asynccontextmanager
async def running(workers: int) -> AsyncIterator[Running]:
    """`framework run` with so many workers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "framework", "run", "bench.workers", "--registry=none", f"--workers={workers}",
        env={
            **os.environ,
            "FRAMEWORK_SERVER_DRAIN_DELAY": "0",
            "FRAMEWORK_SERVER_CONNECTION_AGE": "500ms",
            "FRAMEWORK_TELEMETRY_LOGS_SERVER": "none",  # nobody would read them
        },
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        found = Running(process)
        found.address = (await found.until(r"serves on (\S+),"))[1]
        found.workers = found.workers or [process.pid]
        yield found
    finally:
        process.terminate()
        await process.communicate()


def cpu_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cpu_of_all() -> float:
    """Seconds of CPU that were used on this machine, or taken from it."""
    user, nice, system, _, _, *others = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


async def capacity(service: Running, calls: list[Any]) -> float:
    """Busy calls a second that these workers answer, if nothing else needs the CPUs.

    On this machine the clients need them too, and whatever else runs: what all of these used is measured, and taken
    off what the workers could have had at most, a CPU for each. Time in which a CPU was idle is not taken off.
    """
    done, stop = 0, False

    async def load(call: Any) -> None:
        nonlocal done
        while not stop:
            try:
                await call(BytesValue())
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                await asyncio.sleep(BLOCK / 10)  # somebody else has the CPUs, and the server knows how long it takes
            else:
                done += 1

    loading = [asyncio.create_task(load(call)) for call in calls]
    await asyncio.sleep(BLOCK / 5)
    count = len(service.workers)
    start = time.monotonic(), done, sum(map(cpu_of, service.workers)), cpu_of_all()
    await asyncio.sleep(BLOCK)
    took, answered, own, used = (
        after - before
        for after, before in zip(
            (time.monotonic(), done, sum(map(cpu_of, service.workers)), cpu_of_all()), start, strict=True
        )
    )
    stop = True
    await asyncio.gather(*loading)
    left = min(float(count), len(os.sched_getaffinity(0)) - (used - own) / took)
    return answered / took * count / left


@contextlib.asynccontextmanager
async def clients(address: str) -> AsyncIterator[list[Any]]:
    """The busy method on many connections."""
    async with contextlib.AsyncExitStack() as exits:
        calls = []
        for _ in range(CONNECTIONS):
            options = (("grpc.use_local_subchannel_pool", 1),)
            channel = await exits.enter_async_context(grpc.aio.insecure_channel(address, options=options))
            calls.append(channel.unary_unary(f"/{SERVICE}/Busy", BytesValue.SerializeToString, BytesValue.FromString))
        yield calls


async def workers() -> AsyncIterator[Row]:
    """Two workers beside one process, and reloads under load."""
    async with running(2) as two, running(1) as one, clients(two.address) as many, clients(one.address) as few:
        yield await paired(
            "workers.capacity",
            "calls/s",
            lambda: capacity(two, many),
            "one process",
            lambda: capacity(one, few),
            ">= 1.8",
        )
    async with running(2) as service:
        yield single("workers.reload.failed", "calls", [float(await reloads(service))], "<= 0")


async def reloads(service: Running) -> int:
    """How many calls fail, which may not be made twice, while all workers are replaced again and again."""
    failed, stop = 0, False

    async def load(handler: Any) -> None:
        nonlocal failed
        while not stop:
            try:
                await UnaryReply(handler, UNARY, BytesValue(), 10.0)
            except RpcError:
                failed += 1

    async with contextlib.AsyncExitStack() as exits:
        channels = [
            await exits.enter_async_context(connect(service.address, settings=Settings())) for _ in range(CONNECTIONS)
        ]
        loading = [asyncio.create_task(load(channel.bind(UNARY))) for channel in channels]
        for _ in range(RELOADS):
            service.process.send_signal(signal.SIGHUP)
            await service.until("has reloaded")
        stop = True
        await asyncio.gather(*loading)
    return failed
