"""`framework services`: who is registered, and whether it answers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from framework.discovery import Instance, Registry
from framework.discovery.targets import open_registry
from tests.cli.lab import Serving, framework, serving, start, write
from tests.consul_agent import ConsulAgent, free_ports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the module `lab_service`."""
    return write(tmp_path_factory.mktemp("services"))


@pytest.fixture(scope="module")
def url(folder: Path) -> str:
    """A registry, in which a lab is registered while `lab` is in use."""
    return f"sqlite:///{folder}/registry.db"


@pytest.fixture(scope="module")
def lab(folder: Path, url: str) -> Iterator[Serving]:
    """A service that runs."""
    with serving(folder, FRAMEWORK_REGISTRY=url) as server:
        yield server


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    """A registry of the test's own."""
    registry = open_registry(f"sqlite:///{tmp_path}/registry.db")
    yield registry
    await registry.aclose()


def dead(name: str = "gone") -> Instance:
    """An instance that is registered, but answers nobody."""
    return Instance(f"{name}-1", name, f"127.0.0.1:{free_ports(1)[0]}")


def test_table(lab: Serving, folder: Path, url: str) -> None:
    """One row per instance, with what it says about itself; exit code 0 when all are SERVING."""
    ran = framework(folder, "services", FRAMEWORK_REGISTRY=url, COLUMNS=200)
    row = next(line for line in ran.stdout.splitlines() if lab.address in line)
    service, address, health, latency, version, zone, tags = (cell.strip() for cell in row.strip("│").split("│"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert (service, address, health, version, zone, tags) == ("lab", lab.address, "SERVING", "1.2", "here", "a, b")
    assert latency.endswith(" ms")
    assert url in ran.stdout


def test_narrow_terminal_loses_nothing(lab: Serving, folder: Path, url: str) -> None:
    """Cells are folded rather than cut, so an address can still be read."""
    ran = framework(folder, "services", "--registry", url, COLUMNS=50)
    cells = [line.split("│")[2].strip() for line in ran.stdout.splitlines() if line.startswith("│")]
    assert "".join(cells) == lab.address


def test_json(lab: Serving, folder: Path, url: str) -> None:
    """The same for programs."""
    ran = framework(folder, "services", "--registry", url, "--json")
    [row] = json.loads(ran.stdout)
    assert row.pop("latency_ms") > 0
    assert row == {
        "service": "lab",
        "address": lab.address,
        "health": "SERVING",
        "version": "1.2",
        "zone": "here",
        "weight": 1,
        "tags": ["a", "b"],
        "id": lab.id,
    }
    assert (ran.returncode, ran.stderr) == (0, "")


def test_nothing_registered(folder: Path, tmp_path: Path) -> None:
    """It says so, and in which registry; that is no failure."""
    url = f"sqlite:///{tmp_path}/registry.db"
    ran = framework(folder, "services", "--registry", url, COLUMNS=300)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.startswith(f"nothing is registered in {url}")
    assert framework(folder, "services", "--registry", url, "--json").stdout == "[]\n"


async def test_dead_instance_is_red(registry: Registry, folder: Path) -> None:
    """What does not answer is UNAVAILABLE, in red, and the exit code is 1."""
    instance = dead()
    await registry.register(instance)
    ran = await asyncio.to_thread(
        framework, folder, "services", "--registry", str(registry), FORCE_COLOR=1, COLUMNS=200
    )
    assert (ran.returncode, ran.stderr) == (1, "")
    assert instance.address in ran.stdout
    assert "\x1b[31mUNAVAILABLE" in ran.stdout


async def test_dead_instance_among_others(registry: Registry, folder: Path, lab: Serving) -> None:
    """Each is asked by itself, and they are sorted by service and address."""
    instances = [dead("zebra"), dead("ape"), Instance("lab-1", "lab", lab.address)]
    for instance in instances:
        await registry.register(instance)
    ran = await asyncio.to_thread(framework, folder, "services", "--registry", str(registry), "--json")
    assert [(row["service"], row["health"], row["latency_ms"] is None) for row in json.loads(ran.stdout)] == [
        ("ape", "UNAVAILABLE", True),
        ("lab", "SERVING", False),
        ("zebra", "UNAVAILABLE", True),
    ]
    assert ran.returncode == 1


async def test_instance_that_is_silent(registry: Registry, folder: Path) -> None:
    """One that takes the connection and says nothing costs about a second, and is shown as such."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        await registry.register(Instance("silent-1", "silent", f"127.0.0.1:{port}"))
        ran = await asyncio.to_thread(framework, folder, "services", "--registry", str(registry), "--json")
    [row] = json.loads(ran.stdout)
    assert row["health"] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
    assert ran.returncode == 1


async def test_watch_as_json(registry: Registry, folder: Path) -> None:
    """A line per look, as instances come and go, until Ctrl-C, which is silent."""
    with start(folder, "-m", "framework", "services", "--watch", "--json", "--registry", str(registry)) as process:
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stdout.readline) == "[]\n"
        instance = dead()
        lease = await registry.register(instance)
        rows = json.loads(await asyncio.to_thread(process.stdout.readline))
        assert [row["id"] for row in rows] == [instance.id]
        await lease.close()
        while await asyncio.to_thread(process.stdout.readline) != "[]\n":
            pass
        process.send_signal(signal.SIGINT)
        _, said = await asyncio.to_thread(process.communicate, timeout=20)
    assert (process.returncode in (0, 130), said) == (True, "")


def test_watch_on_a_terminal(lab: Serving, folder: Path, url: str) -> None:
    """The table is drawn at once, and Ctrl-C gives the terminal back with its cursor."""
    terminal, its_end = os.openpty()
    command = ("-m", "framework", "services", "--watch", "--registry", url)
    with start(folder, *command, stdout=its_end, stderr=its_end, COLUMNS=200, TERM="xterm") as process:
        os.close(its_end)
        screen = b""
        while lab.address.encode() not in screen:
            screen += os.read(terminal, 65536)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) in (0, 130)
        while b"\x1b[?25h" not in screen:  # shows the cursor
            screen += os.read(terminal, 65536)
        os.close(terminal)
    assert b"Traceback" not in screen


def test_consul(consul: ConsulAgent, folder: Path) -> None:
    """What runs is listed from Consul as from a file."""
    name, url = f"lab-{uuid.uuid4().hex[:8]}", f"consul://{consul.address}?interval=0.2"
    with serving(folder, FRAMEWORK_REGISTRY=url, LAB_NAME=name) as server:
        ran = framework(folder, "services", "--json", FRAMEWORK_REGISTRY=url)
        rows = [row for row in json.loads(ran.stdout) if row["service"] == name]
        found = [(row["address"], row["health"], row["version"], row["tags"]) for row in rows]
        assert found == [(server.address, "SERVING", "1.2", ["a", "b"])]
        assert server.end()[0] == 0
    ran = framework(folder, "services", "--json", FRAMEWORK_REGISTRY=url)
    assert [row for row in json.loads(ran.stdout) if row["service"] == name] == []


@pytest.mark.parametrize(
    ("registry", "message"),
    [
        ("etcd://127.0.0.1", "Registry 'etcd://127.0.0.1' is not understood. Write local,"),
        ("consul://127.0.0.1:{port}", "Consul at http://127.0.0.1:{port} does not answer (connection refused)."),
    ],
)
def test_registry_that_cannot_be_asked(registry: str, message: str, folder: Path) -> None:
    """One line and exit code 2."""
    [port] = free_ports(1)
    ran = framework(folder, "services", "--registry", registry.format(port=port))
    [line] = ran.stderr.splitlines()
    assert line.startswith(f"framework: {message.format(port=port)}")
    assert (ran.returncode, ran.stdout) == (2, "")
