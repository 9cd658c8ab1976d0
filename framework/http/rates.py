"""How often callers may call: token buckets, one for each key, kept as one number each.

A bucket of `burst` tokens that fills at `rate` a second is the moment at which it will be full again (the generic cell
rate algorithm): a call moves it by 1 / rate, and is refused when it would be more than burst / rate away.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from framework.errors import ConfigError
from framework.web import RateSettings

MOST = 100_000
"""Keys that are remembered; then the one that has not called for longest is forgotten."""


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
        """What settings say; None is no limit. Raises ConfigError: they mean one, and do not say which."""
        if settings.rate == 0:
            if settings.burst:
                raise ConfigError(f"a rate limit has a burst of {settings.burst} and no rate; give it one")
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
        self._full: OrderedDict[str, float] = OrderedDict()  # the one that was asked for longest ago is the first

    async def take(self, key: str, rate: Rate, now: float) -> float:
        """Take a token from the bucket of a key; the seconds until there is one, or 0 when there was."""
        kept = self._full.get(key)
        if kept is not None:
            self._full.move_to_end(key)
        full = now if kept is None or kept < now else kept
        wait = full + 1 / rate.per_second - now - rate.burst / rate.per_second
        if wait > 1e-9:
            return wait
        if kept is None and len(self._full) >= self._most:
            self._full.popitem(last=False)
        self._full[key] = full + 1 / rate.per_second
        return 0.0

    def __len__(self) -> int:
        return len(self._full)

    def __repr__(self) -> str:
        return f"<Buckets of {len(self)} keys>"
