"""Notices that clients have gone, on servers that only say so when they are asked.

ASGI says that `receive` waits for the client to go once the request is complete. Some servers answer at once instead,
with nothing, for as long as the client is there. Both are asked here: whoever answers is asked again, a bounded number
of times a second for all clients together, and whoever waits is left waiting.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

PATIENCE = 0.02
"""Seconds between two rounds; most calls are over before the first, and asking is not free."""

MOST = 32
"""Clients that are asked in a round. With more of them each waits for its turn."""

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Watched(Protocol):
    """Somebody who wants to know that the client has gone, once the request is complete."""

    receive: Receive

    def over(self) -> bool:
        """Nobody wants to know any more."""

    def left(self) -> None:
        """The client has gone."""


class Presence:
    """The clients that somebody waits for to go.

    Args:
        loop: on which all of this runs.
        busy: is called in every round; the rounds go on while it says so.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, busy: Callable[[], bool] | None = None) -> None:
        self._loop = loop
        self._busy = busy
        self._context = contextvars.Context()  # or the timer would keep the call that it was started for
        self._line: deque[Watched] = deque()
        self.ticking = False

    def watch(self, watched: Watched) -> None:
        """Tell somebody when the client goes."""
        self._line.append(watched)
        if not self.ticking:
            self.start()

    def start(self) -> None:
        """Make rounds, until there is nothing to do."""
        self.ticking = True
        self._loop.call_later(PATIENCE, self._round, context=self._context)

    def _round(self) -> None:
        busy = self._busy is not None and self._busy()
        for _ in range(min(MOST, len(self._line))):
            watched = self._line.popleft()
            if not watched.over():
                self._ask(watched)
        self.ticking = busy or bool(self._line)
        if self.ticking:
            self._loop.call_later(PATIENCE, self._round, context=self._context)

    def _ask(self, watched: Watched) -> None:
        asked = asyncio.ensure_future(watched.receive())

        def answered(future: asyncio.Future[MutableMapping[str, Any]]) -> None:
            if watched.over() or future.cancelled():
                return
            if future.exception() is not None or future.result()["type"] == "http.disconnect":
                watched.left()
            else:
                self.watch(watched)

        asked.add_done_callback(answered)

    def __repr__(self) -> str:
        return f"<Presence of {len(self._line)}>"


class Patient:
    """`receive` as the specification has it, over one that answers at once when the request is complete.

    Whoever waits here may be cancelled; what the server has been asked for is kept for the next who waits.
    """

    __slots__ = ("_asked", "_complete", "_departure", "_presence", "receive")

    def __init__(self, receive: Receive, presence: Presence) -> None:
        self.receive = receive
        self._presence = presence
        self._asked: asyncio.Future[MutableMapping[str, Any]] | None = None
        self._complete = False
        self._departure: asyncio.Future[None] | None = None

    async def __call__(self) -> MutableMapping[str, Any]:
        """The next message of the server."""
        if not self._complete:
            if self._asked is None:
                self._asked = asyncio.ensure_future(self.receive())
            message = await asyncio.shield(self._asked)
            self._asked = None
            self._complete = not message.get("more_body", False)
            return message
        self._departure = asyncio.get_running_loop().create_future()
        self._presence.watch(self)
        await self._departure
        return {"type": "http.disconnect"}

    def over(self) -> bool:
        return self._departure is None or self._departure.done()

    def left(self) -> None:
        if self._departure is not None and not self._departure.done():
            self._departure.set_result(None)
