"""Who is there: services register their instances, channels watch them.

Reading order: this file (the protocol), `targets` (a string to a registry), `local` (the default: one SQLite file),
`consul`, `static`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, TypeAlias

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
    metadata: Mapping[str, str] = field(default=_NOTHING)


Snapshot: TypeAlias = Mapping[str, Instance]
"""Every healthy instance of one service by its id: complete, never a difference. Empty means confirmed empty."""


class Lease(Protocol):
    """One registration, kept alive until it is closed; if the process dies, the registry drops it by itself."""

    async def close(self) -> None:
        """Deregister. Harmless when done twice, or when the registry is away (it is logged, never raised)."""


class Watch(Protocol):
    """An async iterator of snapshots: the first as soon as it is known, then one per change, never two equal in a row.

    It outlives a registry that goes away: it keeps its last snapshot, tries again, and says why in `problem`.
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
            ConfigError: the registry cannot be reached, or refuses; the message says which and what to do.
        """

    def watch(self, service: str) -> Watch:
        """Watch the healthy instances of a service; does no I/O before the first `__anext__`."""

    async def services(self) -> Mapping[str, Snapshot]:
        """Every registered service with its healthy instances.

        Raises:
            ConfigError: the registry cannot be reached.
        """

    async def aclose(self) -> None:
        """Release connections and threads. Leases and watches are closed before."""
