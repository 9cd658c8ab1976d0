"""What the watches of all registries share: which answer to believe, and how a reader is handed the newest.

Reading order: LastGood (pure: decides), PushedWatch (asyncio: delivers).
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import MappingProxyType
from typing import Self

from framework.discovery import Snapshot

log = logging.getLogger("framework.discovery")


class LastGood:
    """Which instances to show when a registry may have forgotten some. Pure: it is told the time.

    A registry that restarted, or whose file was deleted, answers with fewer instances than there are, until each has
    registered again and been found healthy again. To believe it would close every connection, and open them again a
    second later. So after a doubtful answer nobody is taken away for a while; who is new is shown at once.

        state   answer      becomes                         shown
        TRUST   any         TRUST                           the answer
        TRUST   doubtful    HOLD, if anybody was shown      the answer, and who was shown and is missing in it
        HOLD    any         HOLD                            the same
        HOLD    doubtful    HOLD, and its time starts anew  the same
        HOLD    confirmed   TRUST                           the answer

    Args:
        hold: seconds after which an answer is to be confirmed.
    """

    def __init__(self, hold: float) -> None:
        self.hold = hold
        self.shown: Snapshot | None = None
        self.until: float | None = None  # None is TRUST

    def due(self, now: float) -> bool:
        """Whether it is time for an answer that is believed whatever it says."""
        return self.until is not None and now >= self.until

    def accept(self, answer: Snapshot, now: float, *, doubtful: bool = False, confirmed: bool = False) -> Snapshot:
        """What to show after this answer."""
        known = self.shown or {}
        if doubtful and known:
            self.until = now + self.hold
        elif confirmed:
            self.until = None
        missing = {} if self.until is None else {id: one for id, one in known.items() if id not in answer}
        self.shown = {**answer, **missing} if missing else answer
        return self.shown


class PushedWatch:
    """A watch that its registry pushes into. Only the newest snapshot waits for the reader.

    A subclass says in `_start` how looking begins and in `_stop` how it ends, and calls `show` and `trouble` on the
    loop of the reader. A cancelled `__anext__` loses nothing: a snapshot is taken out without waiting.

    Args:
        service: the name that is watched.
        registry: what messages call the registry.
        siblings: the open watches of the registry, which closes them when it closes.
    """

    def __init__(self, service: str, registry: str, siblings: set[PushedWatch]) -> None:
        self.service = service
        self.registry = registry
        self.problem = ""
        self._answered = time.monotonic()
        self._siblings = siblings
        self._newest: Snapshot | None = None
        self._given: Snapshot | None = None
        self._changed = asyncio.Event()
        self._started = False
        self._closed = False
        siblings.add(self)

    def show(self, snapshot: Snapshot) -> None:
        """The registry answered, and this is who is there."""
        if self.problem:
            log.info("%s answers again about %s", self.registry, self.service)
            self.problem = ""
        self._answered = time.monotonic()
        self._newest = snapshot
        self._changed.set()

    def trouble(self, reason: str) -> None:
        """The registry does not answer; what was shown last stays."""
        if not self.problem:
            kept = f"keeping the last {len(self._newest)} instance(s)" if self._newest is not None else "none known yet"
            log.warning("%s: %s; %s of %s", self.registry, reason, kept, self.service)
        self.problem = f"{self.registry}: {reason}"

    @property
    def age(self) -> float:
        """Seconds since the registry answered last; 0 while nothing is wrong with it."""
        return time.monotonic() - self._answered if self.problem else 0.0

    def _start(self) -> None:
        """Begin to look; called once, by the first `__anext__`."""

    async def _stop(self) -> None:
        """Stop looking; called once, and only after `_start`."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Snapshot:
        if not self._started and not self._closed:
            self._started = True
            self._start()
        while not self._closed:
            if self._newest is not None and self._newest != self._given:
                self._given = self._newest
                return MappingProxyType(dict(self._given))
            self._changed.clear()
            await self._changed.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Stop watching; a reader that waits sees the end."""
        if self._closed:
            return
        self._closed = True
        self._changed.set()
        self._siblings.discard(self)
        if self._started:
            await self._stop()

    def __repr__(self) -> str:
        state = "closed" if self._closed else self.problem or "well"
        return f"<{type(self).__name__} {self.service} at {self.registry}: {state}>"
