"""Files that are followed while a process runs: what changes takes effect, and what cannot be used does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from framework.config import Stamp
from framework.errors import ConfigError

log = logging.getLogger("framework.security")

INTERVAL = 1.0
"""Seconds between two looks."""

T = TypeVar("T")


class Followed(Generic[T]):
    """A file, or a folder of files, and what is read from it.

    Args:
        path: where it is; from where the process is now, wherever it goes from here.
        read: reads it; raises ConfigError.
        changed: is told what it says now, whenever that has changed; may refuse it with ConfigError.

    Attributes:
        value: what it says, or said when it could be used last.

    Raises:
        ConfigError: it cannot be used from the start.
    """

    def __init__(
        self, path: Path, read: Callable[[Path], T], changed: Callable[[T], object] = lambda value: None
    ) -> None:
        self.path = path.absolute()
        self._read = read
        self._changed = changed
        self._stamp = self._seen = _stamp(path)
        self.value = read(path)  # and mistakes are told as it was named

    def look(self) -> None:
        """Read it when it has changed since it was read, and not since the last look."""
        stamp = _stamp(self.path)
        settled, self._seen = stamp == self._seen, stamp
        if stamp == self._stamp or not settled:  # half a file may be valid, and say something else
            return
        self._stamp = stamp
        try:
            value = self._read(self.path)
            self._changed(value)
        except (ConfigError, OSError) as error:
            log.warning("%s; what it said before stays", error)
            return
        self.value = value
        log.info("%s has changed, and is followed", self.path)

    def __repr__(self) -> str:
        return f"<Followed {self.path}>"


class Looked(Protocol):
    """What is looked at again and again."""

    def look(self) -> None:
        """Take over what has changed."""


async def follow(files: Iterable[Looked]) -> None:
    """Look at files until cancelled: at each of them, whatever becomes of the others."""
    files = tuple(files)
    while files:
        await asyncio.sleep(INTERVAL)
        for one in files:
            try:
                one.look()
            except Exception:
                log.exception("%r cannot be followed; what it said before stays", one)


def text_of(path: Path) -> str:
    """What a file says. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no UTF-8'}") from None


def _stamp(path: Path) -> Any:
    try:
        if path.is_dir():
            return tuple(sorted((one.name, str(Stamp.now(one))) for one in path.iterdir()))
    except OSError:  # gone in the meantime, or not to be read now
        return None
    return Stamp.now(path)
