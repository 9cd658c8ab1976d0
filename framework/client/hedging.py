"""Hedging: an idempotent call that has no answer when nearly all have theirs is made a second time, elsewhere.

    | event                                      | what happens                                                        |
    |--------------------------------------------|---------------------------------------------------------------------|
    | the delay passes without an answer         | another attempt begins, if the budget pays for it; the delay again  |
    | an attempt is answered                     | that is the reply; the others are cancelled                         |
    | an attempt fails with a code to retry      | another one begins at once; with none left, retries take over       |
    | the server says when to come back, or not, | no more hedges; those that are out go on; with none left, retries   |
    | or has no room for it (RESOURCE_EXHAUSTED) | take over                                                           |
    | an attempt fails otherwise                 | that is the error; the others are cancelled                         |
    | an attempt provably did not leave          | it goes to another endpoint, at once and at no cost                 |

The delay is the latency within which all but `extra_load` of the calls are answered; before there is any history there
are no hedges. The first attempt runs in the task of the caller: what a hedge costs, a task and a call, is paid only
when there is one.

Sources: gRFC A6, "Hedging Policy"; Dean and Barroso, "The Tail at Scale", 2013.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from typing import Any, cast

from framework.call import OK, Call, Outcome, Reply
from framework.client.attempts import HEDGE, MOST_REFUSALS, PREVIOUS, RETRY, Attempts, Tries
from framework.client.backoff import pushback
from framework.client.endpoint import Endpoint
from framework.errors import Code, MessageTooLarge, RpcError
from framework.policy import HedgeSettings

SHORTEST = 0.001
"""Seconds that a delay lasts at least: within less, nothing is known to be slow."""

STALE = 0.1
"""Seconds after which the delay is looked up again."""


class Hedges:
    """Watches the calls of one method whose first attempt is out.

    One timer serves all of them, since all wait equally long: it looks at those that are out, the oldest first. A call
    costs no more than an entry among them.
    """

    def __init__(self, attempts: Attempts, settings: HedgeSettings) -> None:
        self.attempts = attempts
        self.limit = settings.attempts
        self._share = 1.0 - settings.extra_load
        self._delay = math.inf if settings.delay is None else max(settings.delay, SHORTEST)
        self._stale = -math.inf if settings.delay is None else math.inf
        self._out: dict[Call, tuple[float, Endpoint, contextvars.Context]] = {}
        self._races: dict[Call, Race] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def watch(self, call: Call, endpoint: Endpoint, now: float) -> bool:
        """Watch a call whose first attempt begins, until `end`; False while it is not known what is late."""
        if now >= self._stale:
            delay = self.attempts.latencies.quantile(now, self._share)
            if delay is None:
                return False
            self._delay = delay if delay > SHORTEST else SHORTEST
            self._stale = now + STALE
        # Hedges belong to the caller, not to whom the timer was set for: so its context is kept.
        self._out[call] = (now, endpoint, contextvars.copy_context())
        due = now + self._delay
        if due < self._due:
            self._wake(due)
        return True

    def race(self, call: Call) -> Race:
        """The race that a call becomes when its first attempt takes too long, or fails."""
        race = self._races.get(call)
        if race is None:
            began, endpoint, context = self._out[call]
            race = self._races[call] = Race(self, call, endpoint, context)
            race.due = began + self._delay
        return race

    def end(self, call: Call) -> None:
        """The call has its reply or its failure, or was given up."""
        del self._out[call]
        if self._races and (race := self._races.pop(call, None)) is not None:
            race.over = True
            race.stop()

    def again(self, race: Race, now: float) -> None:
        """Let a race begin one more attempt when the delay has passed from now on."""
        race.due = now + self._delay
        if race.due < self._due:
            self._wake(race.due)

    def _wake(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        # In a context of its own: each timer sets the next, and would keep alive what the very first call knew.
        self._timer = asyncio.get_running_loop().call_at(due, self._fire, context=contextvars.Context())

    def _fire(self) -> None:
        now = self.attempts.time()
        self._timer, self._due = None, math.inf
        soonest = math.inf
        for call, (start, _, _) in self._out.items():
            race = self._races.get(call)
            due = start + self._delay if race is None else race.due
            if due <= now:
                race = race or self.race(call)
                race.due = math.inf
                race.begin(now)
                due = race.due
            if due < soonest:
                soonest = due
            if race is None:
                break  # those that began later are late later
        if soonest < self._due:
            # A loop may be early by its resolution: at the same moment again it would turn round and round.
            self._wake(max(soonest, now + SHORTEST))


class Race(Tries):
    """The attempts of one call, of which the first that is answered counts.

    Attributes:
        due: when the next one is to begin; math.inf when none is.
        over: the call has its reply or its failure.
    """

    __slots__ = (
        "_begun",
        "_call",
        "_context",
        "_failure",
        "_first",
        "_hedges",
        "_limit",
        "_owner",
        "_reply",
        "_waiter",
        "_winner",
        "due",
        "over",
    )

    def __init__(self, owner: Hedges, call: Call, endpoint: Endpoint, context: contextvars.Context) -> None:
        super().__init__(call, endpoint)
        self.due = math.inf
        self.over = False
        self._call = call
        self._owner = owner
        self._context = context
        self._hedges: set[asyncio.Task[Any]] = set()
        self._begun = 1
        self._limit = owner.limit
        self._first = True  # it is out, in the task of the caller
        self._failure: BaseException | None = None
        self._winner: Call | None = None
        self._reply: Any = None
        self._waiter: asyncio.Future[None] | None = None

    async def without_first(self, error: RpcError) -> Reply:
        """The reply of a call whose first attempt has failed, or has been given up for another.

        Raises:
            RpcError: no attempt was answered.
        """
        call, tried = self._call, 0
        self._first = False
        while self._elsewhere(call, error, tried):
            tried = len(self.endpoints)
            # In a task, to be let go as hedges are: it may wait for an endpoint, and then there is no call to give up.
            task = asyncio.get_running_loop().create_task(self._owner.attempts.attempt(call, self, RETRY))
            self._hedges.add(task)
            try:
                return await task
            except RpcError as failed:
                error = failed
            except asyncio.CancelledError:
                if not self.over or cast(asyncio.Task[Any], asyncio.current_task()).cancelling():
                    raise
            finally:
                self._hedges.discard(task)
                del task  # it knows its failure, and that this frame
        if not self.over:
            self._lost(error)
        if not self.over:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        winner = self._winner
        call.deadline, call.inherited = self.deadline, self.inherited
        if winner is not None:
            call.header, call.trailer, call.received = winner.header, winner.trailer, winner.received
            call.peer, call.attempt = winner.peer, winner.attempt
            return self._reply
        failure, self._failure = self._failure, None
        call.attempt = self._begun
        try:
            if not isinstance(failure, RpcError):
                raise failure or error
            return await self._owner.attempts.persist(call, self, failure)
        finally:
            del failure, error  # they know this frame, and this frame would know them

    def begin(self, now: float) -> bool:
        """Begin another attempt, if there may be one."""
        attempts = self._owner.attempts
        if self.over or self._begun >= self._limit or not attempts.pool.has_others(self.endpoints):
            return False
        if isinstance(self._context.run(attempts.may_repeat, self, at_once=True), str):
            return False
        self._begun += 1
        call = self._call
        hedge = Call(
            call.method,
            call.request,
            (*self.metadata, (PREVIOUS, str(self._begun - 1))),
            deadline=self.deadline,
            timeout=call.timeout,
            request_id=call.request_id,
        )
        hedge.inherited = self.inherited
        hedge.trace = call.trace
        hedge.attempt = self._begun
        # A copy: a hedge that fails asks in the context whether there may be another, and it cannot be entered twice.
        task = asyncio.get_running_loop().create_task(self._run(hedge), context=self._context.copy())
        self._hedges.add(task)
        if self._begun < self._limit:
            self._owner.again(self, now)
        return True

    async def _run(self, hedge: Call) -> None:
        """A hedge, in a task of its own."""
        reply = None
        try:
            reply = await self._sent(hedge)
            hedge.end(OK)
        except BaseException as error:
            cancelled = isinstance(error, asyncio.CancelledError)
            hedge.end(Outcome(Code.CANCELLED, error, remote=False) if cancelled else Outcome.of(error))
            if cancelled:
                raise
            failure: BaseException | None = error
        else:
            failure = None
        finally:
            self._hedges.discard(cast(asyncio.Task[None], asyncio.current_task()))
        if self.over:
            return
        if failure is None:
            self._winner, self._reply = hedge, reply
            self._decide()
        elif isinstance(failure, RpcError):
            self._lost(failure)
        else:
            self._failure = failure
            self._decide()

    async def _sent(self, hedge: Call) -> Reply:
        """The reply to a hedge that has left."""
        while True:
            tried = len(self.endpoints)
            try:
                return await self._owner.attempts.attempt(hedge, self, HEDGE)
            except RpcError as error:
                if not self._elsewhere(hedge, error, tried):
                    raise

    def _elsewhere(self, call: Call, error: RpcError, tried: int) -> bool:
        """Whether an attempt that did not leave goes on to another endpoint, which costs nothing and is no new one.

        Args:
            tried: endpoints that were tried before it; with no more since, there was none to try.
        """
        if error.sent or self.over or len(self.endpoints) == tried or call.attempt >= MOST_REFUSALS:
            return False
        self.another(call)
        return True

    def _lost(self, error: RpcError) -> None:
        """An attempt has failed: begin another, wait for those that are out, or let the others go too."""
        self._failure = error
        attempts = self._owner.attempts
        again = not error.sent or self.timed_out or error.code in attempts.policy.retry.codes
        shed = error.code is Code.RESOURCE_EXHAUSTED and not again and not isinstance(error, MessageTooLarge)
        if shed or pushback(error.metadata) is not None:
            self._limit = self._begun  # whatever it says of itself, those that are out may be answered
            again = True
        if again and self.begin(attempts.time()):
            return
        if not again or not (self._first or self._hedges):
            self._decide()

    def _decide(self) -> None:
        """There is a reply or a final failure: the others are let go."""
        self.over = True
        self.stop()
        give_up = self._call.give_up
        if self._first and give_up is not None:
            give_up()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def stop(self) -> None:
        """Let go of the hedges that are out."""
        for task in self._hedges:
            task.cancel()
