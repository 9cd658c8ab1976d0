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
            connect(without, settings=Settings(client=ClientSettings(direct=False))) as by_grpc,
        ):
            # Calls with one reply go past grpc in plain text, and with certificates they do not.
            for name, what, channel in (
                ("unary", "plain text", plain),
                ("unary", "plain text through grpc", by_grpc),
                ("stream", "plain text", plain),
                ("upload", "plain text", plain),
            ):
                units = CALLS if name == "unary" else MESSAGES
                yield await paired(
                    f"tls.{name}.cpu" + (", by grpc" if channel is by_grpc else ""),
                    "us/call" if name == "unary" else "us/message",
                    both_cpu(getattr(Ours(secure), name), secure, units),
                    what,
                    both_cpu(getattr(Ours(channel), name), channel, units),
                    "<= 1.15",
                    pairs=41,
                )
