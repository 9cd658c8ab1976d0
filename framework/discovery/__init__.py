"""Who is there: services register their instances, channels watch them.

Reading order: this file (the protocol), `targets` (a string to a registry), `watching` (what watches share), `local`
and `lease_file` (the default: one SQLite file), `consul_terms` and `consul`, `static`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeAlias

from framework.errors import ConfigError

_NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Instance:
    """One running process of a service.

    Attributes:
        id: unique among all instances of the registry; registering the same id again replaces the entry.
        service: the name clients connect to, `catalog`.
        address: what clients dial: `host:port`, `[v6]:port`, or a target of grpc's own such as `dns:///name:port`.
        version: the software's version, for routing rules; may be empty.
        zone: where it runs, for locality; may be empty.
        weight: share of traffic relative to the others, 1 to 100.
        protocol: `grpc`.
        tags: free labels.
        metadata: free pairs of strings.
    """

    id: str
    service: str
    address: str
    version: str = ""
    zone: str = ""
    weight: int = 1
    protocol: str = "grpc"
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=lambda: _NOTHING)


_ID = re.compile(r"[^\s/?#%]+")
_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_KEY = re.compile(r"[A-Za-z0-9_-]{1,128}")
_OWN_KEYS = frozenset({"version", "zone", "weight", "protocol", "lease"})


def validate(instance: Instance) -> Instance:
    """The same instance, if every registry can hold it; what one takes and another refuses is refused by all.

    Raises:
        ConfigError: names the field and what it may be.
    """
    if not _SERVICE.fullmatch(instance.service):
        raise ConfigError(f"Service name {instance.service!r}: use letters, digits, '.', '_' and '-'.")
    where = f"Instance {instance.id!r} of {instance.service}"
    if not _ID.fullmatch(instance.id):
        raise ConfigError(f"{where}: the id may not be empty or contain spaces or any of / ? # %.")
    if not instance.address:
        raise ConfigError(f"{where}: it needs the address that clients dial, host:port.")
    if not 1 <= instance.weight <= 100:
        raise ConfigError(f"{where}: weight {instance.weight} is not between 1 and 100.")
    for key, value in instance.metadata.items():
        if key in _OWN_KEYS:
            raise ConfigError(f"{where}: metadata {key!r} is reserved; version, zone, weight and protocol are fields.")
        if not _KEY.fullmatch(key) or len(value) > 512:
            raise ConfigError(
                f"{where}: metadata {key!r}: a key is at most 128 letters, digits, '_' or '-', a value 512 characters."
            )
    return instance


Snapshot: TypeAlias = Mapping[str, Instance]
"""Every healthy instance of one service by its id: complete, never a difference. Empty means confirmed empty.

An instance that did not change is the object that it was in the snapshot before, so that comparing is cheap.
"""


class Lease(Protocol):
    """One registration, kept alive until it is closed; if the process dies, the registry drops it by itself."""

    async def close(self) -> None:
        """Deregister. Harmless when done twice, or when the registry is away (it is logged, never raised)."""


class Watch(Protocol):
    """An async iterator of snapshots: the first as soon as it is known, then one per change, never two equal in a row.

    It outlives a registry that goes away: it keeps its last snapshot, tries again, and says why in `problem`. One that
    came back may have forgotten instances that live, so nobody is taken away before it had time to hear of them. A
    cancelled `__anext__` loses nothing: call it again.
    """

    @property
    def problem(self) -> str:
        """Why nothing fresh can be had, for the error a caller sees; empty while all is well."""

    def __aiter__(self) -> Watch: ...

    async def __anext__(self) -> Snapshot: ...

    async def aclose(self) -> None:
        """Stop watching."""


class Registry(Protocol):
    """Where instances are registered and found. `str(registry)` is its URL without secrets, for messages."""

    async def register(self, instance: Instance) -> Lease:
        """Make an instance known, healthy, and keep it so.

        Raises:
            ConfigError: the instance is not valid, or the registry cannot be reached, or it refuses; the message says
                which and what to do.
        """

    def watch(self, service: str) -> Watch:
        """Watch the healthy instances of a service; does no I/O before the first `__anext__`."""

    async def services(self) -> Mapping[str, Snapshot]:
        """Every registered service with its healthy instances.

        Raises:
            ConfigError: the registry cannot be reached.
        """

    async def names(self) -> Iterable[str]:
        """The names of every registered service; cheaper than `services`, and one without instances may be among them.

        Raises:
            ConfigError: the registry cannot be reached.
        """

    async def aclose(self) -> None:
        """Release connections and threads; a lease or watch that is still open is closed first."""
