"""Who a request comes from, when there may be proxies in between."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any

MOST_KNOWN = 10_000
"""Addresses of which it is remembered whether they are trusted."""


class Proxies:
    """The proxies whose word is believed.

    Args:
        trusted: addresses and networks.
    """

    def __init__(self, trusted: Iterable[str]) -> None:
        self._networks: tuple[Any, ...] = tuple(ipaddress.ip_network(one) for one in trusted)
        self._known: dict[str, bool] = {}

    def trusts(self, address: str) -> bool:
        """Whether this is one of them."""
        if not self._networks:
            return False
        found = self._known.get(address)
        if found is None:
            try:
                parsed = ipaddress.ip_address(address)
            except ValueError:
                return False
            found = any(parsed in network for network in self._networks)
            if len(self._known) < MOST_KNOWN:
                self._known[address] = found
        return found

    def client(self, peer: str, forwarded: str) -> str:
        """The address of the client behind the proxies: the last one in X-Forwarded-For that is none of them.

        Args:
            peer: who the connection is with.
            forwarded: X-Forwarded-For as it came; what stands left of an address was told by it, true or not.
        """
        address = peer
        for one in reversed(forwarded.split(",") if forwarded else ()):
            if not self.trusts(address):
                break
            told = one.strip()
            if told.startswith("["):  # [v6]:port
                told = told[1:].partition("]")[0]
            elif told.count(":") == 1:  # v4:port
                told = told.partition(":")[0]
            if not told:
                break
            address = told
        return address
