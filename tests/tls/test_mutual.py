"""TLS and mTLS between real servers and real clients: who may talk, who is known, and what is said otherwise."""

from __future__ import annotations

import asyncio
import logging
import subprocess
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from framework import ConfigError, Instance, Unavailable, connect
from framework.client.connect import connect_to
from framework.config import Settings
from framework.discovery.targets import open_registry
from framework.policy import ClientSettings
from framework.tls import ClientTls
from tests.invariants.echo import EchoClient, text
from tests.tls.lab import Folder, serving, settings
from tests.tools import on_path, tool


async def ask(target: str, settings: Settings) -> str:
    async with connect(target, settings=settings) as channel:
        return (await EchoClient(channel).UnaryUnary(text(""), timeout=5)).value


async def refused(target: str, settings: Settings) -> str:
    """Why a call fails that leaves nothing."""
    with pytest.raises(Unavailable) as caught:
        await ask(target, settings)
    assert caught.value.sent is False
    return caught.value.message


async def test_both_sides_show_a_certificate(certs: Folder) -> None:
    """The servicer knows its caller: common name, SPIFFE id and every name."""
    async with serving(settings(server=certs.server())) as server:
        said = await ask(server.address, settings(client=certs.client()))
    assert said == "caller spiffe://test/caller caller localhost 127.0.0.1 ::1 spiffe://test/caller"


async def test_only_the_server_shows_one(certs: Folder) -> None:
    """Without a ca the server asks nobody, and knows nobody."""
    async with serving(settings(server=certs.server(mutual=False))) as server:
        assert await ask(server.address, settings(client=certs.client(""))) == "nobody"


async def test_in_plain_text_nobody_is_known() -> None:
    """There is no certificate to know anybody by."""
    async with serving(settings()) as server:
        assert await ask(server.address, settings()) == "nobody"


async def test_an_instance_tells_what_it_speaks(certs: Folder, tmp_path: Path) -> None:
    """The registration says so; the name in the certificate is that of the service, wherever it runs."""
    url = f"sqlite:///{tmp_path}/registry.db"
    both = settings(url, server=certs.server(), client=certs.client())
    async with serving(both), aclosing(open_registry(url)) as registry:
        [instance] = (await registry.services())["echo"].values()
        assert instance.protocol == "grpc-mtls"
        assert (await ask("echo", both)).startswith("caller ")
        async with connect_to(instance, both) as channel:
            assert (await EchoClient(channel).UnaryUnary(text(""), timeout=5)).value.startswith("caller ")
        where = f"echo at {instance.address}"
        assert f"{where} speaks TLS, and nothing says whom to trust: name its authority as ca" in await refused(
            "echo", settings(url)
        )
        assert f"{where} asks for a certificate, and there is none: name certificate and key" in await refused(
            "echo", settings(url, client=certs.client(""))
        )


async def test_the_name_of_another_service(certs: Folder, tmp_path: Path) -> None:
    """A certificate of another service is not taken for the one that was asked for, unless settings name it."""
    url = f"sqlite:///{tmp_path}/registry.db"
    async with serving(settings(url, server=certs.server("other"))):
        client = certs.client()
        assert "its certificate is for another name" in await refused("echo", settings(url, client=client))
        named = certs.client(server_name="other")
        assert (await ask("echo", settings(url, client=named))).startswith("caller ")


async def test_somebody_elses_authority(certs: Folder, tmp_path: Path) -> None:
    """Neither side takes a certificate of an authority that it does not know, and the client says what is wrong."""
    foreign = Folder(tmp_path / "foreign")
    async with serving(settings(server=certs.server())) as server:
        trusting_others = ClientTls(ca=foreign.ca)
        assert "signed by nobody that is trusted" in await refused(server.address, settings(client=trusting_others))
        pair = foreign.pair("caller")
        stranger = ClientTls(str(pair.certificate), str(pair.key), certs.ca)
        assert "as it does with a client whose certificate it does not take" in await refused(
            server.address, settings(client=stranger)
        )
        nobody = certs.client("")
        assert "as it does with a client whose" in await refused(server.address, settings(client=nobody))


async def test_a_server_without_tls(certs: Folder) -> None:
    """A client that wants TLS never falls back, and says what the other side speaks."""
    async with serving(settings()) as server:
        assert "it speaks no TLS" in await refused(server.address, settings(client=certs.client()))


async def test_moving_to_tls(certs: Folder, tmp_path: Path) -> None:
    """With `plaintext` a client speaks to each instance as that says, so that servers can be changed one by one."""
    url = f"sqlite:///{tmp_path}/registry.db"
    client = Settings(registry=url, client=ClientSettings(tls=certs.client(), plaintext=True))
    async with serving(settings(url)):
        assert await ask("echo", client) == "nobody"
    async with serving(settings(url, server=certs.server())):
        assert (await ask("echo", client)).startswith("caller ")


PLAIN = ClientSettings(plaintext=True)


@pytest.mark.parametrize(
    ("target", "refused"),
    [
        ("10.1.2.3:50051", True),
        ("catalog.internal:50051", True),
        ("static://127.0.0.1:1,10.1.2.3:2", True),
        ("dns:///catalog:50051", True),
        ("[2001:db8::1]:50051", True),
        ("127.0.0.1:50051", False),
        ("127.9.9.9:50051", False),
        ("localhost:50051", False),
        ("[::1]:50051", False),
        ("dns:///localhost:50051", False),
        ("unix:/run/catalog.sock", False),
    ],
)
async def test_plain_text_beyond_this_machine(target: str, refused: bool) -> None:
    """A client refuses it at once, unless it is allowed by name."""
    try:
        await connect(target, settings=Settings()).close()
        said = ""
    except ConfigError as error:
        said = str(error)
    assert ("would be called in plain text, beyond this machine" in said) is refused
    await connect(target, settings=Settings(client=PLAIN)).close()


async def test_plain_text_to_an_instance_elsewhere(tmp_path: Path) -> None:
    """What the registry says is no reason to speak in the open."""
    url = f"sqlite:///{tmp_path}/registry.db"
    async with aclosing(open_registry(url)) as registry:
        await registry.register(Instance("far-1", "far", "192.0.2.1:1"))
        assert "far at 192.0.2.1:1 would be called in plain text" in await refused("far", Settings(registry=url))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "shop.internal", ""])
async def test_listening_in_plain_text(host: str) -> None:
    """A server does not listen beyond this machine without certificates, unless it is allowed by name."""
    with pytest.raises(ConfigError) as caught:
        async with serving(settings(host=host)):
            pass
    assert "the server would listen in plain text on" in str(caught.value)
    assert "plaintext = true in [server] or --plaintext" in str(caught.value)


async def test_listening_everywhere_with_certificates(certs: Folder) -> None:
    """With TLS there is nothing to allow."""
    async with serving(settings(server=certs.server(), host="0.0.0.0", advertise="localhost")) as server:
        assert (await ask(f"localhost:{server.port}", settings(client=certs.client()))).startswith("caller ")


@pytest.mark.parametrize(("option", "told"), [("clients", "clients is optional"), ("minimum", "minimum is 1.3")])
async def test_what_grpc_cannot_do(certs: Folder, option: str, told: str) -> None:
    """It is said, and not left out in silence."""
    said: dict[str, Any] = {option: {"clients": "optional", "minimum": "1.3"}[option]}
    tls = certs.server(**said)
    with pytest.raises(ConfigError, match=f"server.tls.{told}"):
        async with serving(settings(server=tls)):
            pass


async def test_grpcurl(certs: Folder) -> None:
    """An independent client is let in with a certificate, and not without."""
    pair = certs.pair("caller")
    shown = ["-cacert", certs.ca, "-cert", str(pair.certificate), "-key", str(pair.key)]

    def grpcurl(*options: str) -> subprocess.CompletedProcess[str]:
        command = [tool("grpcurl"), "-max-time", "5", *options, "list"]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)

    async with serving(settings(server=certs.server())) as server:
        with_one = await asyncio.to_thread(grpcurl, *shown, server.address)
        without = await asyncio.to_thread(grpcurl, "-cacert", certs.ca, server.address)
    assert "echo.v1.Echo" in with_one.stdout.splitlines()
    assert without.returncode != 0


async def test_openssl_finds_no_old_version(certs: Folder) -> None:
    """TLS 1.2 and 1.3 are spoken, and nothing older."""

    def handshake(port: int, version: str) -> bool:
        command = [on_path("openssl"), "s_client", "-connect", f"127.0.0.1:{port}", "-alpn", "h2"]
        ciphers = ["-cipher", "ALL:@SECLEVEL=0"] if version in ("-tls1", "-tls1_1") else []
        ran = subprocess.run([*command, version, *ciphers], input=b"", capture_output=True, timeout=20, check=False)
        return b"BEGIN CERTIFICATE" in ran.stdout

    async with serving(settings(server=certs.server(mutual=False))) as server:
        spoken = [
            v for v in ("-tls1", "-tls1_1", "-tls1_2", "-tls1_3") if await asyncio.to_thread(handshake, server.port, v)
        ]
    assert spoken == ["-tls1_2", "-tls1_3"]


async def test_keys_are_not_logged(certs: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing that is said holds a key."""
    with caplog.at_level(logging.DEBUG):
        async with serving(settings(server=certs.server())) as server:
            await ask(server.address, settings(client=certs.client()))
    assert "PRIVATE" not in caplog.text


SHOP = "spiffe://test/{service}"


async def test_a_server_with_the_spiffe_id(certs: Folder, tmp_path: Path) -> None:
    """A client that asks for an id takes it whatever name the certificate has, and nobody else's."""
    url = f"sqlite:///{tmp_path}/registry.db"
    certs.pair("other", spiffe="spiffe://test/echo")
    async with serving(settings(url, server=certs.server("other"))):
        assert (await ask("echo", settings(url, client=certs.client(spiffe=SHOP)))).startswith("caller ")
    async with serving(settings(url, server=certs.server("third"))):
        told = await refused("echo", settings(url, client=certs.client(spiffe=SHOP)))
        assert "it is spiffe://test/third, and not spiffe://test/echo" in told


async def test_a_spiffe_id_of_somebody_elses_authority(certs: Folder, tmp_path: Path) -> None:
    """Anybody can write an id into a certificate; it has to be signed by who is trusted."""
    foreign = Folder(tmp_path / "foreign")
    async with serving(settings(server=foreign.server("echo", mutual=False))) as server:
        told = await refused(server.address, settings(client=certs.client(spiffe="spiffe://test/echo")))
    assert "its certificate is signed by nobody that is trusted" in told


async def test_an_id_that_cannot_be_asked_for(certs: Folder) -> None:
    """What grpc resolves by itself has no one address to look at."""
    with pytest.raises(ConfigError, match="cannot be asked for a SPIFFE id: that takes host:port"):
        connect("dns:///localhost:1", settings=settings(client=certs.client(spiffe="spiffe://test/echo")))
    with pytest.raises(ConfigError, match="is no SPIFFE id; write for example"):
        certs.client(spiffe="echo")
