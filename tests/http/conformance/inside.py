"""`server` inside Envoy; a process that needs little more than to start that, since the suite waits for it briefly."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile

from framework.config import ServerSettings
from framework.pyvoy import engine
from framework.pyvoy.embedded import Order

engine.APPLICATION = "tests.http.conformance.embedded:app"


async def serve(request: bytes) -> None:
    with tempfile.NamedTemporaryFile() as report:
        envoy = engine.Envoy(ServerSettings(), Order([request.hex()], report.name, os.getpid()))
        async with envoy:
            port = envoy.listener_port  # as ServerCompatResponse: the host, and a number in three pieces of seven bits
            answer = b"\x0a\x09127.0.0.1\x10%c%c%c" % (port & 127 | 128, port >> 7 & 127 | 128, port >> 14)
            sys.stdout.buffer.write(len(answer).to_bytes(4, "big") + answer)
            sys.stdout.buffer.flush()
            await envoy.wait()


if __name__ == "__main__":
    size = int.from_bytes(sys.stdin.buffer.read(4), "big")
    asyncio.run(serve(sys.stdin.buffer.read(size)))
