"""Which instances a client uses when there are very many: a random subset of its own, as stable as can be.

Every instance has a rank, a hash of its id and of a seed that every client draws for itself; a client takes those of
the lowest ranks. An instance that comes or goes changes one member of a subset at most, and clients differ.

Source: rendezvous hashing (Thaler and Ravishankar, 1998), as in gRFC A68, random subsetting.
"""

from __future__ import annotations

import hashlib
import random
from bisect import bisect_left, insort

from framework.discovery import Snapshot

MANY = 64
"""New instances from which on the order is sorted anew, instead of putting each in its place."""


class Subset:
    """At most `size` instances of every snapshot.

    Args:
        size: how many.
        rng: what the seed is drawn from.
    """

    def __init__(self, size: int, rng: random.Random) -> None:
        self.size = size
        self._seed = rng.randbytes(16)
        self._ranks: dict[str, bytes] = {}
        self._order: list[tuple[bytes, str]] = []

    def of(self, snapshot: Snapshot) -> Snapshot:
        """The instances to use."""
        if len(snapshot) <= self.size:
            return snapshot
        for gone in self._ranks.keys() - snapshot.keys():
            del self._order[bisect_left(self._order, (self._ranks.pop(gone), gone))]
        fresh = [(self._rank(name), name) for name in snapshot.keys() - self._ranks.keys()]
        self._ranks.update((name, rank) for rank, name in fresh)
        if len(fresh) > MANY:
            self._order.extend(fresh)
            self._order.sort()
        else:
            for each in fresh:
                insort(self._order, each)
        return {name: snapshot[name] for _, name in self._order[: self.size]}

    def _rank(self, name: str) -> bytes:
        return hashlib.blake2b(name.encode(), key=self._seed, digest_size=8).digest()
