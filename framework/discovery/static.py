"""A registry that is a fixed list of addresses: no server, no health, nothing ever changes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from framework.discovery import Instance, Snapshot, validate
from framework.discovery.watching import PushedWatch
from framework.errors import ConfigError

log = logging.getLogger("framework.discovery")


class StaticRegistry:
    """Says the same addresses for every service.

    Args:
        addresses: what clients dial: `host:port` or a target of grpc's own; the id of an instance is its address.
    """

    def __init__(self, addresses: Iterable[str]) -> None:
        self.addresses = tuple(dict.fromkeys(addresses))
        self._open: set[PushedWatch] = set()

    async def register(self, instance: Instance) -> StaticLease:
        """Accept an instance that is on the list; there is nothing to keep alive.

        Raises:
            ConfigError: the list, which cannot change, does not have its address.
        """
        if validate(instance).address not in self.addresses:
            raise ConfigError(
                f"{instance.service} at {instance.address} is not on the fixed list {self}. "
                "Add it there, or choose another registry with --registry or FRAMEWORK_REGISTRY."
            )
        return StaticLease()

    def watch(self, service: str) -> StaticWatch:
        """One snapshot, and nothing after it."""
        return StaticWatch(service, self)

    async def services(self) -> Mapping[str, Snapshot]:
        """Nothing: the list does not say which services are behind it."""
        return {}

    async def names(self) -> Iterable[str]:
        """None, as `services`."""
        return ()

    def instances(self, service: str) -> Snapshot:
        """The list, as instances of this service."""
        return {address: Instance(address, service, address) for address in self.addresses}

    async def aclose(self) -> None:
        """End the watches that are still open."""
        for watch in tuple(self._open):
            await watch.aclose()

    def __str__(self) -> str:
        return f"static://{','.join(self.addresses)}"

    def __repr__(self) -> str:
        return f"<StaticRegistry {self}>"


class PinnedRegistry(StaticRegistry):
    """One instance that another registry has told of, and nobody else.

    Args:
        instance: with everything that is known of it.
    """

    def __init__(self, instance: Instance) -> None:
        super().__init__([instance.address])
        self._instance = instance

    def instances(self, service: str) -> Snapshot:
        return {self._instance.id: self._instance}


class StaticLease:
    """A place on a fixed list."""

    async def close(self) -> None:
        """Nothing to do: the list stays as it is."""


class StaticWatch(PushedWatch):
    """See `Watch`."""

    def __init__(self, service: str, registry: StaticRegistry) -> None:
        super().__init__(service, str(registry), registry._open)
        self._list = registry.instances(service)

    def _start(self) -> None:
        self.show(self._list)
