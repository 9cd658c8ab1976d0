"""When a worker that died is started again.

    | it                                    | the next one starts after              |
    |---------------------------------------|----------------------------------------|
    | died before it served                 | twice as long as the last time         |
    | died soon after it served             | twice as long as the last time         |
    | died after it served for STABLE s     | FIRST s, as if it had never died       |

Each wait is up to a fifth longer or shorter, so that workers that died of one thing do not come back as one.
"""

from __future__ import annotations

import random

from framework.client.backoff import Backoff
from framework.policy import BackoffSettings

FIRST = 0.1
LONGEST = 30.0
STABLE = 10.0

_WAITS = BackoffSettings(initial=FIRST, factor=2.0, maximum=LONGEST)


class Restart:
    """The waits of one place among the workers.

    Args:
        rng: what spreads the waits.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._backoff = Backoff(_WAITS, rng)
        self._since: float | None = None

    def serves(self, now: float) -> None:
        """The worker serves since this second."""
        self._since = now

    def died(self, now: float) -> float:
        """Seconds until the next one is started."""
        if self._since is not None and now - self._since >= STABLE:
            self._backoff = Backoff(_WAITS, self._rng)
        self._since = None
        return self._backoff.wait()

    def __repr__(self) -> str:
        state = "is down" if self._since is None else f"serves since {self._since:g}s"
        return f"<Restart {state} {self._backoff!r}>"
