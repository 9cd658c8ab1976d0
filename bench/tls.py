"""What mTLS costs on connections that are open: the same client and server with certificates and without."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.struct_pb2 import Value

from bench.calls import CALLS, MESSAGES, Block, Ours, process
from bench.echo import CPU
from bench.harness import Row, paired
from framework import Settings, UnaryReply, connect
from framework.client.dropin import Channel
from framework.policy import ClientSettings
from framework.security.certs import issue, make_authority
from framework.tls import ClientTls


def both_cpu(block: Block, channel: Channel, units: int) -> Callable[[], Awaitable[float]]:
    """Microseconds of CPU per unit of a block, of this process and the server's."""
    ask = channel.bind(CPU)

    async def spent() -> float:
        return time.process_time() + float((await UnaryReply(ask, CPU, Value())).value)

    async def measure() -> float:
        start = await spent()
        await block()
        return (await spent() - start) / units * 1e6

    return measure


async def tls() -> AsyncIterator[Row]:
    """CPU of both sides with mTLS, beside plain text."""
    with TemporaryDirectory() as folder:
        now = datetime.now(UTC)
        ca = make_authority(Path(folder), now)
        pair = issue(Path(folder), "echo", now)
        shown = ClientTls(str(pair.certificate), str(pair.key), str(ca.certificate))
        mutual = Settings(client=ClientSettings(tls=shown))
        async with (
            process("ours", folder) as with_tls,
            process("ours") as without,
            connect(with_tls, settings=mutual) as secure,
            connect(without, settings=Settings()) as plain,
        ):
            ours, rival = Ours(secure), Ours(plain)
            for name, units in (("unary", CALLS), ("stream", MESSAGES), ("upload", MESSAGES)):
                yield await paired(
                    f"tls.{name}.cpu",
                    "us/call" if name == "unary" else "us/message",
                    both_cpu(getattr(ours, name), secure, units),
                    "plain text",
                    both_cpu(getattr(rival, name), plain, units),
                    "<= 1.15",
                    pairs=41,
                )
