"""Calls that go past grpc over TLS: who is believed, by what name, and what happens when certificates change."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from framework import connect
from framework.certificates import TlsFiles, client_context
from framework.client.direct import Direct
from framework.client.wire import GrpcTransport
from framework.policy import KeepaliveSettings
from framework.tls import SYSTEM, ClientTls
from tests.client.test_direct import way
from tests.invariants.conftest import until
from tests.invariants.echo import EchoClient, text
from tests.tls.lab import Folder, serving, settings

ENCRYPTED = ec.generate_private_key(ec.SECP256R1()).private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
)


@asynccontextmanager
async def going(address: str, client: ClientTls, name: str = "") -> AsyncIterator[Direct]:
    """The way to an address, and an attempt to connect that is over."""
    files = TlsFiles(client, "client.tls")
    direct = Direct(
        address,
        connect_timeout=5,
        max_message=1 << 20,
        keepalive=KeepaliveSettings(),
        secure=files.context,
        server_name=name,
    )
    direct.connect()
    assert direct._task is not None
    await asyncio.wait([direct._task])
    try:
        yield direct
    finally:
        await direct.aclose()


async def ask(channel: Any) -> str:
    return (await EchoClient(channel).UnaryUnary(text(""), timeout=5)).value


async def test_the_servicer_knows_who_calls(certs: Folder) -> None:
    """The connection shows the certificate that grpc's own shows."""
    both = settings(server=certs.server(), client=certs.client())
    async with serving(both) as server, connect(server.address, settings=both) as channel:
        await ask(channel)
        await until(lambda: way(channel).connection)
        through_grpc = channel.pool.endpoints[0].transport._channel  # type: ignore[attr-defined]  # of grpc
        await through_grpc.close()  # so that it cannot be that
        assert (await ask(channel)).startswith("caller spiffe://test/caller")


@pytest.mark.parametrize(("name", "taken"), [("echo", True), ("", True), ("other", False), ("echo.", False)])
async def test_the_name_in_the_certificate(certs: Folder, name: str, taken: bool) -> None:
    """It has to be the one that is asked for; without one, the host's."""
    async with (
        serving(settings(server=certs.server())) as server,
        going(server.address, certs.client(), name) as direct,
    ):
        assert (direct.connection is not None) is taken


async def test_a_common_name_is_no_name(certs: Folder) -> None:
    """As gRPC has it: only alternative names count."""
    context = client_context(certs.client(), TlsFiles(certs.client(), "client.tls").current, named=True)
    assert context.check_hostname
    assert context.hostname_checks_common_name is False
    assert context.verify_mode is ssl.CERT_REQUIRED


def test_one_context_until_the_files_change(certs: Folder) -> None:
    """It is made when it is first needed; a pass phrase of a key that was put there since is asked of nobody."""
    shown = certs.client()
    files = TlsFiles(shown, "client.tls")
    first = files.context()
    assert files.context() is first
    certs.pair("caller", force=True)
    files.look()
    files.look()
    assert files.context() is not first
    Path(shown.key).write_bytes(ENCRYPTED)
    with pytest.raises(OSError, match="SSL"):
        client_context(shown, files.current, named=True)


@pytest.mark.parametrize(("ca", "there"), [("", True), (SYSTEM, False)])
async def test_authorities_of_the_machine_are_left_to_grpc(certs: Folder, ca: str, there: bool) -> None:
    """It may have others than the standard library, and be told so by its own variable."""
    files = TlsFiles(ClientTls(ca=ca or certs.ca), "client.tls")
    transport = GrpcTransport("127.0.0.1:1", connect_timeout=1, max_message=1 << 20, tls=files, direct=True)
    assert (transport.direct is not None) is there


async def test_nobody_else_is_believed(certs: Folder, tmp_path: Path) -> None:
    """A server with a certificate of another authority, and one that does not take ours."""
    (tmp_path / "others").mkdir()
    others = Folder(tmp_path / "others")
    async with (
        serving(settings(server=certs.server())) as server,
        going(server.address, others.client(""), "echo") as untrusted,
        going(server.address, certs.client(""), "echo") as unknown,
    ):
        assert untrusted.connection is None
        assert unknown.connection is None


@pytest.mark.parametrize("offered", [["http/1.1"], []])
async def test_a_server_without_http2_is_left_alone(certs: Folder, offered: list[str]) -> None:
    """It has to be agreed on in the handshake."""
    pair = certs.pair("echo")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    if offered:
        context.set_alpn_protocols(offered)

    async def settle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0\0\0\4\0\0\0\0\0")  # settings, all as they are
        await reader.read()
        writer.close()

    server = await asyncio.start_server(settle, "127.0.0.1", 0, ssl=context)
    async with server, going(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", certs.client("")) as direct:
        assert direct.connection is None
        assert not direct._connections


async def test_new_certificates_lose_no_call(certs: Folder) -> None:
    """Calls go on while the connection is replaced by one with the new certificate."""
    both = settings(server=certs.server(), client=certs.client())
    async with serving(both) as server, connect(server.address, settings=both) as channel:
        await ask(channel)
        await until(lambda: way(channel).connection)
        before = way(channel)
        done = asyncio.Event()

        async def calls() -> int:
            count = 0
            while not done.is_set():
                assert (await ask(channel)).startswith("caller ")
                count += 1
            return count

        calling = asyncio.create_task(calls())
        certs.pair("caller", force=True)
        await until(lambda: way(channel) is not before and way(channel).connection)
        done.set()
        assert await calling > 0
        await until(lambda: before.connection is None)
