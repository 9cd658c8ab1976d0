"""The file of the local registry: a row per instance, with the moment when its lease ends.

Its process moves that moment on once a second. Readers leave out rows whose lease has ended and writers delete them,
so a process that is killed vanishes by itself.

The moment is on the machine's monotonic clock, which all processes share. Setting the wall clock changes nothing, and
while the machine sleeps the clock stands still, so no lease ends. It begins anew at every boot: rows carry the id of
the boot they belong to, and a lease that ends later than a new one could is not believed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from urllib.parse import quote

from framework.discovery import Instance, Snapshot

log = logging.getLogger("framework.discovery")

BUSY = 1.0  # seconds to wait for another process that is writing
FIELDS = tuple(field.name for field in fields(Instance))


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """An instance, and who registered it: a later registration of the same id has another owner."""

    instance: Instance
    owner: str


class LeaseFile:
    """The rows, in SQL. One thread uses it; every method may raise sqlite3.Error or OSError.

    Other processes may be killed at any moment and the file may be deleted, so `open` comes before every use. WAL, so
    that nobody who reads waits for one who writes.

    Args:
        path: the file.
        ttl: seconds that a lease lasts.
        now: the clock of leases, in seconds.
    """

    APPLICATION = 0x6672616D  # "fram": tells our file from any other database
    FORMAT = 1
    TABLE = "instance (id TEXT PRIMARY KEY, service TEXT, data TEXT, owner TEXT, boot TEXT, ends REAL, ttl REAL)"
    LIVING = "boot = :boot AND ends > :now AND ends < :now + ttl + 1"  # + 1: `now` was read before the row was

    def __init__(self, path: Path, ttl: float, now: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.ttl = ttl
        self.now = now
        self.opened = 0  # how many times: what was written before may be lost when it grows
        self._boot = _boot_id()
        self._open: sqlite3.Connection | None = None
        self._files = (str(path), f"{path}-wal", f"{path}-shm")
        self._identities: tuple[tuple[int, int] | None, ...] = ()
        self._closed_until = -math.inf
        self._version = -1
        self._decoded: dict[str, Instance] = {}

    def open(self) -> None:
        """Open the file, unless it is open and still the one in its directory; make it when it is missing.

        The same holds for the two files that SQLite keeps beside it: who has one that is not in the directory any more
        does not see what others write. SQLite shares them among the connections of a process, so it stays closed until
        each has noticed, and is closed too.
        """
        if self._open is not None:
            identities = tuple(map(_identity, self._files))
            if self._identities == identities:
                return
            log.warning("%s, or what SQLite keeps beside it, was deleted or replaced; opening it again", self)
            self.close()
            if self._identities[0] == identities[0]:
                self._closed_until = self.now() + self.ttl / 2
        if self.now() < self._closed_until:
            raise Healing("files of SQLite beside it were deleted; it is opened again in a moment")
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make()
        before = _identity(self.path)
        self._open = self._connect()
        self._identities = tuple(map(_identity, self._files))
        if before is None or before != self._identities[0]:
            self.close()
            raise OSError("it was replaced while it was being opened")
        self._version = -1
        self.opened += 1

    def close(self) -> None:
        """Close the file; `open` opens it again."""
        if self._open is not None:
            self._open.close()
            self._open = None

    def put(self, row: Row) -> None:
        """Write a row, whoever had its id."""
        data = json.dumps({name: getattr(row.instance, name) for name in FIELDS}, default=dict)
        self._db.execute(
            "INSERT OR REPLACE INTO instance VALUES (?, ?, ?, ?, ?, ?, ?)",
            (row.instance.id, row.instance.service, data, row.owner, self._boot, self.now() + self.ttl, self.ttl),
        )

    def delete(self, row: Row) -> None:
        """Delete a row, unless its id is somebody else's by now."""
        self._db.execute("DELETE FROM instance WHERE id = ? AND owner = ?", (row.instance.id, row.owner))

    def beat(self, rows: Collection[Row]) -> list[Row]:
        """Prolong leases, write again what is lost, delete what ended; says which rows are somebody else's by now.

        Without rows something is written all the same, so that this fails when nothing can be.
        """
        taken, lost = [], []
        self._db.execute("BEGIN IMMEDIATE")
        try:
            now = self.now()
            gone = f"DELETE FROM instance WHERE NOT ({self.LIVING})"  # noqa: S608  # a constant
            self._db.execute(gone, {"boot": self._boot, "now": now})
            if not rows:
                self._db.execute(f"PRAGMA user_version = {self.FORMAT}")
            for row in rows:
                id = row.instance.id
                prolong = "UPDATE instance SET ends = ? WHERE id = ? AND owner = ?"
                if self._db.execute(prolong, (now + self.ttl, id, row.owner)).rowcount:
                    continue
                if self._db.execute("SELECT 1 FROM instance WHERE id = ?", (id,)).fetchone():
                    taken.append(row)
                else:
                    lost.append(id)
                    self.put(row)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.rollback()
            raise
        for id in lost:
            log.warning("%s had vanished from %s and is registered again", id, self)
        return taken

    def changed(self) -> bool:
        """Whether anybody else has written since this was asked last; costs a few microseconds."""
        before, self._version = self._version, self._db.execute("PRAGMA data_version").fetchone()[0]
        return self._version != before

    def living(self, service: str) -> tuple[dict[str, Instance], float]:
        """The instances of a service, and the moment when the first of their leases ends."""
        rows = self._select("AND service = :service", service)
        return {one.id: one for one, _ in rows}, min((ends_at for _, ends_at in rows), default=math.inf)

    def services(self) -> dict[str, Snapshot]:
        """Every service with its instances."""
        found: dict[str, dict[str, Instance]] = {}
        for one, _ in self._select("ORDER BY service"):
            found.setdefault(one.service, {})[one.id] = one
        return {service: MappingProxyType(instances) for service, instances in found.items()}

    def __str__(self) -> str:
        return url(self.path)

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._open is not None
        return self._open

    def _select(self, more: str, service: str = "") -> list[tuple[Instance, float]]:
        values = {"boot": self._boot, "now": self.now(), "service": service}
        select = f"SELECT data, ends FROM instance WHERE {self.LIVING} {more}"  # noqa: S608  # constants of this class
        rows = self._db.execute(select, values)
        return [(self._decode(data), ends_at) for data, ends_at in rows]

    def _decode(self, data: str) -> Instance:
        """The instance in a row: the same object while the row says the same, so snapshots are cheap to compare."""
        instance = self._decoded.get(data)
        if instance is None:
            values = {name: value for name, value in json.loads(data).items() if name in FIELDS}
            values |= {"tags": tuple(values["tags"]), "metadata": MappingProxyType(values["metadata"])}
            if len(self._decoded) > 20_000:
                self._decoded.clear()
            instance = self._decoded[data] = Instance(**values)
        return instance

    def _make(self) -> None:
        """Make the file if it is missing.

        One that exists is not opened here: to close it again would end the locks that this process holds on it through
        another connection, and then the next process that leaves deletes what SQLite keeps beside the file.
        """
        with contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644))
        if self.path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self.path))

    def _connect(self) -> sqlite3.Connection:
        give_up_at = time.monotonic() + BUSY
        while True:
            db = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None)
            try:
                self._prepare(db)
                return db
            except sqlite3.Error as error:
                db.close()
                # Processes that switch a new file to WAL at the same moment are not made to wait for each other.
                busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
                if not busy or time.monotonic() > give_up_at:
                    raise
            time.sleep(0.01)

    def _prepare(self, db: sqlite3.Connection) -> None:
        db.execute("BEGIN IMMEDIATE")
        tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = db.execute("PRAGMA application_id").fetchone()[0]
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if not tables and not application:
            db.execute(f"CREATE TABLE {self.TABLE}")
            db.execute(f"PRAGMA application_id = {self.APPLICATION}")
            db.execute(f"PRAGMA user_version = {self.FORMAT}")
        elif application != self.APPLICATION:
            raise sqlite3.DatabaseError("it is a database of something else")
        elif version != self.FORMAT:
            raise sqlite3.DatabaseError(f"another version of the framework made it, in its format {version}")
        db.execute("COMMIT")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA data_version").fetchone()  # from the first look on, the files beside it are there


def url(path: Path) -> str:
    """What names the file as a registry; what has a meaning in a URL is escaped, so that it means this file."""
    return "sqlite:///" + re.sub(r"[%?#\0-\x1f]| +$", lambda match: quote(match[0]), path.as_posix())


def reason(error: Exception) -> str:
    """What went wrong, for the end of a message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower() + (f" ({error.filename})" if error.filename else "")
    return str(error)


class Healing(OSError):
    """Not to be used for a moment, until nobody uses any more what was deleted."""


def is_healing(error: BaseException | None) -> bool:
    """Whether the file may be usable in a moment: some still have what SQLite kept beside it, and others have not."""
    return isinstance(error, Healing) or getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_IOERR


def _identity(path: str | Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # not Linux: not believing leases that end too late has to do
        return ""
