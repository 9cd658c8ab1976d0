"""A client, as a process: `python -m bench.faults.load SPEC`. Calls at a fixed rate, whatever becomes of the calls.

A call's latency counts from the moment when it was due, so that a client that falls behind does not flatter anybody.
What happened stays in memory, and is written to a file at the end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import grpc
import grpc.aio

import framework.client.connect
from bench.faults.control import clock, commands, tell, uses
from bench.faults.service import DEADLINE, GET, METHODS, id_of, request, rival_config
from framework import Code, Method, RpcError, Settings, UnaryReply, connect
from framework.call import Call, Handler, Reply
from framework.client.wire import GrpcTransport
from framework.workers.program import run_until_complete

MOST = 4000
"""Calls in flight; above, a call that is due fails without being made."""

LONGEST = 600.0
"""Seconds after which a load ends by itself."""

LOOK = 0.25
"""Seconds between two looks at memory, file descriptors and tasks."""

picks: list[list[Any]] = []
"""Every attempt of our client: when it began, the address, the id of the request, when it ended, and how."""

connections: list[tuple[float, str, str]] = []
"""When our client dialled which address, or closed the connection to it."""


class Watched(GrpcTransport):
    """A transport that notes what is given to it: nothing else tells which instance an unanswered attempt went to."""

    def __init__(self, address: str, **how: Any) -> None:
        super().__init__(address, **how)
        self.address = address
        connections.append((time.monotonic(), "dial", address))

    async def aclose(self) -> None:
        connections.append((time.monotonic(), "close", self.address))
        await super().aclose()

    def bind(self, method: Method[Any, Any]) -> Handler:
        handler = super().bind(method)

        async def watched(call: Call) -> Reply:
            pick = [time.monotonic(), self.address, id_of(call.request), 0.0, "CANCELLED"]
            picks.append(pick)
            try:
                reply = await handler(call)
                pick[4] = "OK"
            except RpcError as error:
                pick[4] = error.code.name if error.sent else "NOT_SENT"
                raise
            finally:
                pick[3] = time.monotonic()
            return reply

        return watched


class Client(Protocol):
    """What makes the calls."""

    async def call(self, method: str, message: Any, metadata: Any) -> tuple[str, str]:
        """Make a call; gives its code, and what was said if it failed."""


class Ours:
    """Our client, everything at its defaults."""

    def __init__(self, channel: Any) -> None:
        self._bound = {name: channel.bind(method) for name, method in METHODS.items()}

    @classmethod
    @asynccontextmanager
    async def open(cls, target: str) -> AsyncIterator[Ours]:
        names = vars(framework.client.connect)
        assert names["GrpcTransport"] is GrpcTransport
        names["GrpcTransport"] = Watched
        async with connect(target, settings=Settings()) as channel:
            yield cls(channel)

    async def call(self, method: str, message: Any, metadata: Any) -> tuple[str, str]:
        try:
            await UnaryReply(self._bound[method], METHODS[method], message, DEADLINE, metadata)
        except RpcError as error:
            return error.code.name, f"{error!r}"[:200]
        except (Exception, asyncio.CancelledError) as error:  # nobody cancels: it would be a defect
            return type(error).__name__, f"{error!r}"[:200]
        return Code.OK.name, ""


class Bare:
    """grpc.aio with what it offers: round robin over a fixed list, and retries of what is idempotent."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._bound: dict[str, Any] = {
            name: channel.unary_unary(method.path, method.request.SerializeToString, method.reply.FromString)
            for name, method in METHODS.items()
        }

    @classmethod
    @asynccontextmanager
    async def open(cls, target: str) -> AsyncIterator[Bare]:
        async with grpc.aio.insecure_channel(target, options=(("grpc.service_config", rival_config()),)) as channel:
            yield cls(channel)

    async def call(self, method: str, message: Any, metadata: Any) -> tuple[str, str]:
        try:
            await self._bound[method](message, timeout=DEADLINE, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            return error.code().name, str(error.details())[:200]
        except (Exception, asyncio.CancelledError) as error:  # nobody cancels
            return type(error).__name__, f"{error!r}"[:200]
        return Code.OK.name, ""


CLIENTS: dict[str, type[Ours] | type[Bare]] = {"ours": Ours, "grpc.aio": Bare}


Made = tuple[float, str, str, str]
"""A call: when it was due, its id, method and criticality."""


class Load:
    """Calls that are due at a fixed rate.

    Args:
        client: what makes them.
        tag: what the ids of its requests begin with.
        rng: which method and criticality a call has.
    """

    def __init__(self, client: Client, tag: str, rng: random.Random) -> None:
        self._client = client
        self._tag = tag
        self._rng = rng
        self._rate = 0.0
        self._mix: Sequence[tuple[float, str, str]] = [(1.0, GET.name, "")]
        self._number = 0
        self._running: dict[asyncio.Task[None], Made] = {}
        self.calls: list[tuple[float, float, str, str, str, str, str]] = []

    def change(self, rate: float | None = None, mix: Sequence[tuple[float, str, str]] | None = None) -> None:
        """Another rate, or other kinds of calls: weight, method and criticality of each."""
        self._rate = self._rate if rate is None else rate
        self._mix = mix or self._mix

    async def run(self) -> None:
        """Make calls until cancelled."""
        due = time.monotonic()
        end = due + LONGEST
        while (now := time.monotonic()) < end:
            if self._rate == 0.0:
                due = now
                await asyncio.sleep(0.01)
                continue
            while due <= now:
                [(_, method, criticality)] = self._rng.choices(self._mix, [weight for weight, *_ in self._mix])
                self._begin(due, method, criticality)
                due += 1.0 / self._rate
            await asyncio.sleep(due - time.monotonic())

    def _begin(self, due: float, method: str, criticality: str) -> None:
        id = self._next()
        if len(self._running) >= MOST:
            self.calls.append((due, 0.0, "NOT_MADE", id, method, criticality, "too many calls in flight"))
            return
        task = asyncio.create_task(self._one(due, id, method, criticality))
        self._running[task] = due, id, method, criticality
        task.add_done_callback(self._running.pop)

    def _next(self, prefix: str = "") -> str:
        self._number += 1
        return f"{prefix}{self._tag}{self._number}"

    async def _one(self, due: float, id: str, method: str, criticality: str) -> None:
        metadata = (("x-criticality", criticality),) if criticality else ()
        code, said = await self._client.call(method, request(id), metadata)
        self.calls.append((due, time.monotonic() - due, code, id, method, criticality, said))

    async def probe(self, method: str, prefix: str = "", size: int = 0) -> dict[str, Any]:
        """One call beside the load, which does not count as part of it."""
        start, id = time.monotonic(), self._next(prefix)
        code, said = await self._client.call(method, request(id, size), ())
        return {"code": code, "said": said, "id": id, "seconds": time.monotonic() - start}

    async def finish(self) -> None:
        """Wait for the calls that are in flight; those that do not end have failed as well."""
        if self._running:
            await asyncio.wait(self._running, timeout=10 * DEADLINE)
        for due, id, method, criticality in self._running.values():
            self.calls.append((due, time.monotonic() - due, "ENDLESS", id, method, criticality, "it has not ended"))


async def look(usage: list[tuple[float, float, int, int]]) -> None:
    """Note what this process uses, for ever."""
    while True:
        usage.append((time.monotonic(), *uses(), len(asyncio.all_tasks())))
        await asyncio.sleep(LOOK)


class Warnings(logging.Handler):
    """Keeps what the framework warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[tuple[float, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append((time.monotonic(), f"{record.name}: {record.getMessage()}"))


async def main(spec: dict[str, Any]) -> None:
    """Do what the lab says, and write down what happened."""
    wall, warnings = clock(), Warnings()
    logging.getLogger().addHandler(warnings)
    usage: list[tuple[float, float, int, int]] = []
    async with CLIENTS[spec["client"]].open(spec["target"]) as client:
        load = Load(client, spec["tag"], random.Random(spec["seed"]))
        tasks = [asyncio.create_task(load.run()), asyncio.create_task(look(usage))]
        gc.freeze()
        tell(started=time.monotonic())
        async for command in commands():
            match command:
                case {"load": how}:
                    load.change(**how)
                    tell(done=time.monotonic())
                case {"probe": how}:
                    tell(**await load.probe(**how))
                case {"clock": offset}:
                    wall.offset = offset
                    tell(done=time.monotonic())
                case {"stop": _}:
                    break
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await load.finish()
        results = {
            "calls": load.calls,
            "picks": picks,
            "connections": connections,
            "usage": usage,
            "warnings": warnings.lines,
        }
        await asyncio.to_thread(Path(spec["results"]).write_text, json.dumps(results))
        tell(finished=time.monotonic())


if __name__ == "__main__":
    run_until_complete(main(json.loads(sys.argv[1])))
