"""How long a client waits before its next attempt.

    | what came back                              | wait                                     | afterwards        |
    |---------------------------------------------|------------------------------------------|-------------------|
    | no `grpc-retry-pushback-ms`                 | min(initial * factor^n, maximum) +-20%   | n + 1             |
    | `grpc-retry-pushback-ms: N`, N >= 0         | exactly N milliseconds                   | n = 0             |
    | negative, unreadable or more than once      | NEVER: the server forbids a retry        | n unchanged       |

Source: gRFC A6, "Exponential Backoff" and "Pushback".
"""

from __future__ import annotations

import math
import random
from typing import Final

from framework.call import Metadata
from framework.policy import BackoffSettings

PUSHBACK: Final = "grpc-retry-pushback-ms"
"""The key in the trailer with which a server says when to come back."""

NEVER: Final = math.inf
"""Seconds to wait when the server forbids a retry."""

JITTER = 0.2
"""Share by which a wait is shortened or lengthened at random."""

_INT32 = 2**31 - 1


class Backoff:
    """The waits of one call; made when its first attempt has failed."""

    __slots__ = ("_next", "_random", "_settings")

    def __init__(self, settings: BackoffSettings, rng: random.Random) -> None:
        self._settings = settings
        self._random = rng.random
        self._next = settings.initial

    def wait(self, pushback: float | None = None) -> float:
        """Seconds until the next attempt, or NEVER.

        Args:
            pushback: what the function `pushback` read from the trailer of the attempt that failed.
        """
        if pushback is None:
            base = self._next
            self._next = min(base * self._settings.factor, self._settings.maximum)
            return base * (1.0 - JITTER + 2.0 * JITTER * self._random())
        if pushback != NEVER:
            self._next = self._settings.initial
        return pushback

    def __repr__(self) -> str:
        return f"<Backoff next={self._next:g}s +-{JITTER:.0%}>"


def pushback(trailer: Metadata) -> float | None:
    """What a server says about a retry: seconds to wait, NEVER, or None when it says nothing."""
    said = [value for key, value in trailer if key == PUSHBACK]
    if not said:
        return None
    value = said[0]
    if len(said) > 1 or not isinstance(value, str) or not (value.isascii() and value.isdigit()):
        return NEVER
    # A signed 32-bit number, says A6; a longer one is unreadable (and int() of very many digits would raise).
    return int(value) / 1000 if len(value) <= 10 and int(value) <= _INT32 else NEVER
