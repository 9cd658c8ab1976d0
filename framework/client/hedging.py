"""Hedging: an idempotent call that has no answer when nearly all have theirs is made a second time, elsewhere.

    | event                                      | what happens                                                        |
    |--------------------------------------------|---------------------------------------------------------------------|
    | the delay passes without an answer         | another attempt begins, if the budget pays for it; the delay again  |
    | an attempt is answered                     | that is the reply; the others are cancelled                         |
    | an attempt fails with a code to retry      | another one begins at once; with none left, retries take over       |
    | an attempt fails otherwise                 | that is the error; the others are cancelled                         |

The delay is the latency within which all but `extra_load` of the calls are answered; before there is any history there
are no hedges. The first attempt runs in the task of the caller: what a hedge costs, a task and a call, is paid only
when there is one.

Sources: gRFC A6, "Hedging Policy"; Dean and Barroso, "The Tail at Scale", 2013.
"""

from __future__ import annotations

import asyncio
from typing import Any

from framework.call import OK, Call, Handler, Outcome, Reply
from framework.client.attempts import PREVIOUS, Attempts, Tries
from framework.client.backoff import pushback
from framework.errors import Code, RpcError
from framework.policy import HedgeSettings

SHORTEST = 0.001
"""Seconds that a delay lasts at least: within less, nothing is known to be slow."""


def hedged(attempts: Attempts, settings: HedgeSettings) -> Handler:
    """The handler of a method whose calls are hedged."""
    share = 1.0 - settings.extra_load

    async def handler(call: Call) -> Reply:
        delay = settings.delay
        if delay is None:
            delay = attempts.latencies.quantile(asyncio.get_running_loop().time(), share)
            if delay is None:
                return await attempts.unary(call)
        bulkhead = attempts.bulkhead
        if bulkhead.full:
            await bulkhead.wait(call)
        bulkhead.in_flight += 1
        race = Race(attempts, call, max(delay, SHORTEST), settings.attempts)
        try:
            return await race.run()
        finally:
            race.stop()
            bulkhead.leave()

    return handler


class Race:
    """The attempts of one call, of which the first that is answered counts.

    Args:
        delay: seconds between two attempts.
        limit: attempts at most.
    """

    __slots__ = (
        "_attempts",
        "_begun",
        "_call",
        "_decided",
        "_delay",
        "_failure",
        "_first",
        "_hedges",
        "_limit",
        "_loop",
        "_reply",
        "_timer",
        "_tries",
        "_waiter",
        "_winner",
    )

    def __init__(self, attempts: Attempts, call: Call, delay: float, limit: int) -> None:
        loop = self._loop = asyncio.get_running_loop()
        self._attempts = attempts
        self._call = call
        self._delay = delay
        self._limit = limit
        self._tries = Tries(call)
        self._begun = 1
        self._first = True  # it is still out
        self._hedges: set[asyncio.Task[None]] = set()
        self._decided = False
        self._failure: BaseException | None = None
        self._winner: Call | None = None
        self._reply: Any = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = loop.call_later(delay, self._due)

    async def run(self) -> Reply:
        """The reply.

        Raises:
            RpcError: no attempt was answered.
        """
        call, tries = self._call, self._tries
        try:
            return await self._attempts.attempt(call, tries)
        except RpcError as error:
            self._first = False
            if not self._decided:
                self._lost(error)
        if not self._decided:
            self._waiter = self._loop.create_future()
            await self._waiter
        winner = self._winner
        if winner is not None:
            call.header, call.trailer, call.received = winner.header, winner.trailer, winner.received
            call.peer, call.attempt = winner.peer, winner.attempt
            return self._reply
        failure, self._failure = self._failure, None
        call.attempt = self._begun
        try:
            if not isinstance(failure, RpcError):
                raise failure or AssertionError("decided by nobody")
            return await self._attempts.persist(call, tries, failure)
        finally:
            del failure  # it knows this frame, and this frame would know it

    def _due(self) -> None:
        """The delay has passed without an answer."""
        self._timer = None
        self._begin()

    def _begin(self) -> bool:
        """Begin another attempt, if there may be one."""
        attempts, tries = self._attempts, self._tries
        if self._begun >= self._limit or not attempts.pool.has_others(tries.endpoints):
            return False
        if isinstance(attempts.may_repeat(tries, at_once=True), str):
            return False
        self._begun += 1
        call = self._call
        hedge = Call(
            call.method,
            call.request,
            (*tries.metadata, (PREVIOUS, str(self._begun - 1))),
            deadline=tries.deadline,
            timeout=call.timeout,
            request_id=call.request_id,
        )
        hedge.inherited = tries.inherited
        hedge.attempt = self._begun
        self._hedges.add(self._loop.create_task(self._run(hedge)))
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(self._delay, self._due)
        return True

    async def _run(self, hedge: Call) -> None:
        """A hedge, in a task of its own."""
        task = asyncio.current_task()
        assert task is not None
        try:
            reply = await self._attempts.attempt(hedge, self._tries)
        except RpcError as error:
            self._hedges.discard(task)
            hedge.end(Outcome.of(error))
            if not self._decided:
                self._lost(error)
        except asyncio.CancelledError as error:
            self._hedges.discard(task)
            hedge.end(Outcome(Code.CANCELLED, error, remote=False))
            raise
        except BaseException as error:
            self._hedges.discard(task)
            hedge.end(Outcome.of(error))
            self._failure = error
            self._decide()
        else:
            self._hedges.discard(task)
            hedge.end(OK)
            if not self._decided:
                self._winner, self._reply = hedge, reply
                self._decide()

    def _lost(self, error: RpcError) -> None:
        """An attempt has failed: begin another, wait for those that are out, or let the others go too."""
        self._failure = error
        attempts = self._attempts
        again = not error.sent or self._tries.timed_out or error.code in attempts.policy.retry.codes
        if again and pushback(error.metadata) is None and self._begin():
            return
        if not again or not (self._first or self._hedges):
            self._decide()

    def _decide(self) -> None:
        """There is a reply or a final failure: the others are let go."""
        self._decided = True
        self.stop()
        if self._first and self._call.give_up is not None:
            self._call.give_up()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def stop(self) -> None:
        """Let go of all that is still out, but the first attempt."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._hedges:
            task.cancel()
