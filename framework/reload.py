"""The settings file while the process runs: what changes in it is said in the log, and takes effect where it can.

    | the file                    | what happens                                                              |
    |-----------------------------|---------------------------------------------------------------------------|
    | has changed                 | once it has stayed the same for one look: read, differences logged, told  |
    | cannot be used              | one line says why; the settings stay                                      |
    | is gone                     | one line, when there was one; the settings stay; another when it is back  |

Client settings take effect with the next call, on every channel that follows, and so do rules of access. Those of the
server, the registry and what connections are made with are those that a process was started with: a change of them is
logged as one that needs a restart.
"""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from framework.access import DENY, Rules
from framework.config import Settings, Source, Stamp
from framework.errors import ConfigError
from framework.parsing import Table, leaves, shown
from framework.policy import ClientSettings, MethodSettings

log = logging.getLogger("framework.settings")

INTERVAL = 1.0
"""Seconds between two looks at a file."""


class Configurable(Protocol):
    """Something made with client settings that can take others, such as a channel."""

    def apply(self, settings: ClientSettings) -> None:
        """Use these from now on."""


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that is not what it was.

    Attributes:
        path: as a file names it, `client.catalog.timeout`.
        old, new: its values, as a file would say them; `unset` for a setting of a method that says nothing.
        restart: it takes effect when the process is started again, not before.
    """

    path: str
    old: str
    new: str
    restart: bool = False

    def __str__(self) -> str:
        return f"{self.path} {self.old} -> {self.new}"


UNSET = "unset"

FIXED = ("connect_timeout", "direct", "keepalive", "max_message", "plaintext", "tls")
"""Client settings that a connection is made with."""


def changes(old: Settings, new: Settings) -> list[Change]:
    """What differs between two settings; what a service or a method only inherits is named where it is said."""
    found = []
    if old.registry != new.registry:
        found.append(Change("registry", old.registry, new.registry, restart=True))
    for name in ("server", "gateway", "telemetry", "admin"):
        differ = _table(name, getattr(old, name), getattr(new, name))
        found += [dataclasses.replace(change, restart=True) for change in differ]
    found += [dataclasses.replace(change, restart=True) for change in _table("auth", old.auth, new.auth)]
    found += _table("access", old.access, new.access)
    for pattern in sorted(old.access.rules.keys() | new.access.rules.keys()):
        was, now = (said(one.access.rules.get(pattern)) for one in (old, new))
        if was != now:
            found.append(Change(f"access.rules.{pattern}", was, now))
    found += _client("client", old.client, new.client, None)
    for name in sorted(old.clients.keys() | new.clients.keys()):
        above = (old.client, new.client)
        found += _client(f"client.{name}", old.client_for(name), new.client_for(name), above)
    return found


def said(rules: Rules | None) -> str:
    """Rules as one line."""
    return UNSET if rules is None else "; or ".join(map(str, rules)) or DENY


Above = tuple[Any, Any]
"""What two tables are made on top of."""


def _client(path: str, old: ClientSettings, new: ClientSettings, above: Above | None) -> Iterator[Change]:
    yield from _table(path, old, new, above)
    nothing = MethodSettings()
    for name in sorted(old.methods.keys() | new.methods.keys()):
        was, now = old.methods.get(name, nothing), new.methods.get(name, nothing)
        if above is None or (was, now) != (above[0].methods.get(name, nothing), above[1].methods.get(name, nothing)):
            service = _whole(nothing, old), _whole(nothing, new)
            yield from _table(f"{path}.methods.{name}", _whole(was, old), _whole(now, new), service)


def _whole(method: MethodSettings, service: ClientSettings) -> MethodSettings:
    """Settings of a method with the tables that it takes from its service."""
    nested = {name: getattr(method, name) or getattr(service, name) for name in ("retry", "hedge", "bulkhead")}
    return dataclasses.replace(method, **nested)


def _table(path: str, old: Table, new: Table, above: Above | None = None) -> Iterator[Change]:
    for names, f in leaves(type(new)):
        was, now = _get(old, names), _get(new, names)
        if was == now or (above is not None and (was, now) == (_get(above[0], names), _get(above[1], names))):
            continue
        unset = isinstance(new, MethodSettings) and len(names) == 1
        before, after = (UNSET if unset and value is None else shown(f, value) for value in (was, now))
        yield Change(".".join((path, *names)), before, after, restart=names[0] in FIXED)


def _get(table: Any, names: tuple[str, ...]) -> Any:
    for name in names:
        table = getattr(table, name)
    return table


def follow(settings: Settings, service: str, follower: Configurable) -> Callable[[], None]:
    """Keep something up to date that was made with the settings of clients of a service.

    It is known by a weak reference, and forgotten once it is collected or what is returned is called. Settings that
    come from no file, or that code has changed since they were read, stay as they are; so does everything made before
    there is an event loop, from which a file could be looked at.
    """
    own = settings.client_for(service)
    if settings.source is None or own != settings.source.read.client_for(service):
        return _nothing
    file = _file_of(settings.source)
    if file is None:
        return _nothing
    leave = file.subscribe(service, follower)
    # Settings that were read before the last change are out of date; those that were read after it are to be told yet.
    if settings.source.stamp not in (file.stamp, Stamp.now(file.path)) and own != file.settings.client_for(service):
        _apply(follower, file.settings.client_for(service))
    return leave


def watch(settings: Settings, callback: Callable[[Settings], object] = lambda settings: None) -> Callable[[], None]:
    """Look at the file that settings were read from, log what changes in it, and call back with the new ones, until
    what is returned is called."""
    file = _file_of(settings.source) if settings.source is not None else None
    return file.watch(callback) if file is not None else _nothing


def _nothing() -> None:
    """Stop what was never begun."""


_files: dict[Path, SettingsFile] = {}
"""The one that looks at a file for the whole process, while anybody follows."""


def _file_of(source: Source) -> SettingsFile | None:
    """The one that looks at this file from the running loop; None when there is no loop."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return None
    return _files.setdefault(source.path, SettingsFile(source))


class SettingsFile:
    """A settings file that is looked at every second, on the event loop, while anybody follows.

    A look is one `stat`, which costs less than handing it to a thread.

    Args:
        source: what was read from the file last, and when.

    Attributes:
        path: the file.
        settings: what it says, or said when it could be used last.
        stamp: what it looked like when it was read, whether it could be used or not.
    """

    def __init__(self, source: Source) -> None:
        self.path = source.path
        self.settings = source.read
        self.stamp = source.stamp
        self._environ = source.environ
        self._seen = source.stamp  # at the last look
        self._refused = False
        self._callbacks: list[Callable[[Settings], object]] = []
        self._followers: weakref.WeakKeyDictionary[Configurable, str] = weakref.WeakKeyDictionary()
        self._loop: asyncio.AbstractEventLoop | None = None  # that it looks from

    def watch(self, callback: Callable[[Settings], object]) -> Callable[[], None]:
        """Call back with the settings whenever they have changed, until what is returned is called."""
        self._callbacks.append(callback)
        self._start()
        return lambda: self._callbacks.remove(callback) if callback in self._callbacks else None

    def subscribe(self, service: str, follower: Configurable) -> Callable[[], None]:
        """Apply the settings of clients of a service to something whenever they change, until it is collected or what
        is returned is called."""
        self._followers[follower] = service
        self._start()
        reference = weakref.ref(follower)

        def leave() -> None:
            if (left := reference()) is not None:
                self._followers.pop(left, None)

        return leave

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # none yet, or one that has ended: there is one per process
            self._loop = loop
            self._again(loop)

    def _again(self, loop: asyncio.AbstractEventLoop) -> None:
        # A context of its own, or the call that came first would be kept alive by it.
        loop.call_later(INTERVAL, self._tick, loop, context=contextvars.Context())

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._callbacks and not self._followers:
            self._loop = None
            _files.pop(self.path, None)
            return
        try:
            self.look()
        finally:
            self._again(loop)

    def look(self) -> None:
        """Read the file when it has changed since it was read, and not since the last look."""
        stamp = Stamp.now(self.path)
        settled, self._seen = stamp == self._seen, stamp
        if stamp == self.stamp or not settled:  # half a file may be valid, and say something else
            return
        self.stamp = stamp
        if stamp is None:
            self._refused = True
            log.warning("%s is gone; the settings stay as they were", self.path)
            return
        try:
            new = Settings.load(self.path, self._environ)
        except ConfigError as error:
            self._refused = True
            log.warning("%s; the settings stay as they were", error)
            return
        old, self.settings = self.settings, new
        self._tell(old, new)
        self._refused = False

    def _tell(self, old: Settings, new: Settings) -> None:
        found = changes(old, new)
        now = [str(change) for change in found if not change.restart]
        later = [str(change) for change in found if change.restart]
        if now:
            log.info("%s has changed: %s", self.path, ", ".join(now))
        if later:
            log.warning("%s has changed: %s; this takes effect after a restart", self.path, ", ".join(later))
        if not found and self._refused:
            log.info("%s can be used again; the settings stay as they were", self.path)
        for follower, service in tuple(self._followers.items()):
            if new.client_for(service) != old.client_for(service):
                _apply(follower, new.client_for(service))
        if found:
            for callback in tuple(self._callbacks):
                callback(new)

    def __repr__(self) -> str:
        return f"<SettingsFile {self.path} followed by {len(self._followers) + len(self._callbacks)}>"


def _apply(follower: Configurable, settings: ClientSettings) -> None:
    try:
        follower.apply(settings)
    except ConfigError as error:  # they may not go with what a proto says
        log.warning("%r keeps its settings: %s", follower, error)
