"""The admin pages of a process, asked over HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import re
import socket
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from framework import ConfigError, Service, Settings, connect
from framework.admin import PLACES, Effective, settings_rows
from framework.client.pool import live
from framework.config import ServerSettings
from framework.discovery.targets import NO_REGISTRY
from framework.observation import AdminSettings
from framework.parsing import Secret, Table, secret, setting
from tests.cli.lab import start, write
from tests.invariants.echo import Echo, EchoClient, text

SETTINGS = Settings(registry=NO_REGISTRY, server=ServerSettings())


class Slow(Echo):
    """Answers when it is told to."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.answer = asyncio.Event()

    async def UnaryUnary(self, request: Any, context: Any) -> Any:
        self.called.set()
        await self.answer.wait()
        return request


class Pages:
    """The pages of one process."""

    def __init__(self, client: aiohttp.ClientSession, address: str) -> None:
        self._client = client
        self.address = address

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Status and content of a page."""
        async with self._client.get(f"http://{self.address}{path}", headers=headers) as answer:
            as_json = answer.content_type == "application/json"
            return answer.status, await (answer.json() if as_json else answer.text())


@asynccontextmanager
async def pages(
    caplog: pytest.LogCaptureFixture, service: Service, settings: Settings = SETTINGS
) -> AsyncIterator[tuple[Any, Pages]]:
    """A service that runs, and its pages, whose address the log says."""
    caplog.set_level(logging.INFO, "framework")
    async with service.running(settings, admin=True) as server, aiohttp.ClientSession() as client:
        (address,) = re.findall(r"admin pages on http://(\S+)", caplog.text)
        yield server, Pages(client, address)


async def test_health(caplog: pytest.LogCaptureFixture) -> None:
    """It is ready while it serves; alive as long as it answers."""
    async with pages(caplog, Service("echo", servicers=[Echo()])) as (server, shown):
        assert await shown.get("/healthz") == (200, {"status": "SERVING"})
        status, said = await shown.get("/readyz")
        assert (status, said["service"], said["status"]) == (200, "echo", "SERVING")
        server.health.shut_down()
        status, said = await shown.get("/readyz")
        assert (status, said["status"], said["reason"]) == (503, "NOT_SERVING", f"{server.address} does not serve")
        assert (await shown.get("/healthz"))[0] == 200


async def test_calls_in_flight_and_endpoints(caplog: pytest.LogCaptureFixture) -> None:
    """What is served, with its age, and whom this process calls, with load and breaker."""
    slow = Slow()
    async with (
        pages(caplog, Service("echo", servicers=[slow])) as (server, shown),
        connect(server.address, settings=SETTINGS) as channel,
    ):
        assert (await shown.get("/calls"))[1] == {"in_flight": 0, "calls": []}
        call = asyncio.ensure_future(EchoClient(channel).UnaryUnary(text("a"), timeout=20))
        await slow.called.wait()
        found = (await shown.get("/calls"))[1]
        assert found["in_flight"] == 1
        (row,) = found["calls"]
        assert row["method"].endswith("/UnaryUnary")
        assert 0 <= row["age_ms"] < 20_000
        assert 0 < row["left_ms"] < 20_000
        assert row["peer"].startswith("ipv4:127.0.0.1:")
        assert row["request_id"]
        (called,) = [one for one in (await shown.get("/endpoints"))[1] if one["service"] == server.address]
        (endpoint,) = called["endpoints"]
        assert endpoint["address"] == server.address
        assert (endpoint["state"], endpoint["in_flight"], endpoint["breaker"]) == ("ready", 1, "closed")
        slow.answer.set()
        await call
        assert (await shown.get("/calls"))[1]["in_flight"] == 0
        (called,) = [one for one in (await shown.get("/endpoints"))[1] if one["service"] == server.address]
        assert called["endpoints"][0]["in_flight"] == 0
        assert called["endpoints"][0]["latency_ms"] > 0
    assert channel.pool not in live


async def test_metrics(caplog: pytest.LogCaptureFixture) -> None:
    """As Prometheus reads them."""
    async with pages(caplog, Service("echo", servicers=[Echo()])) as (server, shown):
        async with connect(server.address, settings=SETTINGS) as channel:
            await EchoClient(channel).UnaryUnary(text("a"))
        status, said = await shown.get("/metrics")
        assert status == 200
        assert re.search(r'rpc_server_call_duration_seconds_count\{.*UnaryUnary".*code="OK"\} 1\n', said)


async def test_certificates_among_the_metrics(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When each ends, by its file: what the alerts on certificates are about."""
    monkeypatch.setattr("framework.telemetry.process.expiry", lambda: {"catalog.pem": 1.8e9})
    async with pages(caplog, Service("echo", servicers=[Echo()])) as (_, shown):
        assert (
            'framework_tls_certificate_expiry_seconds{file="catalog.pem"} 1800000000\n'
            in (await shown.get("/metrics"))[1]
        )


async def test_settings_that_hold(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Each with who says so."""
    file = tmp_path / "framework.toml"
    file.write_text('registry = "none"\n[client.catalog]\ntimeout = "2s"\n[server]\nmax_message = 2048\n')
    settings = Settings.load(file, {"FRAMEWORK_SERVER_PORT": "0", "FRAMEWORK_ADMIN_HOST": "127.0.0.1"})
    async with pages(caplog, Service("echo", servicers=[Echo()]), settings) as (_, shown):
        rows = {row["setting"]: (row["value"], row["origin"]) for row in (await shown.get("/settings"))[1]}
    assert rows["client.catalog.timeout"] == ("2s", "client.catalog.timeout")
    assert rows["server.max_message"] == ("2048", "server.max_message")
    assert rows["server.port"] == ("0", "FRAMEWORK_SERVER_PORT")
    assert rows["server.drain.grace"] == ("30s", "default")
    assert rows["admin.port"] == ("0", "default")


def test_secrets_are_hidden() -> None:
    """Secrets by their type, credentials by their name or in a URL."""

    @dataclasses.dataclass(frozen=True, slots=True)
    class Keys(Table):
        signing: Secret = setting(Secret(""), secret)
        api_key: str = setting("", lambda value, where: value)

    keys = Keys(signing=Secret("topsecret"), api_key="topsecret")
    settings = Settings(registry="consul://me:topsecret@127.0.0.1:8500", admin=keys)  # type: ignore[arg-type]
    rows = {row["setting"]: row["value"] for row in settings_rows(settings)}
    assert "topsecret" not in str(rows)
    assert rows["admin.signing"] == "***"
    assert rows["admin.api_key"] == "[REDACTED]"
    assert rows["registry"] == "consul://me:[REDACTED]@127.0.0.1:8500"


def test_settings_follow_the_file_as_the_clients_do() -> None:
    """What a server was started with stays."""
    effective = Effective(Settings(server=ServerSettings(port=1)))
    effective.changed(Settings(registry="none", server=ServerSettings(port=2)))
    assert (effective.now.server.port, effective.now.registry) == (1, "local")


async def test_a_page_for_people(caplog: pytest.LogCaptureFixture) -> None:
    """All of it on one page; what others have said of themselves cannot run there."""
    service = Service("echo<script>", servicers=[Echo()])
    async with pages(caplog, service) as (_, shown):
        status, said = await shown.get("/")
        assert status == 200
        assert "<script>" not in said
        assert "echo&lt;script&gt;" in said
        assert "Calls in flight: 0" in said


async def test_uptime_is_counted_from_the_start(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not from when the first page was asked for."""
    now = 100.0
    monkeypatch.setattr("framework.admin.time", SimpleNamespace(monotonic=lambda: now))
    async with pages(caplog, Service("echo", servicers=[Echo()])) as (_, shown):
        now = 107.5
        _, said = await shown.get("/readyz")
        assert said["uptime_s"] == 7.5


async def test_pages_that_cannot_be_made(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is logged, nobody waits for them, and the service goes on."""

    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no pages today")

    monkeypatch.setattr("framework.admin.application", broken)
    async with pages(caplog, Service("echo", servicers=[Echo()])) as (server, shown):
        with pytest.raises(aiohttp.ClientConnectionError):
            await asyncio.wait_for(shown.get("/healthz"), 10)
        assert "no pages today" in caplog.text
        async with connect(server.address, settings=SETTINGS) as channel:
            assert (await EchoClient(channel).UnaryUnary(text("a"), timeout=5)).value == "a"


async def test_only_for_this_machine(caplog: pytest.LogCaptureFixture) -> None:
    """On loopback by default, and not under a name that a page of somebody else may have bent to it."""
    async with pages(caplog, Service("echo", servicers=[Echo()])) as (_, shown):
        port = shown.address.rpartition(":")[2]
        assert shown.address.startswith("127.0.0.1:")
        assert (await shown.get("/settings", Host=f"evil.example:{port}"))[0] == 403
        assert (await shown.get("/settings", Host=f"localhost:{port}"))[0] == 200
        assert (await shown.get("/other"))[0] == 404


async def test_port_in_use(caplog: pytest.LogCaptureFixture) -> None:
    """One line says which, and what to do."""
    async with pages(caplog, Service("echo", servicers=[Echo()])) as (_, shown):
        port = int(shown.address.rpartition(":")[2])
        settings = dataclasses.replace(SETTINGS, admin=AdminSettings(port=port))
        with pytest.raises(ConfigError, match=rf"admin: port {port} on 127\.0\.0\.1 is in use .*FRAMEWORK_ADMIN_PORT"):
            async with Service("other", servicers=[Echo()]).running(settings, admin=True):
                pass


async def test_none_unless_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    """A service that is run within a program has none, and neither has one whose settings say so."""
    caplog.set_level(logging.INFO, "framework")
    off = dataclasses.replace(SETTINGS, admin=AdminSettings(port=None))
    for settings, admin in ((SETTINGS, False), (off, True)):
        async with Service("echo", servicers=[Echo()]).running(settings, admin=admin):
            pass
    assert "admin pages" not in caplog.text


LOADED = """
import asyncio, logging, sys
from framework import Service, Settings
from tests.invariants.echo import Echo, repeat

class Ports(logging.Handler):
    def emit(self, record):
        if record.msg == "%s has its admin pages on http://%s":
            self.port = record.args[1].rpartition(":")[2]

async def main():
    ports = Ports()
    logging.getLogger("framework").setLevel(logging.INFO)
    logging.getLogger("framework").addHandler(ports)
    async with Service("quiet", servicers=[Echo(repeat)]).running(Settings(registry="none"), admin=True):
        heavy = {"aiohttp", "protovalidate"}
        assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()
        reader, writer = await asyncio.open_connection("127.0.0.1", ports.port)
        writer.write(b"GET /healthz HTTP/1.0\\r\\n\\r\\n")
        print((await reader.read()).partition(b"\\r\\n")[0].decode(), "aiohttp" in sys.modules)

asyncio.run(main())
"""


def test_what_makes_them_is_loaded_when_somebody_asks() -> None:
    """It takes as long as all the rest of a service's start."""
    ran = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=60, check=False)
    assert ran.stdout.split() == ["HTTP/1.0", "200", "OK", "True"], ran.stderr


def test_every_worker_has_its_own(tmp_path: Path) -> None:
    """`framework run` has them, and of several workers each takes the next free port."""
    folder = write(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = ("-m", "framework", "run", "lab_service", "--workers", "2")
    with start(folder, *command, FRAMEWORK_REGISTRY="none", FRAMEWORK_ADMIN_PORT=port) as process:
        try:
            assert process.stderr is not None
            found: dict[str, str] = {}
            while len(found) < 2:
                line = process.stderr.readline()
                assert line, found
                if said := re.search(r"lab has its admin pages on http://(\S+) .*pid=(\d+)", line):
                    found[said[2]] = said[1]
            assert len(set(found.values())) == 2
            for pid, address in found.items():
                assert port <= int(address.rpartition(":")[2]) <= port + PLACES
                with urllib.request.urlopen(f"http://{address}/readyz", timeout=10) as answer:
                    assert json.load(answer)["pid"] == int(pid)
        finally:
            process.terminate()
            process.communicate(timeout=20)
