"""The same servicer inside Envoy, by `framework run --engine pyvoy`, beside bare grpc.aio: CPU of the server's process.

Envoy's threads are in that process. Much of its cost is that threads wake each other, so it falls with the calls in
flight; the goal is for a server that has something to do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import grpc.aio

from bench.calls import CALLS, MESSAGES, Bare, peer_cpu, process
from bench.harness import Row, paired

ROOT = Path(__file__).parents[1]


def pyvoy_path() -> str:
    """Where Python finds pyvoy, which `scripts/tools` fetches; empty when it is installed."""
    with contextlib.suppress(ModuleNotFoundError):
        import pyvoy  # noqa: F401

        return ""
    tool = [sys.executable, str(ROOT / "scripts" / "tools")]
    subprocess.run([*tool, "pyvoy"], check=True, stdout=subprocess.DEVNULL)
    found = subprocess.run([*tool, "--path", "pyvoy"], check=True, capture_output=True, text=True).stdout.strip()
    return str(Path(found).parents[1])


@contextlib.asynccontextmanager
async def engine(target: str = "bench.echo:service") -> AsyncIterator[str]:
    """A service inside Envoy, as a process; gives its address."""
    paths = [str(ROOT), *filter(None, (pyvoy_path(), os.environ.get("PYTHONPATH", "")))]
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "framework", "run", target, "--engine", "pyvoy", "--registry", "none"),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stderr=asyncio.subprocess.PIPE,
    )
    assert child.stderr is not None
    reading = None
    try:
        told = b""
        while not (found := re.search(rb"serves on (\S+),", told)):
            told = await child.stderr.readline()
            if not told:
                raise RuntimeError(f"{target} did not start")
        reading = asyncio.create_task(child.stderr.read())  # or its log lines would wait for somebody to do so
        yield found[1].decode()
    finally:
        child.terminate()
        child.terminate()  # without draining
        await child.wait()
        if reading is not None:
            await reading


async def _at_once(count: int, calls: int, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    async def worker() -> None:
        for _ in range(calls // count):
            await call()

    await asyncio.gather(*(worker() for _ in range(count)))


async def pyvoy() -> AsyncIterator[Row]:
    """Server CPU on pyvoy, everything on, beside bare grpc.aio, under the same bare client."""
    async with (
        engine() as our_address,
        process("bare") as bare_address,
        grpc.aio.insecure_channel(our_address) as our_channel,
        grpc.aio.insecure_channel(bare_address) as bare_channel,
    ):
        ours, bare = Bare(our_channel), Bare(bare_channel)
        calls = 2 * CALLS
        for count, goal in ((32, "<= 0.3"), (8, "<= 0.6")):
            yield await paired(
                f"pyvoy.unary.cpu, {count} in flight",
                "us/call",
                peer_cpu(partial(_at_once, count, calls, ours.call), our_channel, calls),
                "grpc.aio",
                peer_cpu(partial(_at_once, count, calls, bare.call), bare_channel, calls),
                goal,
                pairs=41,
            )
        for name in ("stream", "upload"):
            yield await paired(
                f"pyvoy.{name}.cpu",
                "us/message",
                peer_cpu(getattr(ours, name), our_channel, MESSAGES),
                "grpc.aio",
                peer_cpu(getattr(bare, name), bare_channel, MESSAGES),
                "<= 1",
                pairs=41,
            )
