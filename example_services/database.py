"""Where each service keeps its data: a SQLite file of its own, used off the event loop."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

BUSY = 5.0  # seconds to wait while the other instance writes
POLL = 0.05  # seconds between looks for changes


class Database:
    """One SQLite file and the one thread that uses it: the event loop never waits for a disk.

    Work is a function of the connection and a transaction: all of it happens or, when it raises, nothing; a caller who
    is cancelled does not break it off. Instances of a service on one machine share the file, so they agree on what an
    idempotency key stands for.
    """

    def __init__(self, name: str, thread: ThreadPoolExecutor, connection: sqlite3.Connection) -> None:
        self.name = name
        self._thread = thread
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, name: str, create: Callable[[sqlite3.Connection], None]) -> AsyncIterator[Database]:
        """The database of a service: in the directory that SHOP_DATA names, or else in memory.

        Args:
            name: of the service.
            create: makes the tables of a new one, and puts in what it starts with.
        """
        directory = os.environ.get("SHOP_DATA")
        path = Path(directory, f"{name}.db") if directory else Path(":memory:")
        with ThreadPoolExecutor(1, f"database-{name}") as thread:
            connection = await asyncio.get_running_loop().run_in_executor(thread, _connect, path)
            database = cls(name, thread, connection)
            try:
                await database.write(_create_once, create)
                yield database
            finally:
                await database._on_thread(connection.close)

    async def read(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `work(connection, ...)` returns, seen at one moment."""
        return await self._on_thread(self._transaction, "BEGIN", lambda: work(self._connection, *args, **kwargs))

    async def write(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """What `work(connection, ...)` returns, once what it wrote is kept."""
        return await self._on_thread(
            self._transaction, "BEGIN IMMEDIATE", lambda: work(self._connection, *args, **kwargs)
        )

    async def changes(self) -> AsyncIterator[None]:
        """Yield at once, and again after changes, whichever instance makes them."""
        seen = None
        while True:
            if (version := await self._on_thread(self._version)) != seen:
                seen = version
                yield
            await asyncio.sleep(POLL)

    async def _on_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))

    def _transaction(self, begin: str, work: Callable[[], T]) -> T:
        self._connection.execute(begin)
        with self._connection:  # commits, or rolls back when the work raises
            return work()

    def _version(self) -> tuple[int, int]:
        """Moves with every change: the first number with those of others, the second with our own."""
        [others] = self._connection.execute("PRAGMA data_version").fetchone()
        return others, self._connection.total_changes

    def __repr__(self) -> str:
        return f"<Database {self.name}>"


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY, isolation_level=None)
    connection.execute("PRAGMA synchronous = NORMAL")
    give_up_at = time.monotonic() + BUSY
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")  # readers do not wait for the writer
            return connection
        except sqlite3.OperationalError:  # of two who switch a new file to it at the same moment, one is refused
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.01)


def _create_once(connection: sqlite3.Connection, create: Callable[[sqlite3.Connection], None]) -> None:
    [version] = connection.execute("PRAGMA user_version").fetchone()
    if not version:
        create(connection)
        connection.execute("PRAGMA user_version = 1")
