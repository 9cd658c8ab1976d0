"""From a call to its attempts: pick an endpoint, call it, and see what is to be done when that fails.

    | the attempt                                    | the call                                                    |
    |------------------------------------------------|-------------------------------------------------------------|
    | provably did not leave                         | goes to another endpoint, at once and at no cost            |
    | failed, and the server says when to come back  | is made again after exactly that time, idempotent or not    |
    | failed, and the server says not to come back   | fails                                                       |
    | failed of what the iterable of requests raised | fails with just that: it is no failure of the endpoint      |
    | failed with a code to retry, and is idempotent | is made again after a backoff                               |
    | took its `attempt_timeout`, and is idempotent  | the same                                                    |
    | failed otherwise                               | fails                                                       |
    | has no answer after the hedging delay          | is made a second time, elsewhere: see `hedging`             |

What is made again costs a place in the retry budget. It is not made when it could not end before the deadline, nor when
the call being served is itself a retry: one layer of a chain retries. A stream is committed once its response headers
have arrived. An error tells what was done for it: `attempts`, `endpoints` and `note`.

Source: gRFC A6.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from framework.call import OK, Call, Method, Outcome, Reply, current
from framework.client.backoff import NEVER, Backoff, pushback
from framework.client.breaker import Begun, Treatment, treatment
from framework.client.budget import RetryBudget
from framework.client.bulkhead import Bulkhead
from framework.client.ending import for_outside
from framework.client.endpoint import Endpoint
from framework.client.pool import Pool
from framework.errors import Code, MessageTooLarge, RpcError
from framework.percentile import Latencies
from framework.policy import FAILURES, Policy
from framework.telemetry.figures import Sample
from framework.telemetry.names import ATTEMPTS

if TYPE_CHECKING:
    from framework.client.hedging import Hedges

PREVIOUS = "x-previous-rpc-attempts"
"""Metadata that tells a server how many attempts of this call were sent before.

A6 says `grpc-previous-rpc-attempts`, but grpc keeps that key to itself: what sends a call again that no server has seen
takes it out of the metadata it is given.
"""

MOST_REFUSALS = 16
"""Connections that may turn out to be gone before a call gives up; more than a few means that nobody stays."""

OVERDUE = 0.98
"""Share of calls that have been answered by the time from which one that is given up counts as unanswered."""

PATIENCE = 10.0
"""Seconds that a failure of a call without a deadline counts as."""

LATE = 0.005
"""Seconds before an attempt's deadline from which on it counts as passed: the server's clock may be first."""


FIRST, RETRY, HEDGE = "first", "retry", "hedge"
"""Kinds of attempts."""

PREVIOUS_OF_GRPC = "grpc-previous-rpc-attempts"
"""The same from clients that are not ours."""


def _is_retry(serving: Call) -> bool:
    if serving.attempt > 1:
        return True
    return serving.get(PREVIOUS) is not None or serving.get(PREVIOUS_OF_GRPC) is not None


def _made_here(call: Call, error: BaseException | None) -> bool:
    """Whether a failure is none of the endpoint's: what the caller's requests raised, and some lacks.

    A message that is too large says nothing about its endpoint; a server that says when to come back is in control of
    itself.
    """
    if error is not None and error is call.fault:
        return True
    if not isinstance(error, RpcError) or error.code is not Code.RESOURCE_EXHAUSTED:
        return False
    return not error.remote or isinstance(error, MessageTooLarge) or pushback(error.metadata) is not None


class Counts:
    """The attempts of one method that have ended.

    Attributes:
        first: first attempts that were answered with OK; counted on the path of every call.
        others: all others, by kind and code.
    """

    __slots__ = ("__weakref__", "_labels", "first", "others")

    def __init__(self, service: str, method: str) -> None:
        self._labels = (("service", service), ("rpc.method", method))
        self.first = 0
        self.others: Counter[tuple[str, Code]] = Counter()

    def figures(self) -> Iterable[Sample]:
        """The counts."""
        counts = Counter({(FIRST, Code.OK): self.first} if self.first else {})
        counts.update(dict(self.others))
        for (kind, code), count in counts.items():
            yield ATTEMPTS, (*self._labels, ("kind", kind), ("rpc.response.status_code", code.name)), float(count)


class Tries:
    """What has been done for one call so far.

    Attributes:
        endpoints: those that had it, in order.
        sent: attempts that may have reached a server.
        timed_out: the last attempt ended by its own timeout.
        backoff: the waits, once there was one.
    """

    __slots__ = ("backoff", "deadline", "endpoints", "inherited", "metadata", "sent", "timed_out")

    def __init__(self, call: Call, *endpoints: Endpoint) -> None:
        self.endpoints = list(endpoints)
        self.sent = 0
        self.timed_out = False
        self.backoff: Backoff | None = None
        self.metadata = call.metadata
        self.deadline = call.deadline
        self.inherited = call.inherited

    def another(self, call: Call) -> None:
        """Make the call ready for its next attempt."""
        call.attempt += 1
        call.header = call.trailer = ()
        call.received = None
        call.deadline, call.inherited = self.deadline, self.inherited
        if self.sent:
            call.metadata = (*self.metadata, (PREVIOUS, str(self.sent)))


class Attempts:
    """Makes the calls of one method.

    Args:
        pool: the endpoints.
        method, policy: what to call, and how.
        budget: of retries and hedges, shared by all methods of a channel.
        latencies: how long answers of this method take.
        counts: of its attempts.
        rng: for jitter.
        bulkhead: one that counts calls of this method already.

    Attributes:
        time: the clock of the loop that this is used on, in seconds.
        bulkhead: counts the calls that are out.
        hedges: what watches the calls that are out and makes them again elsewhere; None when they are not hedged.
    """

    def __init__(
        self,
        pool: Pool,
        method: Method[Any, Any],
        policy: Policy,
        budget: RetryBudget,
        latencies: Latencies,
        rng: random.Random,
        bulkhead: Bulkhead | None = None,
        counts: Counts | None = None,
    ) -> None:
        self.pool = pool
        self.method = method
        self.policy = policy
        self.budget = budget
        self.latencies = latencies
        self.counts = counts or Counts(pool.service, method.full_name)
        self.bulkhead = bulkhead or Bulkhead(policy.bulkhead)
        self.hedges: Hedges | None = None
        self.time: Callable[[], float] = self._find_clock
        self._rng = rng
        self._timed = policy.attempt_timeout is not None

    def _find_clock(self) -> float:
        """Once: asking for the running loop is a system call on some versions of Python."""
        self.time = asyncio.get_running_loop().time
        return self.time()

    async def unary(self, call: Call) -> Reply:
        """Make a call with one reply."""
        bulkhead = self.bulkhead
        if bulkhead.out < bulkhead.calls:
            bulkhead.out += 1
        else:
            await bulkhead.wait(call)
        failure: BaseException | None = None
        hedges, watched = self.hedges, False
        tries: Tries | None = None
        try:
            # `attempt` written out, without what only a second attempt needs: nearly every call comes through here.
            pool = self.pool
            start = self.time()
            endpoint = pool.pick(start)
            if endpoint is None:
                endpoint = await pool.wait(call)
                start = self.time()
            permit = endpoint.begin(start)
            if not permit:
                permit = pool.probe(endpoint, start)
            if hedges is not None:
                watched = hedges.watch(call, endpoint, start)
            if self._timed:
                tries = hedges.race(call) if hedges is not None and watched else Tries(call, endpoint)
                self._limit(call, start)
            span = None if call.trace is None else call.trace.attempt(call, endpoint.instance.address, FIRST)
            try:
                reply = await (endpoint.handlers.get(self.method) or endpoint.bind(self.method))(call)
            except BaseException as error:
                failure = error
            else:
                self._answered(endpoint, permit, start)
                self.counts.first += 1
                if span is not None:
                    span(OK)
                return reply
            race = hedges.race(call) if hedges is not None and watched else None
            tries = race or tries or Tries(call, endpoint)
            self._failed(call, tries, endpoint, permit, failure, start, FIRST, span)
            if not isinstance(failure, RpcError) or failure is call.fault:
                raise failure
            if race is not None:
                return await race.without_first(failure)
            return await self.persist(call, tries, failure)
        finally:
            failure = None  # it knows this frame, and this frame would know it
            if hedges is not None and watched:
                hedges.end(call)
            bulkhead.out -= 1
            if bulkhead.line:
                bulkhead.let_in()

    async def stream(self, call: Call) -> Reply:
        """Make a call, without a look at how many are out; of a stream of replies, until it begins."""
        tries = Tries(call)
        try:
            return await self.attempt(call, tries, FIRST)
        except RpcError as error:
            if error is call.fault:
                raise
            failure = error
        try:
            return await self.persist(call, tries, failure)
        finally:
            del failure

    async def persist(self, call: Call, tries: Tries, failure: RpcError) -> Reply:
        """More attempts, one after the other, until one succeeds or there is a reason not to make another.

        Args:
            failure: what the last attempt failed with.
        """
        tried = -1
        try:
            while len(tries.endpoints) != max(tried, 0):  # else there was no endpoint to try
                wait = self._wait(call, tries, failure)
                if isinstance(wait, str):
                    raise self.explained(call, tries, failure, wait)
                if wait:
                    await asyncio.sleep(wait)
                tries.another(call)
                tried = len(tries.endpoints)
                try:
                    return await self.attempt(call, tries, RETRY)
                except RpcError as error:
                    if error is call.fault:
                        raise
                    failure = error
            raise self.explained(call, tries, failure, "")
        finally:
            call.deadline, call.inherited = tries.deadline, tries.inherited
            del failure  # it knows this frame, and this frame would know it

    async def attempt(self, call: Call, tries: Tries, kind: str) -> Reply:
        """One attempt, on an endpoint that has not had the call yet while there is one.

        Args:
            kind: FIRST, RETRY or HEDGE.
        """
        pool = self.pool
        start = self.time()
        endpoint = pool.pick(start, tries.endpoints)
        if endpoint is None:
            endpoint = await pool.wait(call)
            start = self.time()
        tries.endpoints.append(endpoint)
        permit = endpoint.begin(start)
        if not permit:
            permit = pool.probe(endpoint, start)
        if self._timed:
            self._limit(call, start)
        span = None if call.trace is None else call.trace.attempt(call, endpoint.instance.address, kind)
        try:
            reply = await endpoint.bind(self.method)(call)
        except BaseException as error:
            self._failed(call, tries, endpoint, permit, error, start, kind, span)
            raise
        if self.method.server_streaming:
            now = self.time()
            reply.on_end(self._releasing(call, endpoint, endpoint.began(now, permit, now - start), now - start, kind))
            if not endpoint.breaker.closed or permit != endpoint.breaker.generation:
                self.pool.judge(endpoint, now)
            if span is not None:
                reply.on_end(span)
        else:
            self._answered(endpoint, permit, start)
            self.counts.others[kind, Code.OK] += 1
            if span is not None:
                span(OK)
        return reply

    def _limit(self, call: Call, start: float) -> None:
        """Let an attempt that begins at `start` have no more than its own timeout."""
        timeout = self.policy.attempt_timeout
        if timeout is not None and (call.deadline is None or start + timeout < call.deadline):
            call.deadline, call.inherited = start + timeout, False

    def _answered(self, endpoint: Endpoint, permit: int, start: float) -> None:
        """An attempt has its one reply."""
        now = self.time()
        seconds = now - start
        endpoint.answered(now, permit, seconds)
        if permit != endpoint.breaker.generation:
            self.pool.judge(endpoint, now)
        if endpoint.retired:
            self.pool.done(endpoint)
        self.budget.deposit(now)
        self.latencies.record(now, seconds)

    def _releasing(
        self, call: Call, endpoint: Endpoint, begun: Begun, latency: float, kind: str
    ) -> Callable[[Outcome], None]:
        """What is to be done when a stream ends: it may have died half way."""
        patience = PATIENCE if call.deadline is None else call.deadline - self.time() + latency

        def ended(outcome: Outcome) -> None:
            now = self.time()
            self.counts.others[kind, outcome.code] += 1
            if outcome.code is Code.OK:
                endpoint.ended()
                self.budget.deposit(now)
            else:
                found = self._counted(treatment(outcome, locally_made=_made_here(call, outcome.error)))
                endpoint.broke(now, begun, latency, outcome, found, patience)
                if not endpoint.breaker.closed:
                    self.pool.judge(endpoint, now)
            if endpoint.retired:
                self.pool.done(endpoint)

        return ended

    def _failed(
        self,
        call: Call,
        tries: Tries,
        endpoint: Endpoint,
        permit: int,
        error: BaseException,
        start: float,
        kind: str,
        span: Callable[[Outcome], None] | None,
    ) -> None:
        """An attempt has failed, or was given up: what that says about the endpoint."""
        now = self.time()
        seconds = now - start
        tries.timed_out = False
        local = _made_here(call, error)
        if isinstance(error, RpcError) and error is not call.fault:
            outcome = Outcome(error.code, error, error.remote, error.sent)
            if not error.sent:
                self.pool.refused(endpoint)
            else:
                tries.sent += 1
                if error.code is Code.DEADLINE_EXCEEDED and call.deadline != tries.deadline:
                    tries.timed_out = call.deadline is not None and now >= call.deadline - LATE
        elif isinstance(error, asyncio.CancelledError | GeneratorExit):
            outcome = Outcome(Code.CANCELLED, error, remote=False)
        else:
            outcome = Outcome(Code.UNKNOWN, error, remote=False, sent=False)
        self.counts.others[kind, outcome.code] += 1
        if span is not None:
            span(outcome)
        given_up = not outcome.remote and outcome.code in (Code.CANCELLED, Code.DEADLINE_EXCEEDED)
        usual = self.latencies.quantile(now, OVERDUE) if given_up else None
        overdue = usual is not None and seconds > usual
        if overdue and self.hedges is not None:
            # It would have taken longer: without it the percentiles would sink with every hedge. Calls that all last
            # until the same deadline are not to become what is usual.
            self.latencies.record(now, seconds)
        local = local or not outcome.sent
        found = treatment(outcome, own_timeout=tries.timed_out, locally_made=local, overdue=overdue)
        patience = PATIENCE if call.deadline is None else call.deadline - start
        endpoint.failed(now, permit, seconds, outcome, self._counted(found), patience)
        if not endpoint.breaker.closed or permit != endpoint.breaker.generation:  # a probe may be free again
            self.pool.judge(endpoint, now)
        if endpoint.retired:
            self.pool.done(endpoint)

    def _counted(self, found: Treatment) -> Treatment:
        """What counts of that: failures do not where the breaker is off."""
        return found if self.policy.breaker or found is Treatment.SUCCESS else Treatment.IGNORED

    def _wait(self, call: Call, tries: Tries, failure: RpcError) -> float | str:
        """Seconds until the next attempt, or why there is none; an empty text when that goes without saying."""
        if not failure.sent:
            return 0.0 if call.attempt < MOST_REFUSALS else "every connection turned out to be gone"
        retry = self.policy.retry
        said = pushback(failure.metadata)
        if said == NEVER:
            return "not retried: the server asked not to"
        if said is None and not (tries.timed_out or failure.code in retry.codes):
            return ""
        if self.method.client_streaming:
            return "not retried: its requests were sent as a stream"
        if said is None and not self.policy.idempotent:
            return "not retried: it may have been executed, and its proto does not say that it is idempotent"
        if tries.sent >= retry.attempts:
            return "" if retry.attempts == 1 else f"not retried: {tries.sent} attempts are the most"
        return self.may_repeat(tries, said)

    def may_repeat(self, tries: Tries, said: float | None = None, *, at_once: bool = False) -> float | str:
        """Pay for one more attempt: seconds to wait for it, or why there is none.

        Args:
            said: seconds that the server asked to wait.
            at_once: without backoff.
        """
        serving = current.get()
        if serving is not None and serving.outcome is None and _is_retry(serving):
            return "not retried: the call being served is a retry itself"
        if tries.backoff is None:
            tries.backoff = Backoff(self.policy.retry.backoff, self._rng)
        wait = 0.0 if at_once else tries.backoff.wait(said)
        now = self.time()
        if tries.deadline is not None:
            left = tries.deadline - now
            if left < wait + (self.latencies.quantile(now, 0.5) or 0.0):
                return f"not retried: {max(left, 0) * 1000:.0f} ms are left, too little for another attempt"
        if not self.budget.withdraw(now):
            return "not retried: the retry budget is used up"
        return wait

    def explained(self, call: Call, tries: Tries, error: RpcError, note: str) -> RpcError:
        """The error, with what was done for the call."""
        if not (error.sent or error.inside):
            for_outside(call, error, f"{self.pool.service} cannot be reached now")
        error.attempts = len(tries.endpoints)
        error.endpoints = tuple(endpoint.instance.address for endpoint in tries.endpoints)
        error.sent = tries.sent > 0
        notes = [note] if note else []
        if error.code in FAILURES or error.code is Code.DEADLINE_EXCEEDED:
            suspects = self.pool.suspects(self.time())
            if suspects:
                notes.append(f"out of use: {suspects}")
        error.note = "; ".join(notes)
        return error
