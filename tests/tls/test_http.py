"""HTTPS: of the gateway, and beside gRPC; with a certificate of the client's, and with files that change."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from framework import ConfigError, Context, Credentials, Identity, ServerSettings, Settings
from framework.cohosting import tls_beside
from framework.discovery.local import LocalRegistry
from framework.gateway import Gateway
from framework.gateway.gateway import Running
from framework.http.protocol import peer_of
from framework.policy import ClientSettings
from framework.server.server import Server
from framework.tls import ServerTls
from framework.web import GatewaySettings, WebSettings
from tests.gateway.lab import Shop, service
from tests.invariants.conftest import NO_WAIT
from tests.tls.lab import Folder, settings, told, until
from tests.tools import on_path

BUY = "/v1/things"
THING = {"name": "x"}


class Who(Shop):
    """Answers with who calls."""

    async def Buy(self, request: Any, context: Context) -> Any:
        request.name = told(context.peer_identity)
        return request


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[Server]:
    """A service that tells its callers who they are, under the name that the certificates have."""
    async with service("echo", Who()).running(settings) as server:
        yield server


def context(certs: Folder, name: str = "", version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """What a client trusts and shows."""
    made = ssl.create_default_context(cafile=certs.ca)
    if name:
        pair = certs.pair(name)
        made.load_cert_chain(pair.certificate, pair.key)
    if version is not None:
        made.maximum_version = version
    return made


async def post(port: int, tls: ssl.SSLContext | bool, scheme: str = "https") -> str:
    """What the service says of its caller; or how it failed."""
    url = f"{scheme}://localhost:{port}{BUY}"
    try:
        connector = aiohttp.TCPConnector(family=socket.AF_INET)
        async with (
            aiohttp.ClientSession(connector=connector) as client,
            client.post(url, json=THING, ssl=tls) as answer,
        ):
            return str((await answer.json())["name"])
    except (aiohttp.ClientError, OSError) as error:
        return type(error).__name__


def beside(certs: Folder, *, http: ServerTls | None = None, **options: Any) -> Settings:
    """gRPC with mTLS, and HTTP on a free port."""
    web = WebSettings(port=0, tls=http or ServerTls(), **options)
    return Settings(registry="none", server=ServerSettings(tls=certs.server(), http=web, drain=NO_WAIT))


async def test_beside_grpc(certs: Folder) -> None:
    """HTTP has the certificates of gRPC, and the servicer knows its caller over it too."""
    async with serving(beside(certs)) as server:
        said = await post(server.http_port, context(certs, "caller"))
        assert said.startswith("caller spiffe://test/caller caller localhost 127.0.0.1")
        assert await post(server.http_port, context(certs)) in ("ClientOSError", "ServerDisconnectedError", "SSLError")
        assert (await post(server.http_port, True, "http")) != "nobody"


async def test_what_http_has_for_itself(certs: Folder) -> None:
    """Certificates of clients that they may leave away, and a minimum that is higher."""
    tls = certs.server("web", clients="optional", minimum="1.3")
    async with serving(beside(certs, http=tls)) as server:
        assert await post(server.http_port, context(certs)) == "nobody"
        assert (await post(server.http_port, context(certs, "caller"))).startswith("caller ")
        old = context(certs, "caller", ssl.TLSVersion.TLSv1_2)
        assert await post(server.http_port, old) in ("ClientConnectorSSLError", "ClientConnectorError")


async def test_plain_http_beside_grpc_with_tls(certs: Folder) -> None:
    """For a proxy on this machine that speaks TLS itself; it takes a word."""
    async with serving(beside(certs, plaintext=True)) as server:
        assert await post(server.http_port, True, "http") == "nobody"


async def test_plain_http_beyond_this_machine(certs: Folder) -> None:
    """Is refused as plain gRPC is."""
    server = ServerSettings(host="0.0.0.0", advertise="localhost", http=WebSettings(port=0), tls=certs.server())
    exposed = ServerSettings(host="192.0.2.1", http=WebSettings(port=0))
    # Asked by itself: the gRPC server refuses first.
    with pytest.raises(ConfigError, match=r"HTTP would listen .*\[server.http.tls\]"):
        tls_beside(exposed)
    async with serving(Settings(registry="none", server=server)) as running:
        assert (await post(running.http_port, context(certs, "caller"))).startswith("caller ")


async def test_files_change_under_load(certs: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """New connections see the new certificate, those that are open go on, and no request fails."""
    monkeypatch.setattr("framework.certificates.INTERVAL", 0.02)
    failures: list[str] = []
    tls = context(certs, "caller")

    def serial(port: int) -> int:
        with socket.create_connection(("127.0.0.1", port)) as raw, tls.wrap_socket(raw, server_hostname="echo") as sock:
            shown = sock.getpeercert()
            assert shown is not None
            return int(str(shown["serialNumber"]), 16)

    async with serving(beside(certs)) as server:
        first = await asyncio.to_thread(serial, server.http_port)
        url, done = f"https://localhost:{server.http_port}{BUY}", False
        connector = aiohttp.TCPConnector(family=socket.AF_INET, limit=4)

        async def load(*, again: bool) -> int:
            made = 0
            headers = {"connection": "close"} if again else {}
            async with aiohttp.ClientSession(connector=connector, connector_owner=False) as client:
                while not done:
                    async with client.post(url, json=THING, ssl=tls, headers=headers) as answer:
                        made += 1
                        if answer.status != 200:
                            failures.append(await answer.text())
                    await asyncio.sleep(0.002)
            return made

        loads = [asyncio.create_task(load(again=again)) for again in (True, False, True)]
        certs.pair("echo", force=True)
        async with asyncio.timeout(10):
            while await asyncio.to_thread(serial, server.http_port) == first:
                pass
        done = True
        made = await asyncio.gather(*loads)
        await connector.close()
    assert failures == []
    assert min(made) > 0


@asynccontextmanager
async def gateway(certs: Folder, folder: Path, web: GatewaySettings, **options: Any) -> AsyncIterator[Running]:
    """A gateway before an echo service with mTLS."""
    url = f"sqlite:///{folder}/registry.db"
    everything = Settings(
        registry=url,
        server=ServerSettings(drain=NO_WAIT),
        client=ClientSettings(tls=certs.client("gateway")),
        gateway=web,
    )
    async with serving(settings(url, server=certs.server())):
        registry = LocalRegistry(folder / "registry.db")
        async with Gateway(everything, **options).running(registry=registry) as running:
            await asyncio.wait_for(running.until_ready(), 10)
            yield running
        await registry.aclose()


async def test_gateway(certs: Folder, tmp_path: Path) -> None:
    """HTTPS in front, mTLS behind: it shows its own certificate to the services, also when it asks what they serve."""
    async with gateway(certs, tmp_path, GatewaySettings(port=0, tls=certs.server("web", mutual=False))) as running:
        assert running.server.url == f"https://{running.address}"
        assert (await post(running.server.port, context(certs))).startswith("gateway spiffe://test/gateway")


async def test_gateway_knows_its_clients(certs: Folder, tmp_path: Path) -> None:
    """What an authenticator is given says who is at the other end, over a WebSocket too."""
    seen: list[str] = []

    class Doorman:
        async def authenticate(self, credentials: Credentials) -> Identity | None:
            seen.append("nobody" if credentials.peer is None else str(credentials.peer))
            return Identity("somebody")

    web = GatewaySettings(port=0, tls=certs.server("web", clients="optional"))
    async with gateway(certs, tmp_path, web, authenticators=[Doorman()]) as running:
        port = running.server.port
        await post(port, context(certs))
        await post(port, context(certs, "caller"))
        connector = aiohttp.TCPConnector(family=socket.AF_INET)
        async with aiohttp.ClientSession(connector=connector) as client:
            url = f"wss://localhost:{port}/v1/talk"
            async with client.ws_connect(url, ssl=context(certs, "caller")):
                await until(lambda: len(seen) == 3)
    assert seen == ["nobody", "spiffe://test/caller", "spiffe://test/caller"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([("URI", "spiffe://shop/orders")], "spiffe://shop/orders"),
        ([("DNS", "orders"), ("URI", "spiffe://shop/orders"), ("DNS", "spiffe://shop/x")], "spiffe://shop/orders"),
        ([("URI", "spiffe://shop/orders"), ("URI", "spiffe://shop/other")], ""),
        ([("URI", "spiffe://shop/orders"), ("URI", "https://shop/")], ""),
        ([("URI", "https://shop/"), ("URI", "spiffe://shop/orders")], ""),
        ([("DNS", "spiffe://shop/orders")], ""),
        ([("URI", "https://shop/")], ""),
    ],
    ids=str,
)
def test_spiffe_ids(names: list[tuple[str, str]], expected: str) -> None:
    """A certificate is that of a service when it has one URI, as over gRPC."""

    class Transport(asyncio.Transport):
        def get_extra_info(self, name: str, default: Any = None) -> Any:
            return {"subjectAltName": names}

    found = peer_of(Transport())
    assert found is not None
    assert (found.spiffe, found.names) == (expected, tuple(name for _, name in names))


async def test_gateway_in_plain_text() -> None:
    """Beyond this machine it takes a word."""
    with pytest.raises(ConfigError) as caught:
        async with Gateway(Settings(gateway=GatewaySettings(host="0.0.0.0", port=0))).running():
            pass
    assert "the gateway would listen in plain text on 0.0.0.0" in str(caught.value)
    assert "plaintext = true in [gateway] or --plaintext" in str(caught.value)


async def test_a_gateway_without_its_certificate(certs: Folder) -> None:
    """One line, before it listens."""
    web = GatewaySettings(port=0, tls=ServerTls("missing.pem", "missing.key"))
    with pytest.raises(ConfigError, match=r"^gateway.tls.certificate: /.*missing.pem cannot be read: no such file"):
        async with Gateway(Settings(gateway=web)).running():
            pass


async def test_curl(certs: Folder, tmp_path: Path) -> None:
    """An independent client, with the options of the guide."""

    def curl(port: int) -> str:
        pair = certs.pair("caller")
        shown = ["--cacert", certs.ca, "--cert", str(pair.certificate), "--key", str(pair.key)]
        url = f"https://localhost:{port}{BUY}"
        command = [on_path("curl"), "-sS", "--noproxy", "*", "-4", *shown, url, "--json", '{"name": "x"}']
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout

    async with gateway(certs, tmp_path, GatewaySettings(port=0, tls=certs.server("web"))) as running:
        assert "gateway spiffe://test/gateway" in await asyncio.to_thread(curl, running.server.port)
