"""Certificates that are replaced while calls are made: none of them fails, and the new ones are used."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from framework import Settings, connect
from framework.client.dropin import Channel
from framework.security.certs import make_authority
from tests.invariants.echo import EchoClient, text
from tests.tls.lab import Folder, serving, settings, until, who
from tests.workers.supervised import Supervised, supervised, write

CALLERS = 4
PAUSE = 0.005  # seconds between two calls of a caller, in which others have the machine


class Load:
    """Calls that are made one after another by several callers, as long as the block runs.

    Attributes:
        answered: how many.
        failures: what went wrong.
        latest: what was answered last.
    """

    def __init__(self, channel: Channel) -> None:
        self.answered = 0
        self.failures: list[str] = []
        self.latest = ""
        self._client = EchoClient(channel)
        self._stop = False

    async def _call(self) -> None:
        while not self._stop:
            try:
                self.latest = (await self._client.UnaryUnary(text(""), timeout=10)).value
                self.answered += 1
            except Exception as error:
                self.failures.append(str(error))
            await asyncio.sleep(PAUSE)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._call())
            try:
                yield self
            finally:
                self._stop = True

    async def more(self, count: int = 50) -> None:
        """Return once that many more calls were answered."""
        wanted = self.answered + count
        await until(lambda: self.answered >= wanted or bool(self.failures))


def bundle(certs: Folder, *parts: bytes) -> None:
    Path(certs.ca).write_bytes(b"".join(parts))


def content(certs: Folder) -> bytes:
    return Path(certs.ca).read_bytes()


@contextlib.asynccontextmanager
async def calling(both: Settings, target: str) -> AsyncIterator[tuple[Channel, Load]]:
    """A client that calls all the time."""
    async with connect(target, settings=both) as channel, Load(channel).running() as load:
        yield channel, load


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at often, and connections are replaced soon."""
    monkeypatch.setattr("framework.certificates.INTERVAL", 0.02)
    monkeypatch.setattr("framework.client.pool.SPREAD", 0.02)
    monkeypatch.setattr("framework.client.pool.AGAIN", 0.1)


@pytest.mark.usefixtures("quick")
async def test_everything_is_replaced_under_load(certs: Folder) -> None:
    """The client's certificate; then the authority: one more, certificates of the new one, the old one away."""
    both = settings(server=certs.server(), client=certs.client())
    async with serving(both) as server, calling(both, server.address) as (channel, load):
        await load.more()
        assert "spiffe://test/caller " in f"{load.latest} "
        certs.pair("caller", force=True, spiffe="spiffe://test/caller/2")
        await until(lambda: "spiffe://test/caller/2" in load.latest)

        old = content(certs)
        make_authority(certs.path, certs.now, force=True)
        new = content(certs)
        first = channel.pool.endpoints[0]
        bundle(certs, new, old)  # certificates are issued by the first
        await until(lambda: channel.pool.endpoints[0] is not first)
        for name in ("echo", "caller"):
            certs.pair(name, force=True, spiffe=f"spiffe://test/{name}/3")
        await until(lambda: "spiffe://test/caller/3" in load.latest)
        second = channel.pool.endpoints[0]
        bundle(certs, new)
        await until(lambda: channel.pool.endpoints[0] is not second)
        await load.more()
    assert load.failures == []
    assert load.answered > 100


@pytest.mark.usefixtures("quick")
async def test_a_server_known_by_its_id(certs: Folder) -> None:
    """Trust in the one certificate that was looked at moves on with the certificates of both sides."""
    both = settings(server=certs.server(), client=certs.client(spiffe="spiffe://test/echo"), max_connection_age=0.2)
    async with serving(both) as server, calling(both, server.address) as (_, load):
        await load.more()
        certs.pair("echo", force=True)  # each connection is made with it from now on, after at most 0.2 s
        await load.more(200)
        certs.pair("caller", force=True, spiffe="spiffe://test/caller/2")
        await until(lambda: "spiffe://test/caller/2" in load.latest)
        await load.more()
    assert load.failures == []


@pytest.mark.usefixtures("quick")
async def test_new_certificates_that_are_not_taken(
    certs: Folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that works stays when one with the new certificates cannot be made; good ones are used later."""
    caplog.set_level(logging.INFO)
    both = settings(server=certs.server(), client=certs.client())
    foreign = Folder(tmp_path / "foreign")
    pair, stranger = certs.pair("caller"), foreign.pair("caller")
    async with serving(both) as server, calling(both, server.address) as (_, load):
        await load.more()
        pair.key.write_bytes(stranger.key.read_bytes())
        pair.certificate.write_bytes(stranger.certificate.read_bytes())
        await until(lambda: "cannot be made with the new certificates; those of before stay" in caplog.text)
        await load.more()
        assert "spiffe://test/caller " in f"{load.latest} "
        certs.pair("caller", force=True, spiffe="spiffe://test/caller/2")
        await until(lambda: "spiffe://test/caller/2" in load.latest)
    assert load.failures == []


@pytest.mark.usefixtures("quick")
async def test_a_pair_that_is_half_written(certs: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """What was read before stays in use, one line says why, and the whole pair is used once it is there."""
    both = settings(server=certs.server(), client=certs.client())
    pair = certs.pair("caller")
    key, certificate = pair.key.read_bytes(), pair.certificate.read_bytes()
    certs.pair("caller", force=True, spiffe="spiffe://test/caller/2")
    later = pair.key.read_bytes(), pair.certificate.read_bytes()
    pair.key.write_bytes(key)
    pair.certificate.write_bytes(certificate)
    async with serving(both) as server, calling(both, server.address) as (_, load):
        await load.more()
        pair.key.write_bytes(later[0])
        await until(lambda: "does not belong to the certificate" in caplog.text)
        await load.more()
        pair.certificate.write_bytes(later[1])
        await until(lambda: "spiffe://test/caller/2" in load.latest)
    assert load.failures == []
    assert [r.getMessage() for r in caplog.records if r.levelname == "ERROR"] == [
        f"client.tls: the key {pair.key} does not belong to the certificate {pair.certificate}; "
        "what was read before stays in use"
    ]


@pytest.mark.usefixtures("quick")
async def test_an_open_stream_goes_on(certs: Folder) -> None:
    """A stream stays on its connection, which is closed when the stream ends."""
    both = settings(server=certs.server(), client=certs.client())
    async with serving(both, who) as server, connect(server.address, settings=both) as channel:
        client = EchoClient(channel)
        feed: asyncio.Queue[str | None] = asyncio.Queue()

        async def requests() -> AsyncIterator[object]:
            while (value := await feed.get()) is not None:
                yield text(value)

        stream = client.StreamStream(requests())  # type: ignore[arg-type]  # messages, all of them
        replies = aiter(stream)
        feed.put_nowait("1")
        assert "spiffe://test/caller" in (await anext(replies)).value
        before = channel.pool.endpoints[0]
        certs.pair("caller", force=True, spiffe="spiffe://test/caller/2")
        await until(lambda: channel.pool.endpoints[0] is not before)
        assert "spiffe://test/caller/2" in (await client.UnaryUnary(text(""), timeout=5)).value
        feed.put_nowait("2")
        assert "spiffe://test/caller/2" not in (await anext(replies)).value
        assert before.pending == 1
        feed.put_nowait(None)
        assert [reply async for reply in replies] == []
        await until(lambda: not before.transport.ready)


SETTINGS = """\
[server.tls]
certificate = "certs/echo.pem"
key = "certs/echo.key"
ca = "certs/ca.pem"
"""


async def replaced_in_every_worker(running: Supervised, count: int) -> None:
    for _ in range(count):
        await running.until("server.tls has changed")


@pytest.mark.usefixtures("quick")
async def test_workers(tmp_path: Path) -> None:
    """Every worker reads new files, while clients connect to them again and again; no call fails."""
    write(tmp_path, first="import framework.certificates\nframework.certificates.INTERVAL = 0.1")
    certs = Folder(tmp_path / "certs")
    certs.pair("echo")
    (tmp_path / "framework.toml").write_text(SETTINGS)
    client: Settings = settings(f"sqlite:///{tmp_path}/registry.db", client=certs.client())
    async with supervised(tmp_path, FRAMEWORK_SERVER_CONNECTION_AGE="300ms") as running:
        await running.serves()
        async with calling(client, "echo") as (channel, load):
            await load.more()
            certs.pair("echo", force=True)
            await replaced_in_every_worker(running, 2)
            await load.more()
            old = content(certs)
            make_authority(certs.path, certs.now, force=True)
            new = content(certs)
            bundle(certs, new, old)
            await replaced_in_every_worker(running, 2)
            first = channel.pool.endpoints[0]
            certs.pair("echo", force=True)
            certs.pair("caller", force=True)
            await replaced_in_every_worker(running, 2)
            await until(lambda: channel.pool.endpoints[0] is not first)
            bundle(certs, new)
            await replaced_in_every_worker(running, 2)
            await load.more(200)
        assert load.failures == []
        assert await running.ended(signal.SIGTERM) == 0
