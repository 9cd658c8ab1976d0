"""The default registry: one SQLite file that the processes of one machine share. No server, nothing to install.

Reading order: LocalRegistry (asyncio), _Worker (its one thread), then `lease_file` (the rows, and what time means).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import queue
import secrets
import sqlite3
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import ParamSpec, TypeVar

from framework.discovery import Instance, Snapshot, validate
from framework.discovery.lease_file import LeaseFile, Row, is_healing, reason, url
from framework.discovery.watching import LastGood, PushedWatch
from framework.errors import ConfigError

log = logging.getLogger("framework.discovery")

P = ParamSpec("P")
T = TypeVar("T")

POLL = 0.04  # seconds between looks; a change is seen after half of it on average
RETRY = 0.5  # seconds between looks at a file that cannot be used


def default_file() -> Path:
    """The file of this user on this machine: in the session's runtime directory, or else in the temporary one.

    Raises:
        ConfigError: in the temporary directory, somebody else owns its place or may write there.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.path.isdir(runtime):
        return Path(runtime, "framework", "registry.db")
    directory = Path(tempfile.gettempdir(), f"framework-{os.getuid()}")
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ConfigError(
            f"{directory} is not a directory of this user alone, so a registry in it cannot be trusted. Remove it, or "
            "choose another registry with --registry or FRAMEWORK_REGISTRY."
        )
    return directory / "registry.db"


class LocalRegistry:
    """Instances of one machine, in one SQLite file.

    Args:
        path: the file; made when it is missing, with the directories above it.
        heartbeat: seconds between two signs of life of an instance.
        ttl: seconds after the last sign of life at which it is gone; several heartbeats.
        now: the clock of leases, in seconds; one that all processes of the machine share.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        heartbeat: float = 1.0,
        ttl: float = 3.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < heartbeat < ttl:
            raise ConfigError(f"A lease of {ttl} s must be longer than the {heartbeat} s between heartbeats.")
        self.path = Path(os.path.abspath(path))
        self._worker = _Worker(LeaseFile(self.path, ttl, now), heartbeat)
        self._ttl = ttl
        self._watches: set[PushedWatch] = set()

    async def register(self, instance: Instance) -> LocalLease:
        """Make an instance known and keep it so; whoever had its id before has lost it.

        Raises:
            ConfigError: the instance is not valid, or the file cannot be made or written.
        """
        row = Row(validate(instance), owner=secrets.token_hex(8))
        try:
            await self._do(self._worker.add, row)
        except asyncio.CancelledError:
            self._worker.submit(self._worker.remove, row)
            raise
        return LocalLease(row, self)

    def watch(self, service: str) -> LocalWatch:
        """Watch the living instances of a service."""
        return LocalWatch(service, self)

    async def services(self) -> Mapping[str, Snapshot]:
        """Every service with its living instances.

        Raises:
            ConfigError: the file cannot be made or read.
        """
        return await self._do(self._worker.services)

    async def names(self) -> Iterable[str]:
        """The names of every service. Raises ConfigError like `services`."""
        return tuple(await self.services())

    async def aclose(self) -> None:
        """End watches, deregister what is still registered, and end the thread."""
        for watch in tuple(self._watches):
            await watch.aclose()
        await self._worker.stop()

    def __str__(self) -> str:
        return url(self.path)

    def __repr__(self) -> str:
        return f"<LocalRegistry {self}>"

    async def _do(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        loop = asyncio.get_running_loop()
        until = loop.time() + self._ttl
        while True:
            try:
                return await asyncio.wrap_future(self._worker.submit(work, *args, **kwargs))
            except (sqlite3.Error, OSError) as error:
                if not is_healing(error) or loop.time() >= until:
                    raise ConfigError(
                        f"Registry {self} cannot be used: {reason(error)}. Put that right, or choose another "
                        "registry with --registry or FRAMEWORK_REGISTRY."
                    ) from error
            await asyncio.sleep(POLL)


class LocalLease:
    """See `Lease`. A row that the worker keeps alive."""

    def __init__(self, row: Row, registry: LocalRegistry) -> None:
        self.row = row
        self._registry = registry

    async def close(self) -> None:
        """Delete the row, unless it is somebody else's by now. Never raises; trouble is logged."""
        worker = self._registry._worker
        if worker.stopped:
            return
        try:
            await asyncio.shield(self._registry._do(worker.remove, self.row))
        except ConfigError as error:
            log.warning("%s is not deregistered and will vanish by itself: %s", self.row.instance.id, error)

    def __repr__(self) -> str:
        return f"<LocalLease {self.row.instance.service} {self.row.instance.id} in {self._registry}>"


class LocalWatch(PushedWatch):
    """See `Watch`. The worker looks, this one delivers."""

    def __init__(self, service: str, registry: LocalRegistry) -> None:
        super().__init__(service, str(registry), registry._watches)
        self._worker = registry._worker
        self._loop: asyncio.AbstractEventLoop | None = None

    def post(self, tell: Callable[[T], None], what: T) -> None:
        """Call `show` or `trouble` on the loop of the reader; from the worker's thread."""
        assert self._loop is not None
        try:
            self._loop.call_soon_threadsafe(tell, what)
        except RuntimeError:  # the loop was closed before the watch
            self._worker.unwatch(self)

    def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._worker.submit(self._worker.watch, self)

    async def _stop(self) -> None:
        await asyncio.shield(asyncio.wrap_future(self._worker.submit(self._worker.unwatch, self)))


class _Worker:
    """The one thread that touches the file: does what it is asked, sends signs of life, looks for changes.

    A thread and not the event loop: a loop that is busy for a while must not lose its leases, and looking often must
    not cost it anything. `submit` and `stop` are called from the loop, everything else runs on the thread.
    """

    def __init__(self, file: LeaseFile, heartbeat: float) -> None:
        self.stopped = False
        self._file = file
        self._heartbeat = heartbeat
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._rows: dict[str, Row] = {}
        self._watches: dict[LocalWatch, LastGood] = {}
        self._known = 0  # which opening of the file rows and watches know of
        self._stale = False  # what we write ourselves does not count as a change
        self._failing = False
        self._unwritten = ""  # why no sign of life could be written the last time
        # Seconds without a write of anybody after which one who only watches tries to write. It learns of a file that
        # nobody can write before the first lease ends for it, and where somebody lives it mostly writes nothing.
        self._silence = (file.ttl - heartbeat) * 0.75
        self._beat_at = 0.0  # on the clock of leases, as is the next
        self._ends_at = math.inf
        self._turned_at = time.monotonic()

    def submit(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run this on the thread, which the first one starts."""
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(*args, **kwargs))
                except BaseException as error:
                    if is_healing(error):
                        self._file.close()
                    future.set_exception(error)

        if self.stopped:
            future.set_exception(sqlite3.ProgrammingError("it is closed"))
            return future
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="framework-registry", daemon=True)
            self._thread.start()
        self._jobs.put(job)
        return future

    async def stop(self) -> None:
        """Deregister all, close the file and end the thread."""
        if self._thread is not None and not self.stopped:
            await asyncio.shield(asyncio.wrap_future(self.submit(self._close)))
            self._thread.join()
        self.stopped = True

    def add(self, row: Row) -> None:
        self._file.open()
        self._file.put(row)
        self._rows[row.instance.id] = row
        self._beat_at = min(self._beat_at, self._file.now() + self._heartbeat)
        self._stale = True

    def remove(self, row: Row) -> None:
        if self._rows.get(row.instance.id) is row:
            del self._rows[row.instance.id]
            self._file.open()
            self._file.delete(row)
            self._stale = True

    def services(self) -> Mapping[str, Snapshot]:
        self._file.open()
        return self._file.services()

    def watch(self, watch: LocalWatch) -> None:
        self._watches[watch] = LastGood(self._file.ttl)
        self._stale = True

    def unwatch(self, watch: LocalWatch) -> None:
        self._watches.pop(watch, None)

    def _run(self) -> None:
        while not self.stopped:
            try:
                job = self._jobs.get(timeout=self._patience())
            except queue.Empty:
                pass
            else:
                job()
            if (self._rows or self._watches) and not self.stopped:
                self._turn()

    def _patience(self) -> float | None:
        """Seconds until the next turn, unless there is a job before."""
        if self._failing:
            return RETRY
        if self._watches:
            return POLL
        return max(0.0, self._beat_at - self._file.now()) if self._rows else None

    def _turn(self) -> None:
        """See whether rows and watches need anything; mostly they do not."""
        turned_at, self._turned_at = self._turned_at, time.monotonic()
        # A reader that was itself stopped (overload, a debugger) gives the others time to show that they live.
        stopped = self._turned_at - turned_at > self._file.ttl / 2
        try:
            self._file.open()
            lost, self._known = self._file.opened > self._known > 0, self._file.opened
            before, beaten = self._unwritten, self._must_beat(lost)
            if beaten:
                self._beat()
            if self._watches:
                # When nobody could write, leases end that should not. The first write is one too early to believe them.
                unwritten = beaten and (before or self._unwritten)
                self._look(doubtful=bool(lost or stopped or unwritten), again=bool(before) and not self._unwritten)
                if beaten and self._unwritten:
                    self._tell(self._unwritten)
            self._failing = False
        except Exception as error:  # whatever it is, the thread goes on
            if not self._failing:
                known = isinstance(error, sqlite3.Error | OSError)
                log.warning("%s: %s", self._file, reason(error), exc_info=None if known else error)
            self._failing = True
            self._file.close()
            self._tell(reason(error))

    def _tell(self, trouble: str) -> None:
        for watch in tuple(self._watches):
            watch.post(watch.trouble, trouble)

    def _must_beat(self, lost: bool) -> bool:
        if self._file.now() >= self._beat_at:
            return bool(self._rows or self._unwritten) or any(good.shown for good in self._watches.values())
        return lost and bool(self._rows)

    def _beat(self) -> None:
        """Write signs of life; without a row of ours, find out whether others can write theirs."""
        self._beat_at = self._file.now() + self._heartbeat
        self._stale = True
        try:
            taken = self._file.beat(self._rows.values())
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL):
                raise
            # Somebody stopped while writing, or there is no space: one can still read.
            if self._rows and not self._unwritten:
                log.warning("%s: no sign of life can be written: %s", self._file, error)
            self._unwritten = f"nobody can write: {error}"
            return
        if self._rows and self._unwritten:
            log.info("%s: signs of life are written again", self._file)
        self._unwritten = ""
        for row in taken:
            log.warning("%s was registered again by somebody else, who has it now", row.instance.id)
            del self._rows[row.instance.id]

    def _look(self, *, doubtful: bool, again: bool) -> None:
        now = self._file.now()
        due = now >= self._ends_at or any(good.due(now) for good in self._watches.values())
        changed = self._file.changed()
        if changed and not self._rows and not self._unwritten:
            self._beat_at = now + self._silence
        if not (changed or self._stale or self._failing or doubtful or due):
            return
        services = {watch.service for watch in self._watches}
        answers = {service: self._file.living(service) for service in services}
        self._ends_at = min(ends_at for _, ends_at in answers.values())
        self._stale = False
        for watch, good in tuple(self._watches.items()):
            answer, before = answers[watch.service][0], good.shown
            shown = good.accept(answer, now, doubtful=doubtful, confirmed=not doubtful and good.due(now))
            if self._failing or again or shown != before:
                watch.post(watch.show, shown)

    def _close(self) -> None:
        try:
            for row in tuple(self._rows.values()):
                self.remove(row)
        except (sqlite3.Error, OSError) as error:
            log.warning("%s: what is registered will vanish by itself: %s", self._file, reason(error))
        self._file.close()
        self.stopped = True
