"""Certificates for tests, and services and clients that use them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from google.protobuf.wrappers_pb2 import StringValue

from framework import ClientSettings, Context, Peer, ServerSettings, Service, Settings
from framework.security.certs import Pair, issue, make_authority
from framework.server.server import Server
from framework.tls import ClientTls, ServerTls
from tests.invariants.conftest import NO_WAIT
from tests.invariants.echo import Echo, text


class Folder:
    """A folder with a development CA, and certificates of it.

    Args:
        path: where.
        now: the clock that certificates are made by, in seconds since 1970.
    """

    def __init__(self, path: Path, now: Callable[[], float] = time.time) -> None:
        self.path = path
        self._now = now
        self.ca = str(make_authority(path, self.now).certificate)

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self._now(), UTC)

    def pair(self, name: str, **options: Any) -> Pair:
        """A certificate of this name, made if it is not there, or `force=True`."""
        pair = Pair.of(self.path, name)
        if options.get("force") or not pair.certificate.exists():
            issue(self.path, name, self.now, **({"spiffe": f"spiffe://test/{name}"} | options))
        return pair

    def server(self, name: str = "echo", *, mutual: bool = True, **options: Any) -> ServerTls:
        """Settings of a server with the certificate of this name."""
        pair = self.pair(name)
        return ServerTls(str(pair.certificate), str(pair.key), self.ca if mutual else "", **options)

    def client(self, name: str = "caller", **options: Any) -> ClientTls:
        """Settings of a client; with an empty name it has no certificate."""
        if not name:
            return ClientTls(ca=self.ca, **options)
        pair = self.pair(name)
        return ClientTls(str(pair.certificate), str(pair.key), self.ca, **options)


def settings(
    registry: str = "none", *, server: ServerTls | None = None, client: ClientTls | None = None, **options: Any
) -> Settings:
    """Settings of both sides."""
    return Settings(
        registry=registry,
        server=ServerSettings(tls=server or ServerTls(), drain=NO_WAIT, **options),
        client=ClientSettings(tls=client or ClientTls()),
    )


def told(peer: Peer | None) -> str:
    """Who somebody is: common name, SPIFFE id and every name."""
    return "nobody" if peer is None else f"{peer.subject} {peer.spiffe} {' '.join(peer.names)}"


async def who(requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
    """Answers with who calls."""
    async for _ in requests:
        yield text(told(context.peer_identity))


@asynccontextmanager
async def serving(settings: Settings, behave: Any = who, name: str = "echo") -> AsyncIterator[Server]:
    """A service that tells its callers who they are."""
    async with Service(name, servicers=[Echo(behave)]).running(settings) as server:
        yield server


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for something that nobody tells of, like a file that was looked at."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # nobody sets an event
            await asyncio.sleep(0.005)
