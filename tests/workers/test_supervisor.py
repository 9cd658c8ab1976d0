"""A service of several processes: up, down, and all that may happen between."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from framework import (
    ConfigError,
    FrameworkError,
    Instance,
    RpcError,
    ServerSettings,
    Service,
    Settings,
    Unavailable,
    connect,
)
from framework.cli import main
from framework.client.dropin import Channel
from framework.workers.member import Member
from framework.workers.supervisor import Supervisor
from tests.invariants.conftest import until
from tests.invariants.echo import Echo, EchoClient, text
from tests.server.test_start import Recording
from tests.workers.supervised import ROOT, runs, supervised, write


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """A folder with a service in it."""
    write(tmp_path)
    return tmp_path


async def test_up_and_down(app: Path) -> None:
    """Two processes answer on one port, registered as one instance; SIGTERM ends them, with exit code 0."""
    async with supervised(app) as running:
        await running.serves()
        [instance] = await running.registered()
        assert (instance.address, instance.version) == (f"127.0.0.1:{running.port}", "1")
        assert await running.answering() == set(running.workers)
        assert await running.health() == "SERVING"
        assert await running.ended(signal.SIGTERM) == 0
        assert running.said[-2:] == [
            "echo drains: it accepts for 0 s more, then calls have 30 s and streams 5 s",
            "echo has stopped",
        ]
        assert await running.registered() == []


async def test_module_run_as_a_program(app: Path) -> None:
    """`service.run()` runs its program once more for each worker that the settings ask for."""
    async with supervised(app, command=("app.py",), FRAMEWORK_SERVER_WORKERS=2) as running:
        await running.serves()
        assert await running.answering() == set(running.workers)
        assert await running.ended(signal.SIGTERM) == 0


EARLY = """
import os
import signal

if not os.path.exists("started"):
    open("started", "x").close()
    os.kill(os.getpid(), signal.SIGHUP)
"""


async def test_reload_while_it_starts(app: Path) -> None:
    """SIGHUP before there is anything to reload waits until there is; a process without workers ends of it."""
    write(app, "import asyncio\n", f"import asyncio\n{EARLY}")
    async with supervised(app) as running:
        await running.until("echo has reloaded: 2 workers")
        assert await running.ended(signal.SIGTERM) == 0
    (app / "started").unlink()
    async with supervised(app, command=("-m", "framework", "run", "app")) as running:
        assert await running.ended() == -signal.SIGHUP
    assert running.said == []


async def test_one_worker_is_no_worker(app: Path) -> None:
    """One process is what it always was."""
    async with supervised(app, "--workers", "1", command=("-m", "framework", "run", "app")) as running:
        await running.serves()
        assert await running.answering(1) == {running.pid}
        assert await running.ended(signal.SIGTERM) == 0
        assert running.workers == []


async def test_worker_that_is_killed(app: Path) -> None:
    """Another one takes its place, one line says so, and the registration is the same all the while."""
    async with supervised(app) as running:
        await running.serves()
        before = await running.registered()
        victim, other = running.workers
        os.kill(victim, signal.SIGKILL)
        found = await running.until(rf"^echo: worker \d \(pid {victim}\) was killed by SIGKILL; another one starts in")
        assert (await running.ask()).split()[1] == str(other)
        await running.until(r"\) serves")
        assert running.said.index(found.string) == len(running.said) - 2
        assert await running.answering() == {other, running.workers[-1]}
        assert await running.registered() == before
        assert await running.ended(signal.SIGTERM) == 0


async def test_all_workers_are_killed(app: Path) -> None:
    """With nobody left to serve the registration is withdrawn; it comes back with the first that serves."""
    write(app, first="import pathlib\nwhile pathlib.Path('wait').exists(): time.sleep(0.02)")
    async with supervised(app) as running:
        await running.serves()
        (app / "wait").touch()
        for pid in running.workers:
            os.kill(pid, signal.SIGKILL)
        await running.until("^echo: no worker serves")
        await running.deregistered()
        (app / "wait").unlink()
        await running.serves()
        assert len(await running.registered()) == 1
        assert await running.ended(signal.SIGTERM) == 0


async def test_start_that_fails_at_first(app: Path) -> None:
    """A database that is not there yet is no reason to end: the worker is started again, and the others serve."""
    write(app, first="open('attempts', 'a').write('x')\nif len(open('attempts').read()) < 4: 1 / 0")
    async with supervised(app) as running:
        await running.until(r"ended with exit code 1; another one starts in 0\.1 s")
        await running.serves()
        await running.answering()
        assert "ZeroDivisionError: division by zero" in running.said
        assert await running.ended(signal.SIGTERM) == 0


ONE_BY_ONE = """
for own, next in ("first", "second"), ("second", "third"), ("third", "never"):
    try:
        open(own, "x").close()
        break
    except FileExistsError:
        pass
while not os.path.exists(next):
    await asyncio.sleep(0.01)
if own == "first":
    raise LookupError("no luck")
"""


async def test_one_that_does_not_come_up(app: Path) -> None:
    """A worker that died and then starts for ever does not keep the other one from being registered."""
    write(app, first=ONE_BY_ONE)
    async with supervised(app) as running:
        await running.until("ended with exit code 1; another one starts")
        await running.serves()
        assert await running.answering(1) == set(running.workers)
        assert await running.ended(signal.SIGTERM) == 0


async def test_worker_that_is_told_to_stop(app: Path) -> None:
    """SIGTERM to one worker drains that one, and another takes its place."""
    async with supervised(app) as running:
        await running.serves()
        call = await running.in_flight("sleep 0.3")
        for pid in running.workers:
            os.kill(pid, signal.SIGTERM)
        assert (await call).split()[0] == "1"
        await running.until("ended with exit code 0; another one starts in 0.1 s")
        await running.serves()
        assert await running.ended(signal.SIGTERM) == 0


class Load:
    """Calls that may not be made twice, on some channels, until the block ends."""

    def __init__(self, *channels: Channel) -> None:
        self.channels = channels
        self.answers: list[str] = []
        self.failures: list[RpcError] = []

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for channel in self.channels:
                group.create_task(self._call(EchoClient(channel)))

    async def _call(self, client: EchoClient) -> None:
        while True:
            try:
                self.answers.append((await client.UnaryUnary(text("sleep 0.002"), timeout=20)).value)
            except RpcError as error:
                self.failures.append(error)


async def test_reload_under_load(app: Path) -> None:
    """SIGHUP replaces every worker with one of the new code; not a call is lost, and the registry knows the version."""
    async with supervised(app) as running:
        await running.serves()
        old = set(running.workers)
        channels = [connect(f"127.0.0.1:{running.port}", settings=Settings()) for _ in range(6)]
        load = Load(*channels, connect(f"sqlite:///{app}/registry.db#echo", settings=Settings()))
        loading = asyncio.create_task(load.run())
        for version in ("2", "3"):
            write(app, 'VERSION = "1"', f'VERSION = "{version}"')
            os.kill(running.pid, signal.SIGHUP)
            await running.until("^echo has reloaded: 2 workers")
            before = len(load.answers)
            await until(lambda before=before: len(load.answers) >= before + 100)  # type: ignore[misc]  # bound here
            assert {answer.split()[0] for answer in load.answers[before:]} == {version}
            assert [instance.version for instance in await running.registered()] == [version]
        loading.cancel()
        await asyncio.wait([loading])
        for channel in load.channels:
            await channel.close()
        assert load.failures == []
        assert {answer.split()[0] for answer in load.answers} == {"1", "2", "3"}
        assert await running.answering() & old == set()
        assert await running.ended(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (
            "    service.add",
            "    raise FrameworkError('no database')\n    service.add",
            r"cannot serve \(no database\)",
        ),
        ("import asyncio", "import asyncio this is none", "ended with exit code 1"),
    ],
    ids=["mistake", "defect"],
)
async def test_reload_that_fails(old: str, new: str, reason: str, app: Path) -> None:
    """What cannot start replaces nobody; the next reload may."""
    async with supervised(app) as running:
        await running.serves()
        before = set(running.workers)
        write(app, old, new)
        os.kill(running.pid, signal.SIGHUP)
        await running.until(f"^echo: the reload has failed, the new worker {reason}; the others go on")
        assert await running.answering() == before
        write(app)
        os.kill(running.pid, signal.SIGHUP)
        await running.until("^echo has reloaded: 2 workers")
        assert await running.ended(signal.SIGTERM) == 0


async def test_reload_with_other_settings(app: Path) -> None:
    """Settings are read anew, the number of workers and the registry included; host and port stay."""
    file = app / "framework.toml"
    file.write_text("[server]\nworkers = 2\n")
    async with supervised(app, command=("-m", "framework", "run", "app"), FRAMEWORK_REGISTRY="") as running:
        file.write_text(f'registry = "sqlite:///{app}/first.db"\n[server]\nworkers = 2\n')
        await running.serves()
        for number, workers in enumerate((3, 1)):
            file.write_text(f'registry = "sqlite:///{app}/registry.db"\n[server]\nport = 1\nworkers = {workers}\n')
            os.kill(running.pid, signal.SIGHUP)
            if not number:
                await running.until(rf"^echo serves on 127.0.0.1:{running.port}, registered in \S+registry.db as")
            await running.until(f"^echo has reloaded: {workers} workers?$")
            assert len(await running.answering(workers)) == workers
            assert len(await running.registered()) == 1
        assert await running.ended(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_drain(number: signal.Signals, app: Path) -> None:
    """NOT_SERVING and deregistered at once, still accepting for the delay, and calls in flight are answered."""
    async with supervised(app, FRAMEWORK_SERVER_DRAIN_DELAY="0.5s") as running:
        await running.serves()
        calls = [await running.in_flight("sleep 0.8") for _ in range(4)]
        os.kill(running.pid, number)
        await running.until("^echo drains: it accepts for 0.5 s more, then calls have 30 s and streams 5 s")
        await running.deregistered()
        assert {await running.health() for _ in range(8)} == {"NOT_SERVING"}
        assert await running.ask() != ""
        assert {answer.split()[0] for answer in await asyncio.gather(*calls)} == {"1"}
        assert await running.ended() == 0


class Reluctant(Recording):
    """Refuses to register as often as it is told."""

    refusals = 0

    async def register(self, instance: Instance) -> Recording:
        if self.refusals:
            self.refusals -= 1
            raise ConfigError("the registry is away")
        return await super().register(instance)


@asynccontextmanager
async def here(app: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Supervisor, Reluctant]]:
    """A supervisor in this process, once it has registered its workers; ended by a signal."""
    monkeypatch.chdir(app)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("FRAMEWORK_SERVER_DRAIN_DELAY", "100ms")
    monkeypatch.delenv("FRAMEWORK_REGISTRY", raising=False)
    registry = Reluctant([])
    monkeypatch.setattr("framework.workers.supervisor.open_registry", lambda url: registry)
    command = (sys.executable, "-m", "framework", "run", "app", "--workers=2")
    supervisor = Supervisor("echo", ("127.0.0.1", 0), 2, command, interactive=False)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: registry.events or running.done())
    try:
        yield supervisor, registry
    finally:
        if not running.done():  # or it would be the test that gets the signal
            os.kill(os.getpid(), signal.SIGTERM)
        await running


async def test_order_of_a_drain(app: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is registered while the workers say SERVING, and deregistered while they say NOT_SERVING already."""
    async with here(app, monkeypatch) as (supervisor, registry):
        assert repr(supervisor) == "<Supervisor of echo: 2 of 2 workers serve>"
    assert registry.events == ["registered while SERVING", "deregistered while NOT_SERVING", "registry closed"]


async def test_drain_of_a_worker_that_does_not_listen(
    app: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One whose handler blocks is killed once it is much later than the settings allow."""
    write(app, 'print("blocks", flush=True)', 'open("blocks", "w").close()')
    monkeypatch.setenv("FRAMEWORK_SERVER_DRAIN_GRACE", "0")
    monkeypatch.setattr("framework.workers.supervisor.PATIENCE", 2.0)
    caplog.set_level("INFO", "framework")
    async with here(app, monkeypatch) as (_, registry):
        [instance] = registry.instances
        async with connect(instance.address, settings=Settings()) as channel:
            stuck = asyncio.ensure_future(EchoClient(channel).UnaryUnary(text("block 60"), timeout=20))
            await until((app / "blocks").exists)
            registry.closed = True  # it would ask the one that blocks for its health
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Unavailable):
                await stuck
            await until(lambda: "echo has stopped" in caplog.text)
    assert caplog.text.count("does not end, and is killed") == 1


IMPATIENT = """
import sys
import framework.signals
from framework.cli import main

framework.signals.PATIENCE = 0.3
sys.exit(main())
"""


async def test_one_process_that_does_not_listen(app: Path) -> None:
    """A handler that blocks the loop does not keep its process from ending in time."""
    command = ("-c", IMPATIENT, "run", "app", "--workers", "1")
    async with supervised(app, command=command, FRAMEWORK_SERVER_DRAIN_GRACE=0) as running:
        await running.serves()
        stuck = await running.in_flight("block 60")
        assert await running.ended(signal.SIGTERM) == 1
        with pytest.raises(Unavailable):
            await stuck
        assert running.said[-1] == "echo does not end, and is killed"


async def test_second_signal_to_one_process_that_does_not_listen(app: Path) -> None:
    """It ends at once, although its loop is blocked."""
    async with supervised(app, "--workers", "1", command=("-m", "framework", "run", "app")) as running:
        await running.serves()
        stuck = await running.in_flight("block 60")
        while running.process.returncode is None:
            os.kill(running.pid, signal.SIGTERM)
            await asyncio.sleep(0.2)  # or they would be one
        assert await running.ended() == 128 + signal.SIGTERM
        with pytest.raises(Unavailable):
            await stuck


async def test_registry_that_is_away_later(
    app: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it has been registered, a service waits for its registry."""
    monkeypatch.setattr("framework.workers.supervisor.REGISTER_AGAIN", 0.02)
    async with here(app, monkeypatch) as (supervisor, registry):
        registry.refusals = 3
        registry.closed = True  # nobody is there to ask for its health
        for member in supervisor.members:
            member.kill()
        await until(lambda: len(registry.instances) == 2)
    said = "echo is not registered, and tries again: the registry is away"
    assert [record.message for record in caplog.records].count(said) == 3


async def test_machine_that_can_start_no_process(
    app: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The supervisor tries again, and reloads when it can."""

    def full(*_: object) -> Member:
        raise OSError("too many processes")

    async with here(app, monkeypatch) as (supervisor, _):
        first, other = supervisor.members
        with monkeypatch.context() as patch:
            patch.setattr("framework.workers.supervisor.Member", full)
            first.kill()
            os.kill(os.getpid(), signal.SIGHUP)
            await until(lambda: "worker 1 cannot be started (too many processes); another one starts" in caplog.text)
            await until(lambda: "the new worker cannot be started (too many processes); the others go" in caplog.text)
        await until(lambda: len(supervisor.members) == 2 and all(member.serves for member in supervisor.members))
        assert other in supervisor.members


async def test_ctrl_c_reaches_the_supervisor_alone(app: Path) -> None:
    """A terminal sends SIGINT to the whole group of processes; the calls in the workers are answered all the same."""
    async with supervised(app) as running:
        await running.serves()
        call = await running.in_flight("sleep 0.3")
        assert running.pid not in map(os.getpgid, running.workers)  # not even while they start
        os.killpg(running.pid, signal.SIGINT)
        assert (await call).split()[0] == "1"
        assert await running.ended() == 0


async def test_second_signal(app: Path) -> None:
    """A second signal waits for nobody: calls end with UNAVAILABLE, and a worker that does not listen is killed."""
    async with supervised(app) as running:
        await running.serves()
        call = await running.in_flight("sleep 60")
        stuck = await running.in_flight("block 60")
        os.kill(running.pid, signal.SIGTERM)
        await running.until("^echo drains")
        os.kill(running.pid, signal.SIGTERM)
        for ended in (call, stuck):
            with pytest.raises(Unavailable):
                await asyncio.wait_for(ended, 5)
        assert await running.ended() == 0
        assert running.said[-1] == "echo stops at once"


async def test_signal_while_it_starts(app: Path) -> None:
    """Workers that wait for their database can be stopped too."""
    write(app, first="print('waits', flush=True)\nawait asyncio.sleep(60)")
    async with supervised(app) as running:
        assert running.process.stdout is not None
        for _ in range(2):
            await asyncio.wait_for(running.process.stdout.readline(), 15)
        assert await running.ended(signal.SIGTERM) == 0
        assert running.said == ["echo stops before it serves", "echo has stopped"]


async def test_supervisor_is_killed(app: Path) -> None:
    """Workers notice, answer what is in flight, and end; nothing is left behind."""
    async with supervised(app) as running:
        await running.serves()
        call = await running.in_flight("sleep 0.3")
        assert await running.ended(signal.SIGKILL) == -signal.SIGKILL  # once all of them have closed standard error
        assert (await call).split()[0] == "1"


async def test_supervisor_of_a_worker_that_does_not_listen_is_killed(app: Path) -> None:
    """A handler that blocks its worker does not keep it alive for long."""
    async with supervised(app, FRAMEWORK_SERVER_DRAIN_GRACE=0) as running:
        await running.serves()
        stuck = await running.in_flight("block 60")
        assert await running.ended(signal.SIGKILL) == -signal.SIGKILL
        with pytest.raises(Unavailable):
            await stuck


async def test_terminal_that_closes(app: Path) -> None:
    """SIGHUP of a terminal that is gone means to stop, and not to reload for nobody."""
    terminal, its_end = os.openpty()
    program = "import os, sys; os.dup2(int(sys.argv.pop(1)), 2); from framework.cli import main; sys.exit(main())"
    command = ("-c", program, str(its_end), "run", "app", "--workers", "2")
    os.set_inheritable(its_end, True)
    own = {"PYTHONPATH": str(ROOT), "FRAMEWORK_REGISTRY": "none", "FRAMEWORK_SERVER_DRAIN_DELAY": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=app, env={**os.environ, **own}, pass_fds=[its_end]
    )
    os.close(its_end)
    try:
        with os.fdopen(terminal, "rb", buffering=0) as screen:
            seen = b""
            while b"echo serves on" not in seen:
                seen += await asyncio.to_thread(screen.read, 4096)
        process.send_signal(signal.SIGHUP)
        assert await asyncio.wait_for(process.wait(), 15) == 0
    finally:
        if process.returncode is None:
            process.kill()


async def said(folder: Path, *arguments: str, **variables: str) -> tuple[int, list[str]]:
    """The exit code and all that is said by a command that cannot serve."""
    async with supervised(folder, *arguments, **variables) as running:
        return await running.ended(), running.said


async def test_port_in_use(app: Path) -> None:
    """The same line as for one process, whoever has the port: another program, or other workers."""
    async with supervised(app) as running:
        await running.serves()
        with socket.create_server(("127.0.0.1", 0)) as taken:
            for port in (taken.getsockname()[1], running.port):
                assert await said(app, "--port", str(port)) == (
                    2,
                    [
                        f"framework: port {port} on 127.0.0.1 is in use or may not be used. "
                        "Choose another with --port, or 0 for any free one."
                    ],
                )
        assert await running.ended(signal.SIGTERM) == 0


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("    service.add(Echo(behave))\n", "", "echo serves nothing. Add a servicer: "),
        ("service.add(Echo(behave))", "raise FrameworkError('no database')", "no database"),
        ('VERSION = "1"', "raise FrameworkError('not like this')", "not like this"),
    ],
    ids=["nothing", "lifespan", "import"],
)
async def test_mistake_in_the_code(old: str, new: str, line: str, app: Path) -> None:
    """What every worker would find ends all of them, with one line and exit code 2."""
    write(app, old, new)
    code, [only] = await said(app)
    assert (code, only.startswith(f"framework: {line}")) == (2, True)


async def test_mistake_that_all_find_at_once(app: Path) -> None:
    """It is still said once."""
    wait = "while not os.path.exists('go'): time.sleep(0.01)"
    write(app, first=f"print(os.getpid(), flush=True)\n{wait}\nraise FrameworkError('no')")
    async with supervised(app) as running:
        assert running.process.stdout is not None
        workers = [int(await asyncio.wait_for(running.process.stdout.readline(), 15)) for _ in range(2)]
        os.kill(running.pid, signal.SIGSTOP)
        (app / "go").touch()
        await until(lambda: not any(map(runs, workers)))
        assert (await running.ended(signal.SIGCONT), running.said) == (2, ["framework: no"])


async def test_registry_that_cannot_be_used(app: Path) -> None:
    """So does a registry that cannot be had."""
    code, lines = await said(app, "--registry", "etcd://127.0.0.1")
    assert (code, lines[-1].startswith("framework: Registry 'etcd://127.0.0.1' is not understood.")) == (2, True)


def test_no_program_to_run_again() -> None:
    """Typed into an interpreter, a service cannot have workers."""
    service = Service("echo", servicers=[Echo()])
    with pytest.raises(FrameworkError, match="workers run the program of echo again, and here is none; use `framework"):
        service.launch(Settings(server=ServerSettings(workers=2)), None, [sys.executable])


@pytest.mark.parametrize("number", ["0", "two", "1.5", "-1"])
def test_bad_number_of_workers(
    number: str, app: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What may be written is said."""
    monkeypatch.syspath_prepend(app)
    monkeypatch.chdir(app)
    assert main(["run", "app", f"--workers={number}"]) == 2
    assert capsys.readouterr().err == (
        f"framework: --workers is '{number}'; it must be a whole number from 1 to 1024, or \"auto\" for one per CPU\n"
    )
