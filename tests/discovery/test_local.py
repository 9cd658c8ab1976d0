"""The SQLite file: time, crashes, files that are not what they should be."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from framework.discovery import Instance, lease_file
from framework.discovery.local import LocalRegistry, default_file
from framework.errors import ConfigError

Open = Callable[..., LocalRegistry]

ONE = Instance("catalog-1", "catalog", "127.0.0.1:7001")
TWO = Instance("catalog-2", "catalog", "127.0.0.1:7002")

PROCESS = """
import asyncio, sys
from framework.discovery import Instance
from framework.discovery.local import LocalRegistry

async def main(path, id, forever):
    registry = LocalRegistry(path, heartbeat=0.3, ttl=1) if forever else LocalRegistry(path)
    while True:
        lease = await registry.register(Instance(id, "catalog", "127.0.0.1:7001"))
        print("registered", flush=True)
        await asyncio.sleep(0 if forever else 3600)
        await lease.close()

asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3] == "forever"))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "registry.db"


@pytest.fixture
async def open_file(path: Path) -> AsyncIterator[Open]:
    """`open_file(heartbeat=..., ttl=..., now=...)` is the registry in `path`, as one more process has it."""
    async with AsyncExitStack() as exits:

        def open_file(
            at: Path = path, heartbeat: float = 0.1, ttl: float = 0.6, **more: Callable[[], float]
        ) -> LocalRegistry:
            registry = LocalRegistry(at, heartbeat=heartbeat, ttl=ttl, **more)
            exits.push_async_callback(registry.aclose)
            return registry

        yield open_file


def process(path: Path, id: str, forever: bool = False) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROCESS, str(path), id, "forever" if forever else "once"]
    return subprocess.Popen(command, stdout=subprocess.PIPE)


async def ids(registry: LocalRegistry) -> set[str]:
    return set((await registry.services()).get("catalog", {}))


async def turn(registry: LocalRegistry) -> None:
    """Let its thread look once at what is due by now; it does after each job."""
    for _ in range(2):
        await asyncio.wrap_future(registry._worker.submit(int))


async def eventually(condition: Callable[[], object]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it never happened")


def remove(path: Path, *ends: str) -> None:
    """The file, and what SQLite keeps beside it; or only what has one of these ends."""
    for file in path.parent.glob(f"{path.name}*"):
        if not ends or file.name.endswith(ends):
            file.unlink()


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def test_lease_ends_without_a_sign_of_life(open_file: Open) -> None:
    """A lease that is not prolonged ends after its time, and nobody has to write for others to see it."""
    writers, readers = Clock(), Clock()
    await open_file(heartbeat=1, ttl=3, now=writers).register(ONE)  # its clock stands: it sends no more
    watch = open_file(heartbeat=1, ttl=3, now=readers).watch("catalog")
    assert set(await anext(watch)) == {ONE.id}
    readers.now += 2.9
    await asyncio.sleep(0.1)
    reader = asyncio.create_task(anext(watch))
    await asyncio.sleep(0.1)
    assert not reader.done()
    readers.now += 0.2
    assert await reader == {}


async def test_instance_comes_back_after_its_lease_ended(open_file: Open) -> None:
    """A process that slept beyond its lease, and was swept out by others, is back with its next sign of life."""
    sleeper, others = Clock(), Clock()
    asleep, awake = open_file(heartbeat=0.1, ttl=3, now=sleeper), open_file(heartbeat=0.1, ttl=3, now=others)
    await asleep.register(ONE)
    watch = awake.watch("catalog")
    assert set(await anext(watch)) == {ONE.id}
    others.now += 5
    await awake.register(TWO)
    assert set(await anext(watch)) == {TWO.id}
    sleeper.now = others.now
    assert set(await anext(watch)) == {ONE.id, TWO.id}


async def test_rows_of_another_boot_are_dead(open_file: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of leases begins anew at boot: what was written before does not count, though it looks alive."""
    await open_file().register(ONE)
    monkeypatch.setattr(lease_file, "_boot_id", lambda: "after-reboot")
    assert await ids(open_file()) == set()


async def test_lease_that_ends_too_late_is_dead(open_file: Open) -> None:
    """Where boots cannot be told apart, a lease that ends later than a new one could is from before."""
    before, after = Clock(), Clock()
    before.now += 100_000
    await open_file(heartbeat=1, ttl=3, now=before).register(ONE)
    assert await ids(open_file(heartbeat=1, ttl=3, now=after)) == set()


async def test_wall_clock_does_not_matter(open_file: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour forward and an hour back end no lease and begin none."""
    registry, real = open_file(), time.time
    await registry.register(ONE)
    watch = open_file().watch("catalog")
    assert set(await anext(watch)) == {ONE.id}
    for jump in (3600, -3600):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(watch)
        assert await ids(registry) == {ONE.id}


async def test_busy_loop_keeps_its_lease(open_file: Open) -> None:
    """A process whose event loop does something long is not thrown out for it."""
    await open_file().register(ONE)
    watch = open_file().watch("catalog")
    assert set(await anext(watch)) == {ONE.id}
    time.sleep(0.8)  # noqa: ASYNC251  # longer than the lease
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.3):
            await anext(watch)


async def test_frozen_machine_loses_nobody(open_file: Open) -> None:
    """When reader and writer were both stopped for longer than a lease, the reader waits for the writer."""
    writer, reader = open_file(), open_file()
    await writer.register(ONE)
    watch = reader.watch("catalog")
    assert set(await anext(watch)) == {ONE.id}
    writer._worker.submit(time.sleep, 1.3)
    reader._worker.submit(time.sleep, 1.0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.6):
            await anext(watch)


async def test_late_watch_is_not_in_doubt(open_file: Open) -> None:
    """A watch that begins long after its registry was opened sees the first departure at once."""
    registry, reader = open_file(), open_file()
    lease = await registry.register(ONE)
    await reader.services()
    await asyncio.sleep(0.7)
    watch = reader.watch("catalog")
    assert set(await anext(watch)) == {ONE.id}
    await lease.close()
    assert await asyncio.wait_for(anext(watch), 0.4) == {}


async def test_same_id_is_not_fought_over(open_file: Open) -> None:
    """Of two processes with one id the later has it, and the earlier's signs of life change nothing."""
    first, second = open_file(), open_file()
    await first.register(ONE)
    await second.register(Instance(ONE.id, "catalog", "127.0.0.1:7009"))
    for _ in range(10):
        assert (await second.services())["catalog"][ONE.id].address == "127.0.0.1:7009"
        await asyncio.sleep(0.05)


async def test_deleted_file_heals(open_file: Open, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """When the file is deleted, all register again in a new one, and no watch sees anybody leave."""
    first, second, reader = open_file(), open_file(), open_file()
    await first.register(ONE)
    await second.register(TWO)
    watch = reader.watch("catalog")
    seen = await anext(watch)
    while set(seen) != {ONE.id, TWO.id}:
        seen = await anext(watch)
    remove(path)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.9):
            pytest.fail(f"a snapshot came: {await anext(watch)}")
    assert await ids(reader) == {ONE.id, TWO.id}
    assert "was deleted or replaced" in caplog.text


@pytest.mark.parametrize("gone", [["-shm"], ["-wal"], ["-shm", "-wal"]], ids="".join)
async def test_lost_files_of_sqlite_split_nobody(
    open_file: Open, path: Path, caplog: pytest.LogCaptureFixture, gone: list[str]
) -> None:
    """When what SQLite keeps beside the file is deleted, old processes and new ones find each other again."""
    reader = open_file()
    await open_file().register(ONE)
    watch = reader.watch("catalog")
    assert set(await anext(watch)) == {ONE.id}
    processes = [process(path, "catalog-2")]
    try:
        assert set(await asyncio.wait_for(anext(watch), 20)) == {ONE.id, "catalog-2"}
        remove(path, *gone)
        await eventually(lambda: "was deleted or replaced" in caplog.text)
        await eventually(lambda: not watch.problem)
        processes.append(process(path, "catalog-3"))
        assert set(await asyncio.wait_for(anext(watch), 20)) == {ONE.id, "catalog-2", "catalog-3"}
    finally:
        for one in processes:
            one.kill()
            one.communicate()


async def test_leaving_process_takes_nothing_from_others(open_file: Open, path: Path) -> None:
    """A process that has the file open twice keeps its locks, so one that leaves does not delete what SQLite keeps."""
    for _ in range(2):
        await open_file().services()
    before = [file.name for file in sorted(path.parent.iterdir())]
    code = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM instance'); db.close()"
    await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code, str(path)], check=True)
    assert [path.name, f"{path.name}-shm", f"{path.name}-wal"] == before
    assert before == [file.name for file in sorted(path.parent.iterdir())]


async def test_missing_directory_is_made_for_this_user(open_file: Open, tmp_path: Path) -> None:
    """The directory of the file is made, and closed to others."""
    await open_file(tmp_path / "a" / "b" / "registry.db").register(ONE)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def content(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def garbage(path: Path) -> None:
    path.write_bytes(b"This is no database, but long enough to be looked at as one. " * 20)


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE precious (x)")
    db.close()


def future(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE instance (x)")
        db.execute(f"PRAGMA application_id = {lease_file.LeaseFile.APPLICATION}")
        db.execute("PRAGMA user_version = 99")
    db.close()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (garbage, "file is not a database"),
        (foreign, "it is a database of something else"),
        (future, "another version of the framework made it, in its format 99"),
        (Path.mkdir, "is a directory"),
    ],
)
async def test_unusable_file_is_refused_untouched(
    open_file: Open, path: Path, make: Callable[[Path], None], message: str
) -> None:
    """A file that is no registry is named in one clear line, and left as it is."""
    make(path)
    before = content(path)
    with pytest.raises(ConfigError) as caught:
        await open_file().register(ONE)
    assert str(caught.value).startswith(f"Registry sqlite:///{path} cannot be used: {message}")
    assert content(path) == before
    with pytest.raises(ConfigError, match=message):
        await open_file().services()


async def test_path_through_a_file_is_refused(open_file: Open, path: Path) -> None:
    """A directory that cannot be made is said, too."""
    garbage(path)
    with pytest.raises(ConfigError, match=rf"file exists \({path}\)"):
        await open_file(path / "registry.db").register(ONE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_forbidden_directory_is_refused(open_file: Open, path: Path) -> None:
    """A directory that may not be written is said, too."""
    path.parent.chmod(0o500)
    with pytest.raises(ConfigError, match="permission denied"):
        await open_file().register(ONE)


async def test_watch_survives_an_unusable_file(open_file: Open, path: Path) -> None:
    """A watch on a broken file says why, waits, and sees the instances once the file is good."""
    garbage(path)
    watch = open_file().watch("catalog")
    reader = asyncio.create_task(anext(watch))
    await eventually(lambda: watch.problem)
    assert watch.problem == f"sqlite:///{path}: file is not a database"
    remove(path)
    await open_file().register(ONE)
    assert set(await reader) == {ONE.id}
    assert watch.problem == ""


async def test_damaged_file_keeps_the_last_snapshot(open_file: Open, path: Path) -> None:
    """When the file is overwritten in use, a watch keeps what it knew, says why, and goes on once it is removed."""
    writer = open_file()
    await writer.register(ONE)
    watch = open_file().watch("catalog")
    assert set(await anext(watch)) == {ONE.id}
    remove(path)
    garbage(path)
    await eventually(lambda: watch.problem)
    remove(path)
    await eventually(lambda: not watch.problem)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            pytest.fail(f"a snapshot came: {await anext(watch)}")
    assert await ids(writer) == {ONE.id}


async def test_writer_waits_for_another(open_file: Open, path: Path) -> None:
    """While somebody writes, others wait for a while, and say so when it takes too long."""
    registry = open_file()
    await registry.services()
    held = sqlite3.connect(path, isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    waiting = asyncio.create_task(registry.register(ONE))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    held.execute("COMMIT")
    await waiting
    held.execute("BEGIN IMMEDIATE")
    with pytest.raises(ConfigError, match="database is locked"):
        await registry.register(TWO)
    held.execute("ROLLBACK")
    held.close()


@pytest.mark.parametrize("reader_first", [False, True])
@pytest.mark.parametrize("also_writes", [False, True])
async def test_nobody_leaves_while_nobody_can_write(
    open_file: Open,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    also_writes: bool,
    reader_first: bool,
) -> None:
    """Leases that end while no sign of life can be written take nobody away, until one could be again for a lease."""
    monkeypatch.setattr(lease_file, "BUSY", 0.02)
    caplog.set_level(logging.WARNING)
    clock = Clock()
    writer, reader = (open_file(heartbeat=1, ttl=3, now=clock) for _ in range(2))
    lease = await writer.register(ONE)
    if also_writes:
        await reader.register(Instance("other-1", "other", "127.0.0.1:7003"))
    watch = reader.watch("catalog")
    assert set(await anext(watch)) == {ONE.id}
    next_one = asyncio.create_task(anext(watch))
    held = sqlite3.connect(path, isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    for _ in range(8):
        clock.now += 1
        await turn(writer)
        await turn(reader)
    assert watch.problem == f"{reader}: nobody can write: database is locked"
    assert await ids(reader) == set()
    held.execute("ROLLBACK")
    held.close()
    clock.now += 1
    for one in (reader, writer) if reader_first else (writer, reader):
        await turn(one)
    assert watch.problem == ""
    assert await ids(reader) == {ONE.id}
    assert not next_one.done()
    assert len([one for one in caplog.messages if "keeping the last 1 instance(s)" in one]) == 1
    assert len([one for one in caplog.messages if "no sign of life can be written" in one]) == 1 + also_writes
    await lease.close()
    await turn(reader)
    clock.now += 2
    await turn(reader)
    assert not next_one.done()
    clock.now += 1
    await turn(reader)
    assert await asyncio.wait_for(next_one, 5) == {}


def test_sign_of_life_without_rows_is_a_write(path: Path) -> None:
    """Who only watches finds out whether the file can be written, and others see that it can."""
    one, other = lease_file.LeaseFile(path, ttl=3), lease_file.LeaseFile(path, ttl=3)
    one.open()
    other.open()
    assert (other.changed(), other.changed()) == (True, False)
    assert one.beat([]) == []
    assert other.changed()
    one.close()
    other.close()


async def test_quiet_watch_writes_nothing(open_file: Open) -> None:
    """While somebody else gives signs of life, one who only watches does not write."""
    clock = Clock()
    writer, reader = (open_file(heartbeat=1, ttl=3, now=clock) for _ in range(2))
    await writer.register(ONE)
    assert set(await anext(reader.watch("catalog"))) == {ONE.id}
    await turn(reader)
    beat_at = []
    for _ in range(5):
        clock.now += 1
        await turn(writer)
        await turn(reader)
        beat_at.append(reader._worker._beat_at - clock.now)
    assert beat_at == [1.5] * 5


async def test_cancelled_registration_leaves_no_instance(open_file: Open) -> None:
    """A registration that is given up half way is taken back."""
    registry = open_file()
    await registry.services()
    for _ in range(20):
        task = asyncio.create_task(registry.register(ONE))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await ids(registry) == set()


async def test_many_processes_begin_at_once(open_file: Open, path: Path) -> None:
    """Processes that find no file all make it at the same moment, and all are registered."""
    processes = [process(path, f"catalog-{number}") for number in range(6)]
    try:
        async with asyncio.timeout(20):
            async for snapshot in open_file(heartbeat=1, ttl=3).watch("catalog"):
                if len(snapshot) == 6:
                    break
    finally:
        for one in processes:
            one.kill()
            one.communicate()


async def test_file_survives_processes_killed_while_writing(open_file: Open, path: Path) -> None:
    """Processes killed in the middle of writing leave a sound file, no locks, and soon no instances."""
    registry = open_file(heartbeat=1, ttl=3)
    await registry.register(ONE)
    for _ in range(3):
        processes = [process(path, f"killed-{number}", forever=True) for number in range(2)]
        for one in processes:
            assert one.stdout is not None
            await asyncio.to_thread(one.stdout.readline)
        await asyncio.sleep(0.05)
        for one in processes:
            one.send_signal(signal.SIGKILL)
            one.communicate()
    lease = await registry.register(TWO)
    await lease.close()
    async with asyncio.timeout(6):
        async for snapshot in registry.watch("catalog"):
            if set(snapshot) == {ONE.id}:
                break
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_default_file_is_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default file is in the session's runtime directory, or in a temporary one that only this user enters."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_file() == tmp_path / "framework" / "registry.db"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/no/such/directory")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    directory = tmp_path / f"framework-{os.getuid()}"
    assert default_file() == directory / "registry.db"
    assert directory.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o777)
    with pytest.raises(ConfigError, match="not a directory of this user alone"):
        default_file()


def test_lease_must_outlast_its_heartbeats(path: Path) -> None:
    """A lease shorter than a heartbeat is refused when the registry is made."""
    with pytest.raises(ConfigError, match=r"A lease of 1 s must be longer than the 2 s"):
        LocalRegistry(path, heartbeat=2, ttl=1)


async def test_trouble_is_logged_once(open_file: Open, path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that stays broken is one warning, not one for every look."""
    garbage(path)
    watch = open_file().watch("catalog")
    reader = asyncio.create_task(anext(watch))
    with caplog.at_level(logging.WARNING):
        await eventually(lambda: watch.problem)
        await asyncio.sleep(0.8)
    assert len([record for record in caplog.records if "not a database" in record.message]) <= 2
    reader.cancel()
