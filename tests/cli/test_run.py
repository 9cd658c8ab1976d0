"""`framework run` and `service.run()`: how a service comes up and goes down, and what it says when it cannot."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from framework import Unavailable, connect
from framework.cli import main
from framework.discovery import Instance
from framework.discovery.targets import open_registry
from tests.cli.lab import Serving, framework, serving, start, write
from tests.consul_agent import free_ports

MISTAKES = '''\
"""Services that cannot be served, each for a reason of its own."""

from contextlib import asynccontextmanager

from framework import Service
from lab.v1.lab_rpc import LabServicer
from lab_service import Lab


class Half(LabServicer):
    async def Greet(self, request, context): ...
    async def Add(self, requests, context): ...


class Blocking(Lab):
    def Greet(self, request, context):
        return request


@asynccontextmanager
async def half_done(service):
    service.add(Half())
    yield


@asynccontextmanager
async def raises(service):
    raise LookupError("no database")
    yield


@asynccontextmanager
async def adds_nothing(service):
    yield


@asynccontextmanager
async def waits(service):
    import asyncio

    print("waits", flush=True)
    await asyncio.sleep(60)
    yield


@asynccontextmanager
async def cannot_leave(service):
    service.add(Lab())
    yield
    raise LookupError("cannot close")


@asynccontextmanager
async def never_listens(service):
    import asyncio

    service.add(Lab())
    yield
    print("cleans up", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass


incomplete = Service("incomplete", lifespan=half_done)
blocking = Service("blocking", servicers=[Blocking()])
broken = Service("broken", lifespan=raises)
empty = Service("empty", lifespan=adds_nothing)
twice = Service("twice", servicers=[Lab(), Lab()])
named = Service("two words", servicers=[Lab()])
waiting = Service("waiting", lifespan=waits)
leaving = Service("leaving", lifespan=cannot_leave)
stubborn = Service("stubborn", lifespan=never_listens)
number = 3
'''


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the modules `lab_service` and `mistakes`."""
    folder = write(tmp_path_factory.mktemp("run"))
    (folder / "mistakes.py").write_text(MISTAKES)
    (folder / "imports.py").write_text("import not_there\n")
    return folder


@pytest.fixture
def here(lab: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the current directory of this process."""
    monkeypatch.chdir(lab)
    monkeypatch.setattr(sys, "path", [str(lab), *sys.path])
    return lab


@pytest.fixture
def registry(tmp_path: Path) -> str:
    """URL of a registry of the test's own."""
    return f"sqlite:///{tmp_path}/registry.db"


def registered(url: str) -> dict[str, Instance]:
    """Every instance in a registry."""

    async def look() -> dict[str, Instance]:
        registry = open_registry(url)
        try:
            return {id: one for snapshot in (await registry.services()).values() for id, one in snapshot.items()}
        finally:
            await registry.aclose()

    return asyncio.run(look())


@pytest.fixture
def client(here: Path) -> Any:
    """The generated client class, and the module of its messages."""
    return importlib.import_module("lab.v1.lab_rpc").LabClient, importlib.import_module("lab.v1.lab_pb2")


def test_serves_and_registers(lab: Path, registry: str) -> None:
    """It says where, and the registry has the same with what the Service tells about itself."""
    with serving(lab, FRAMEWORK_REGISTRY=registry) as server:
        assert registered(registry) == {
            server.id: Instance(server.id, "lab", server.address, version="1.2", zone="here", tags=("a", "b"))
        }
        assert server.address.startswith("127.0.0.1:")
        code, said = server.end()
    assert (code, said) == (
        0,
        ["lab drains: it accepts for 0 s more, then calls have 30 s and streams 5 s", "lab has stopped"],
    )
    assert registered(registry) == {}


def test_module_run_as_a_program(lab: Path, registry: str) -> None:
    """`service.run()` serves, registers and drains as the command does."""
    with serving(lab, "lab_service.py", FRAMEWORK_REGISTRY=registry) as server:
        assert list(registered(registry)) == [server.id]
        assert server.end() == (
            0,
            ["lab drains: it accepts for 0 s more, then calls have 30 s and streams 5 s", "lab has stopped"],
        )
    assert registered(registry) == {}


def test_module_run_as_a_program_with_a_mistake(lab: Path) -> None:
    """`service.run()` says a mistake in one line too, and fails."""
    with start(lab, "lab_service.py", FRAMEWORK_SERVER_PORT="eighty") as process:
        _, said = process.communicate(timeout=20)
    assert process.returncode != 0
    assert said == "framework: FRAMEWORK_SERVER_PORT is 'eighty'; it must be a whole number from 0 to 65535\n"


def test_serves_without_a_registry(lab: Path) -> None:
    """`--registry none` is for a service that nobody looks up."""
    with serving(lab, "-m", "framework", "run", "lab_service:service", "--registry", "none") as server:
        assert server.id is None
        assert server.end()[0] == 0


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
async def test_drains_without_losing_a_call(by: signal.Signals, lab: Path, registry: str, client: Any) -> None:
    """First it leaves the registry and says NOT_SERVING, still accepts for the delay, and lets calls in flight end."""
    Client, messages = client
    with serving(lab, FRAMEWORK_REGISTRY=registry, FRAMEWORK_SERVER_DRAIN_DELAY=0.6) as server:
        async with connect(server.address) as channel:
            client = Client(channel)
            health_stub: Any = HealthStub(channel)
            early = asyncio.create_task(call(client, messages, "slow 1"))
            await call(client, messages, "a")  # so the one before it is there
            server.process.send_signal(by)
            server.line("lab drains: it accepts for 0.6 s more")
            await asyncio.wait_for(nobody_registered(registry), 0.5)
            health = await health_stub.Check(HealthCheckRequest())
            assert health == HealthCheckResponse(status=HealthCheckResponse.NOT_SERVING)
            assert await call(client, messages, "b") == "Hello, b!"
            assert await early == "Hello, slow 1!"
        assert await asyncio.to_thread(server.ended) == (0, ["lab has stopped"])


async def nobody_registered(registry: str) -> None:
    """Return once a registry is empty."""
    while await asyncio.to_thread(registered, registry):  # noqa: ASYNC110  # nobody sets an event
        await asyncio.sleep(0.01)


async def call(client: Any, messages: Any, text: str) -> str:
    """What the service answers."""
    reply = await client.Greet(messages.Text(text=text))
    return str(reply.text)


async def test_second_signal_stops_at_once(lab: Path, registry: str, client: Any) -> None:
    """A call in flight ends with UNAVAILABLE, and the process with it, long before its grace is over."""
    Client, messages = client
    with serving(lab, FRAMEWORK_REGISTRY=registry) as server:
        async with connect(server.address) as channel:
            early = asyncio.create_task(call(Client(channel), messages, "slow 60"))
            await call(Client(channel), messages, "a")  # so the one before it is there
            server.process.send_signal(signal.SIGTERM)
            server.line("lab drains")
            server.process.send_signal(signal.SIGINT)
            with pytest.raises(Unavailable):
                await asyncio.wait_for(early, 5)
        code, said = await asyncio.to_thread(server.ended)
    assert (code, said[0]) == (0, "lab stops at once")


def test_ctrl_c_on_a_terminal_is_quick(lab: Path, registry: str) -> None:
    """A person does not wait for clients that are not there."""
    terminal, its_end = os.openpty()
    with start(lab, "-m", "framework", "run", "lab_service", stderr=its_end, FRAMEWORK_REGISTRY=registry) as process:
        os.close(its_end)
        with os.fdopen(terminal, "rb", buffering=0) as screen:
            assert b"serves on" in screen.read(4096)
            process.send_signal(signal.SIGINT)
            assert b"accepts for 0 s more, then calls have 1 s and streams 0.2 s" in screen.read(4096)
        assert process.wait(5) == 0


def test_signal_while_it_starts(lab: Path, registry: str) -> None:
    """A service that waits for its database can be stopped too."""
    with start(lab, "-m", "framework", "run", "mistakes:waiting", FRAMEWORK_REGISTRY=registry) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    assert (process.returncode, "Traceback" in said) == (0, False)
    assert registered(registry) == {}


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_second_signal_ends_what_does_not_listen(by: signal.Signals, lab: Path, registry: str) -> None:
    """Clean-up that blocks the process cannot keep it; the exit code is that of the signal."""
    with serving(lab, "-m", "framework", "run", "mistakes:stubborn", FRAMEWORK_REGISTRY=registry) as server:
        server.process.send_signal(signal.SIGTERM)
        server.line("stubborn drains")
        server.line("stubborn has stopped")
        assert server.process.stdout is not None
        assert server.process.stdout.readline() == "cleans up\n"
        assert server.end(by) == (128 + by, ["stubborn stops at once"])


def test_port_in_use(lab: Path, registry: str) -> None:
    """One line with port, host and what to do; exit code 2; nothing stays registered."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = framework(lab, "run", "lab_service", "--port", str(port), FRAMEWORK_REGISTRY=registry)
    [line] = [line for line in ran.stderr.splitlines() if line.startswith("framework")]
    assert (ran.returncode, line) == (
        2,
        f"framework: port {port} on 127.0.0.1 is in use or may not be used. "
        "Choose another with --port, or 0 for any free one.",
    )
    assert registered(registry) == {}


def test_port_in_use_is_said_in_one_line(lab: Path, registry: str) -> None:
    """grpc's own account of it is not shown."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = framework(lab, "run", "lab_service", "--port", str(taken.getsockname()[1]), FRAMEWORK_REGISTRY=registry)
    assert [line.split()[0] for line in ran.stderr.splitlines()] == ["framework:"]


def test_consul_that_is_not_there(lab: Path) -> None:
    """One line that names it, exit code 2, and no traceback."""
    [port] = free_ports(1)
    ran = framework(lab, "run", "lab_service", "--registry", f"consul://127.0.0.1:{port}")
    assert (ran.returncode, ran.stderr) == (
        2,
        f"framework: Consul at http://127.0.0.1:{port} does not answer (connection refused). "
        "Start it, or choose another registry with --registry or FRAMEWORK_REGISTRY.\n",
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lab_service", "--port", "eighty"], "--port is 'eighty'; it must be a whole number from 0 to 65535"),
        (["lab_service", "--port", "70000"], "--port is '70000'; it must be a whole number from 0 to 65535"),
        (["lab_service", "--http", "abc"], "--http is 'abc'; it must be a whole number from 0 to 65535"),
        (["lab_service", "--workers", "0"], "--workers is '0'; it must be a whole number from 1 to 1024, or \"auto\""),
        (["lab_service", "--config", "no.toml"], "there is no settings file no.toml"),
        (["not_there"], "there is no module not_there in {here} or in the environment"),
        (["not_there.at.all:service"], "there is no module not_there in {here} or in the environment"),
        (["src/lab_service.py"], "'src/lab_service.py' is no module. Write it with dots, like src.lab_service:service"),
        (["./lab_service.py:x"], "'./lab_service.py:x' is no module. Write it with dots, like lab_service:x"),
        (["lab_service:servcie"], "lab_service:servcie does not exist. There is lab_service:service."),
        (["mistakes:number"], "mistakes:number is no Service. There is mistakes:incomplete, mistakes:blocking,"),
        (["lab.v1.lab_pb2"], "lab.v1.lab_pb2:service does not exist. It holds no Service."),
        (
            ["mistakes:incomplete"],
            "Half does not implement Count, Shout. Write: async def Count(self, request, context)",
        ),
        (["mistakes:blocking"], "Blocking.Greet is not asynchronous, and one that blocks would stop every other call."),
        (["mistakes:blocking"], "Write: async def Greet(self, request, context): ... (blocking work goes to"),
        (["mistakes:empty"], "empty serves nothing. Add a servicer: `service.add(Catalog(...))` in the lifespan"),
        (["mistakes:twice"], "lab.v1.Lab/Greet is served already; add one servicer per service"),
        (["mistakes:named"], "Service name 'two words': use letters, digits, '.', '_' and '-'."),
        (
            ["lab_service", "--registry", "etcd://127.0.0.1"],
            "Registry 'etcd://127.0.0.1' is not understood. Write local,",
        ),
        (["lab_service", "--registry", "static://a:1"], "is not on the fixed list static://a:1. Add it there, or"),
    ],
)
def test_mistake_is_one_line(
    arguments: list[str],
    message: str,
    here: Path,
    registry: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What is wrong and what to write instead, exit code 2."""
    monkeypatch.setenv("FRAMEWORK_REGISTRY", registry)
    assert main(["run", *arguments]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("framework: ")
    assert message.format(here=here) in line


@pytest.mark.parametrize(
    ("target", "suggestion"),
    [("lab_service.py", "lab_service:service"), ("{here}/lab_service.py", "lab_service:service")],
)
def test_file_instead_of_a_module(target: str, suggestion: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever names a file in the current directory is told the module's name."""
    assert main(["run", target.format(here=here)]) == 2
    assert f"like {suggestion}\n" in capsys.readouterr().err


@pytest.mark.parametrize("advertise", ["two words", "host:99999", ":80"])
def test_advertised_address_that_cannot_be_dialled(advertise: str, lab: Path, registry: str) -> None:
    """It is refused before anybody is told."""
    command = ("-m", "framework", "run", "lab_service", "--advertise", advertise)
    with start(lab, *command, FRAMEWORK_REGISTRY=registry) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline().startswith("framework: ")
            assert process.wait(5) == 2
        finally:
            process.kill()


def test_settings_file_with_a_slip(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file, the name with its path, and the one that was probably meant."""
    file = tmp_path / "settings.toml"
    file.write_text('[server]\ndrain = { gracee = "3s" }\n')
    assert main(["run", "lab_service", "--config", str(file)]) == 2
    message = f"framework: {file}: server.drain.gracee is not a setting. Did you mean grace?\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("name", ["raises", "imports"])
def test_failure_of_user_code_shows_where(name: str, lab: Path, registry: str) -> None:
    """An exception of a lifespan, or a module that a module lacks, is a traceback that ends with it; exit code 1."""
    target, last, line = {
        "raises": ("mistakes:broken", "LookupError: no database", 'raise LookupError("no database")'),
        "imports": ("imports", "ModuleNotFoundError: No module named 'not_there'", "import not_there"),
    }[name]
    ran = framework(lab, "run", target, FRAMEWORK_REGISTRY=registry)
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (1, last)
    assert line in ran.stderr
    assert registered(registry) == {}


def test_lifespan_that_cannot_be_left(lab: Path, registry: str) -> None:
    """The service has drained and left the registry by then; the failure is shown and the exit code is not 0."""
    with serving(lab, "-m", "framework", "run", "mistakes:leaving", FRAMEWORK_REGISTRY=registry) as server:
        code, said = server.end()
    assert (code, said[1], said[-1]) == (1, "leaving has stopped", "LookupError: cannot close")
    assert registered(registry) == {}


def test_order_of_settings(lab: Path, tmp_path: Path, registry: str) -> None:
    """The file is the least, then the environment, then what the command line says."""
    file = tmp_path / "settings.toml"
    file.write_text(
        f'registry = "{registry}"\n[server]\nadvertise = "file:1"\ndrain = {{ grace = "7s", streams = "2s" }}\n'
    )
    told = {"FRAMEWORK_SERVER_DRAIN_GRACE": "8s", "FRAMEWORK_SERVER_ADVERTISE": "env:2", "FRAMEWORK_CONFIG": file}
    command = ("-m", "framework", "run", "lab_service", "--advertise", "flag:3")
    with serving(lab, *command, **told) as server:
        assert registered(registry)[server.id].address == "flag:3"
        code, [drains, _] = server.end()
    assert (code, drains) == (0, "lab drains: it accepts for 0 s more, then calls have 8 s and streams 2 s")


def test_advertised_addresses(lab: Path, tmp_path: Path) -> None:
    """A host gets the port that is listened on; one with a port is taken as it is; IPv6 gets its brackets."""
    expected = {
        "lab.internal": "lab.internal:{port}",
        "lab.internal:7": "lab.internal:7",
        "::1": "[::1]:{port}",
        "[::1]": "[::1]:{port}",
        "[::1]:7": "[::1]:7",
    }
    urls = {form: f"sqlite:///{tmp_path}/{number}.db" for number, form in enumerate(expected)}
    processes = {
        form: start(lab, "-m", "framework", "run", "lab_service", "--advertise", form, "--registry", url)
        for form, url in urls.items()
    }
    try:
        ports = {form: Serving(process).address.rpartition(":")[2] for form, process in processes.items()}
        found = {form: [one.address for one in registered(url).values()] for form, url in urls.items()}
    finally:
        for process in processes.values():
            process.kill()
            process.communicate()
    assert found == {form: [address.format(port=ports[form])] for form, address in expected.items()}
