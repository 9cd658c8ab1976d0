"""How often callers may call: token buckets, one for each key, kept as one number each.

A bucket of `burst` tokens that fills at `rate` a second is the moment at which it will be full again (the generic cell
rate algorithm): a call moves it by 1 / rate, and is refused when it would be more than burst / rate away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from framework.web import RateSettings

MOST = 100_000
"""Keys that are remembered; then those that are full again are forgotten, and if none is, the oldest."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Attributes:
    per_second: tokens that a bucket gets a second.
    burst: tokens that it holds.
    """

    per_second: float
    burst: int

    @classmethod
    def of(cls, settings: RateSettings) -> Rate | None:
        """What a settings file says; None is no limit."""
        if settings.rate == 0:
            return None
        return cls(settings.rate, settings.burst or max(1, round(settings.rate)))


class Rates(Protocol):
    """Where buckets are kept: in this process, or in a store that several gateways share."""

    async def take(self, key: str, rate: Rate, now: float) -> float:
        """Take a token from the bucket of a key; the seconds until there is one, or 0 when there was.

        Args:
            now: a moment in seconds; a store that has a clock of its own goes by that.
        """


class Buckets:
    """The buckets of this process. Pure: it is told the time."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._full: dict[str, float] = {}

    async def take(self, key: str, rate: Rate, now: float) -> float:
        """Take a token from the bucket of a key; the seconds until there is one, or 0 when there was."""
        full = max(self._full.get(key, now), now)
        wait = full + 1 / rate.per_second - now - rate.burst / rate.per_second
        if wait > 1e-9:
            return wait
        if key not in self._full and len(self._full) >= self._most:
            self._forget(now)
        self._full[key] = full + 1 / rate.per_second
        return 0.0

    def _forget(self, now: float) -> None:
        self._full = {key: full for key, full in self._full.items() if full > now}
        while len(self._full) >= self._most:
            del self._full[next(iter(self._full))]

    def __len__(self) -> int:
        return len(self._full)

    def __repr__(self) -> str:
        return f"<Buckets of {len(self)} keys>"
