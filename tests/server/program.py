"""A service for tests that need a process: `python -m tests.server.program '{"delay": 0.2, ...}' [registry]`.

Each call takes as many seconds as its request says. What happens is printed, one word a line.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from google.protobuf.wrappers_pb2 import StringValue

from framework import Context, Drain, ServerSettings, Service, Settings
from tests.invariants.echo import Echo


def say(*words: object) -> None:
    print(*words, flush=True)


async def slow(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
    async for request in requests:
        say("call")
        await asyncio.sleep(float(request.value))
        say("answer")
        yield request


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    service.add(Echo(slow))
    say("entered")
    yield
    say("left")


def main() -> None:
    drain = Drain(**json.loads(sys.argv[1]))
    registry = sys.argv[2] if len(sys.argv) > 2 else "none"
    port = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    Service("echo", lifespan=lifespan).run(Settings(registry=registry, server=ServerSettings(drain=drain, port=port)))


if __name__ == "__main__":
    main()
