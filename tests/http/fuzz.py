"""Broken requests of every protocol, by the thousand: nothing fails inside, hangs, or is left over.

    python -m tests.http.fuzz [--behind relay] [--count 100000] [--seed 1] [--seconds 900]
    python -m tests.http.fuzz --seed 1 --only 4711      one input again, shown

The services are in this process (`local`), or behind a channel, passed on as messages (`channel`) or bytes (`relay`).

Each input is made from the seed and its number alone, so that one can be made again without those before it.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gc
import json
import logging
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from framework import Service
from framework.call import Call, Handler, Method
from framework.http import exchange
from framework.http.app import HttpApp
from framework.http.settings import HttpSettings
from framework.options import method_of
from framework.server.local import Local
from framework.server.pipeline import Pipeline
from framework.testing import Network
from tests.http import library, mirror
from tests.http.driver import Response, scope
from tests.http.fuzz_inputs import Input, Seeds, input_of

SERVICES = (library.SERVICE, mirror.SERVICE, mirror.FLAT)
Bind = Callable[[Method[Any, Any]], Handler]
CPU_LIMIT = 2.0
"""Seconds of computing that one input may take."""
WAIT_LIMIT = 20.0
"""Seconds that one input may take, waiting included."""
GROWTH = 32 << 20
"""Bytes that the process may grow by after its warming up."""
DELIBERATE = b"a frame is marked as compressed, and no encoding was named"
"""What Connect and gRPC say is INTERNAL."""


class Hang(BaseException):
    """An input has computed for too long; no `except Exception` may take it."""


# What is tried


class Errors(logging.Handler):
    """Keeps what is logged as an error: nothing that is sent may cause it."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@dataclass
class Fault:
    """An input, and what went wrong."""

    number: int
    input: Input
    what: str


@dataclass
class Report:
    """How a run went."""

    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    statuses: Counter[str] = field(default_factory=Counter)
    faults: list[Fault] = field(default_factory=list)
    pending: int = 0
    tasks: int = 0
    grown: int = 0

    def lines(self, seed: int, behind: str = "local") -> list[str]:
        """All of it, and how to see each fault again."""
        rate = self.inputs / max(self.seconds, 1e-9)
        told = [f"{self.inputs} inputs in {self.seconds:.0f} s ({rate:.0f}/s), slowest {self.slowest * 1000:.0f} ms"]
        told += (f"  {name}: {count}" for name, count in sorted(self.statuses.items()))
        told.append(f"left over: {self.pending} calls, {self.tasks} tasks; grown by {self.grown >> 10} kB")
        for fault in self.faults:
            again = f"python -m tests.http.fuzz --behind {behind} --seed {seed} --only {fault.number}"
            told.append(f"FAULT {fault.number}: {fault.what}\n  {str(fault.input)[:1500]}\n  again: {again}")
        return told

    @property
    def good(self) -> bool:
        return not self.faults and not self.pending and not self.tasks and self.grown < GROWTH


class Target:
    """The application that is tried, and the calls that are pending in it."""

    def __init__(self, bind: Bind, relays: bool = False) -> None:
        self._handler = bind
        self.pending = 0
        settings = HttpSettings(max_message=100_000, body_timeout=1.0)
        self.app = HttpApp(SERVICES, self._bind, settings, relays=lambda method: relays)
        self.seeds = Seeds(self.app)

    def _bind(self, method: Method[Any, Any]) -> Handler:
        handler = self._handler(method)

        async def counted(call: Call) -> Any:
            self.pending += 1
            call.on_end(self._ended)
            return await handler(call)

        return counted

    def _ended(self, outcome: Any) -> None:
        self.pending -= 1

    async def send(self, made: Input) -> tuple[str, str]:
        """Send an input: how it was answered, in short, and what is wrong with that, or empty."""
        if made.http == "WS":
            return await self._socket(made)
        response = await self.answer(made)
        return str(response.status), "" if made.leaves and not response.complete else _wrong(made, response)

    async def answer(self, made: Input) -> Response:
        """Send an input that is no WebSocket."""
        coming = [
            {"type": "http.request", "body": part, "more_body": made.leaves or number < len(made.parts) - 1}
            for number, part in enumerate(made.parts or (b"",))
        ]
        response = Response()

        async def told(message: Any) -> None:
            response.take(message)
            for name, value in message.get("headers", ()):
                assert not set(b"\r\n\0") & set(value), f"{name!r}: {value!r} is no header"

        await self._run(_asked(made), coming, "http.disconnect", made.leaves, told)
        return response

    async def _socket(self, made: Input) -> tuple[str, str]:
        coming: list[dict[str, Any]] = [{"type": "websocket.connect"}]
        for part in made.parts:
            try:
                coming.append({"type": "websocket.receive", "text": part.decode()})
            except UnicodeDecodeError:
                coming.append({"type": "websocket.receive", "bytes": part})
        ends: list[Any] = []

        async def told(message: Any) -> None:
            if message["type"] == "websocket.close":
                ends.append(message)

        asked = _asked(made) | {"type": "websocket", "scheme": "ws"}
        leaves = made.leaves or b"" not in made.parts
        await self._run(asked, coming, "websocket.disconnect", leaves, told)
        if not ends:
            return "ws gone", "" if leaves else "the WebSocket was not closed"
        code = ends[0]["code"]
        wrong = f"closed with {code}: {ends[0]['reason']}" if code in (4002, 4013, 4015) or len(ends) > 1 else ""
        return f"ws {code}", wrong

    async def _run(self, asked: dict[str, Any], coming: list[Any], gone: str, leaves: bool, told: Any) -> None:
        coming = coming[::-1]
        never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        async def receive() -> Any:
            if coming:
                return coming.pop()
            return {"type": gone} if leaves else await never

        async with asyncio.timeout(WAIT_LIMIT):
            await self.app(asked, receive, told)
            await asyncio.sleep(0)  # the loop drops cancelled timers only when it turns


@asynccontextmanager
async def target(behind: str) -> AsyncIterator[Target]:
    """The application with its services where `behind` says."""
    if behind == "local":
        pipeline = Pipeline()
        for servicer in mirror.servicers():
            pipeline.add(servicer)
        yield Target(Local(pipeline).bind)
        return
    async with Network() as network:
        network.add(Service("all", servicers=mirror.servicers()))
        channel = network.connect("all")
        method = method_of(mirror.SERVICE.methods_by_name["Send"])
        await channel.bind(method)(Call(method, method.request()))  # what serves the channel itself is there now
        yield Target(channel.bind, relays=behind == "relay")


def _asked(made: Input) -> dict[str, Any]:
    return {
        **scope(made.http, "/"),
        "path": made.path.decode("utf-8", "replace"),
        "raw_path": made.path,
        "query_string": made.query,
        "headers": list(made.headers),
    }


def _wrong(made: Input, response: Response) -> str:
    """What is wrong with a response whatever was asked, or empty."""
    body = response.body
    if not response.complete:
        return "the response was not ended"
    if response.status >= 500 and response.status not in (501, 503, 504):
        return f"{response.status}: {body[:300]!r}"
    length = response.headers.get("content-length")
    if length is not None and int(length) != len(body) and made.http != "HEAD":
        return f"content-length {length} and {len(body)} bytes"
    kind = response.headers.get("content-type", "")
    stored = made.path.startswith(b"/v1/files")  # of whatever type, and with whatever bytes
    if kind == "application/json" and not stored and made.http != "HEAD" and "content-encoding" not in response.headers:
        try:
            json.loads(body)
        except ValueError:
            return f"this is no JSON: {body[:300]!r}"
    if made.kind == "grpc-web-text" and kind.startswith("application/grpc-web-text"):
        body = b"".join(base64.b64decode(part) for part in response.parts)
    internal = b"grpc-status: 13" in body or b'"code":"internal"' in body
    stated = DELIBERATE in body or DELIBERATE.replace(b" ", b"%20") in body
    return f"internal: {body[-300:]!r}" if internal and not stated else ""


def resident() -> int:
    """Bytes of memory that the process has; 0 where that cannot be told."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        return 0


async def run(target: Target, count: int, seed: int, seconds: float = 1e9, first: int = 0) -> Report:
    """Try so many inputs, or for so long."""
    report, errors = Report(), Errors()
    loop = asyncio.get_running_loop()
    unhandled: list[str] = []
    loop.set_exception_handler(lambda loop, context: unhandled.append(str(context)))
    root = logging.getLogger("framework")
    root.addHandler(errors)
    propagate, root.propagate = root.propagate, False
    linger, exchange.LINGER = exchange.LINGER, 0.05
    before = signal.signal(signal.SIGVTALRM, _hang)
    begun, warm = time.monotonic(), 0
    tasks = len(asyncio.all_tasks())
    try:
        for number in range(first, first + count):
            if time.monotonic() - begun > seconds:
                break
            made = input_of(target.seeds, seed, number)
            at = time.monotonic()
            try:
                signal.setitimer(signal.ITIMER_VIRTUAL, CPU_LIMIT)
                status, what = await target.send(made)
            except TimeoutError:
                status, what = "hang", f"no end within {WAIT_LIMIT:g} s"
            except Hang:
                status, what = "hang", f"computed for {CPU_LIMIT:g} s: {traceback.format_exc(limit=-4)}"
            except Exception:
                status, what = "raised", traceback.format_exc(limit=-4)
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            report.slowest = max(report.slowest, time.monotonic() - at)
            report.statuses[f"{made.kind} {status}"] += 1
            report.inputs += 1
            what = what or next(iter(unhandled), "")
            if errors.records:
                what += logging.Formatter("\n%(message)s").format(errors.records[0])
            if what:
                report.faults.append(Fault(number, made, what))
            errors.records.clear()
            unhandled.clear()
            if report.inputs == count // 3:
                gc.collect()
                warm = resident()
        for _ in range(5):  # what was cancelled takes a turn or two
            await asyncio.sleep(0)
        gc.collect()
        report.pending, report.tasks = target.pending, len(asyncio.all_tasks()) - tasks
        report.grown = max(0, resident() - warm) if warm else 0
    finally:
        signal.signal(signal.SIGVTALRM, before)
        exchange.LINGER = linger
        root.propagate = propagate
        root.removeHandler(errors)
        loop.set_exception_handler(None)
    report.seconds = time.monotonic() - begun
    return report


def _hang(number: int, frame: FrameType | None) -> None:
    raise Hang


async def _main(given: argparse.Namespace) -> int:
    async with target(given.behind) as tried:
        if given.only is not None:
            print(input_of(tried.seeds, given.seed, given.only))
        count, first = (given.count, 0) if given.only is None else (1, given.only)
        report = await run(tried, count, given.seed, given.seconds, first)
    print(*report.lines(given.seed, given.behind), sep="\n")
    return 0 if report.good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--behind", choices=("local", "channel", "relay"), default="local")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--only", type=int)
    return asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
