"""From a path to a handler: what every wire serves calls with.

A wire makes a `ServerCall`, looks its method up and awaits `answer` (one reply) or `stream` (many). Both raise nothing
but RpcError, which the wire sends, and CancelledError when nobody waits for an answer any more.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import secrets
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

from framework.call import OK, Criticality, Handler, Interceptor, Metadata, Method, Outcome, current, stack
from framework.codec import decoder, encoder
from framework.config import ServerSettings
from framework.details import KEY as DETAILS
from framework.details import pack
from framework.errors import (
    Code,
    ConfigError,
    DeadlineExceeded,
    Internal,
    MessageTooLarge,
    ResourceExhausted,
    RpcError,
    error_for,
)
from framework.interceptors.request_id import KEY as REQUEST_ID
from framework.loop import exact_clock
from framework.metadata import pairs
from framework.observation import Allowance
from framework.parsing import suggest
from framework.percentile import Latencies
from framework.server.context import PUSHBACK, UNSET, ServerCall
from framework.server.gate import Gate, arrival
from framework.server.limiter import SHARES, Limiter
from framework.server.servicer import Servicer, ServicerError, handler_of
from framework.telemetry.figures import Histogram, Labels, Sample
from framework.telemetry.names import OTHER, SERVER_DURATION, SERVER_IN_FLIGHT, SERVER_LIMIT, SERVER_QUEUE, SERVER_SHED
from framework.telemetry.observer import Durations, Observer
from framework.telemetry.telemetry import BROKEN, Telemetry
from framework.telemetry.telemetry import telemetry as current_telemetry

log = logging.getLogger("framework.server")

ErrorMap: TypeAlias = Mapping[type[Exception], type[RpcError] | Callable[[Any], RpcError]]
"""Exceptions of the user's own, and what each becomes: a class of the family with its text, or what a function says."""


LATE = 0.005
"""Seconds before the deadline from which on a call that is given up counts as late, not as cancelled."""


LATENCY_WINDOW = 5.0
"""Seconds after which how long a method took is no longer how long it takes."""

# Looking a member up in its class takes longer than all else on the way of a call, on Python 3.11.
CRITICAL = Criticality.CRITICAL
DEADLINE_EXCEEDED = Code.DEADLINE_EXCEEDED

NEVER = -1
"""Milliseconds of a pushback that means: not at all."""

_WORKED = ["OK", "NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE"]
_ANSWERS = [code.name in _WORKED for code in Code]
"""By code, whether a handler says it when it has done its work; how long it takes to fail tells nothing."""


class Broken(Exception):
    """A wire's write failed because the call is gone: cancelled, or past its deadline."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A method ready to serve: its handler inside all interceptors, and its codec.

    Attributes:
        timeout: seconds that it may take, whatever its callers say; None is as long as they say.
        latencies: how long it takes, where its calls are limited; else None.
        observe: what watches its calls; None when nobody wants to know.
    """

    method: Method[Any, Any]
    handler: Handler
    decode: Callable[[bytes], Any]
    encode: Callable[[Any], bytes]
    timeout: float | None
    latencies: Latencies | None
    observe: Observer | None


class Pipeline:
    """The methods that are served, and the calls in flight.

    Args:
        interceptors: around every handler, the first outermost.
        errors: exceptions of the user's own and what they become.
        settings: how many calls it works on at a time, and how long.
        telemetry: what watches the calls; default: that of the service that runs here, or of the process.
    """

    def __init__(
        self,
        interceptors: Iterable[Interceptor] = (),
        errors: ErrorMap | None = None,
        settings: ServerSettings | None = None,
        *,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.telemetry = telemetry or current_telemetry()
        self._settings = settings or ServerSettings()
        self._max_message = self._settings.max_message
        self._interceptors = tuple(interceptors)
        self._errors = dict(errors or {})
        given: Iterable[tuple[Any, Any]] = self._errors.items()
        for kind, mapped in given:
            if not isinstance(kind, type) or (isinstance(mapped, type) and not issubclass(mapped, RpcError)):
                raise ServicerError(f"errors maps {kind!r} to {mapped!r}; it maps exceptions to errors like NotFound")
        self._bound: dict[str, Bound] = {}
        self._complete = False
        self.calls: set[ServerCall] = set()
        self._clock = exact_clock()
        self._loop = asyncio.get_running_loop()
        self.time = self._loop.time
        limits = self._settings.limiter
        self.limiter = Limiter(limits, random.Random()) if limits.maximum else None
        self.gate = Gate(self._clock, self._loop.call_soon)
        self._streams = 0  # in flight; no limiter counts them
        self._refused = [0] * len(Criticality)
        self._shed = [0] * len(Criticality)
        self._told = -math.inf  # when the log last heard of refused calls
        self._queue: Histogram | None = None
        if self.telemetry.settings.metrics:
            self._queue = self.telemetry.figures.histogram(SERVER_QUEUE, ())
            self.telemetry.figures.add(self)

    @property
    def services(self) -> tuple[str, ...]:
        """Full names of the services served, in order of their names."""
        return tuple(sorted({bound.method.service for bound in self._bound.values()}))

    @property
    def methods(self) -> tuple[Bound, ...]:
        """Every method served."""
        return tuple(self._bound.values())

    def complete(self) -> None:
        """No more methods are added: serving begins.

        Raises:
            ConfigError: there are settings of a method that is not served.
        """
        names = {bound.method.name: None for bound in self._bound.values()}
        for name in self._settings.methods:
            if name not in names:
                raise ConfigError(f"server.methods.{name} is no method that is served.{suggest(name, names)}")
        self._complete = True

    def find(self, path: str) -> Bound | None:
        """The method at `/package.Service/Method`, or None."""
        return self._bound.get(path)

    def add(self, servicer: Servicer) -> None:
        """Serve the methods of a generated servicer.

        Raises:
            ServicerError: it is no servicer, a method is not asynchronous, or its service is served already.
        """
        if not isinstance(cast(object, servicer), Servicer):
            hint = f"{servicer.__name__}()" if isinstance(servicer, type) else "an instance of a generated servicer"
            raise ServicerError(f"{servicer!r} is not a servicer; add {hint}")
        for method in servicer.__methods__:
            self.add_method(method, getattr(servicer, method.name))

    def add_method(
        self,
        method: Method[Any, Any],
        function: Callable[..., Any],
        decode: Callable[[bytes], Any] | None = None,
        encode: Callable[[Any], bytes] | None = None,
    ) -> None:
        """Serve one method with a function of request and context; the codec defaults to that of its messages."""
        if self._complete:
            raise ServicerError(f"{method.full_name} comes too late: the server serves already; add it in the lifespan")
        if method.path in self._bound:
            raise ServicerError(f"{method.full_name} is served already; add one servicer per service")
        self._bound[method.path] = Bound(
            method,
            stack(self._interceptors, method, handler_of(method, function)),
            decode or decoder(method.request, method.full_name),
            encode or encoder(method.reply, method.full_name),
            self._timeout(method),
            Latencies(LATENCY_WINDOW) if self.limiter is not None and _is_limited(method) else None,
            self.telemetry.server(method),
        )

    def observed(self) -> None:
        """Watch the calls of all methods added so far, by what there is to watch with now."""
        for path, bound in self._bound.items():
            self._bound[path] = replace(bound, observe=self.telemetry.server(bound.method))

    def turned_away(self, code: Code) -> None:
        """A call has been refused before it was any method's: there is none, or its metadata is refused."""
        if self.telemetry.settings.metrics:
            labels: Labels = (("rpc.system.name", "grpc"), ("rpc.method", OTHER))
            Durations(self.telemetry.figures, SERVER_DURATION, labels, BROKEN).of(code).record(0.0)

    def figures(self) -> Iterable[Sample]:
        """What is counted of the calls in flight."""
        yield SERVER_IN_FLIGHT, (), float(len(self.calls))
        if self.limiter is not None:
            yield SERVER_LIMIT, (), float(self.limiter.limit)
        for level, count in zip(Criticality, self._shed, strict=True):
            yield SERVER_SHED, (("criticality", level.name),), float(count)

    def close(self) -> None:
        """Nothing is served any more."""
        self.telemetry.figures.leave(self)

    def _timeout(self, method: Method[Any, Any]) -> float | None:
        own = self._settings.methods.get(method.name)
        if own is not None and own.timeout is not None:
            return None if own.timeout == math.inf else own.timeout
        return None if method.server_streaming else self._settings.timeout

    async def answer(self, bound: Bound, call: ServerCall, raw: bytes | None) -> bytes:
        """Serve a call with one reply; `raw` is the request, or None when `call.request` is a stream of them."""
        # Written out in one: each function that a call passes through costs it something.
        if bound.observe is not None:
            bound.observe(call)
        clock, latencies = self._clock, bound.latencies
        limiter: Any = self.limiter  # not None where there are latencies
        start = 0.0
        if latencies is not None:
            level = call.criticality
            if level is None:
                level = CRITICAL
            crowded = self.gate.line and self.gate.wait >= self._settings.limiter.wait * SHARES[level] / 100
            if crowded or not limiter.admit(level):
                raise self._refuse_call(limiter, call, level)
            start = clock()
        elif bound.method.client_streaming:
            self._count_stream(call)
        try:
            call.task = task = cast("asyncio.Task[Any]", asyncio.current_task(self._loop))
            self.calls.add(call)
            if latencies is not None and (arrived := arrival.get()) is not None:  # else it is not from grpc
                at, before, _ = arrived
                if self.gate.busy(at, before, start):
                    await self.gate.turn()
                    start = clock()
                if (queue := self._queue) is not None:
                    queue.counts[bisect_left(queue.bounds, start - at)] += 1
                    queue.sum += start - at
            if call.deadline is not None:
                left = call.deadline - self.time()
                if left <= 0.0:  # it waited for so long that nobody waits for it
                    raise Broken
                if latencies is not None and limiter.in_flight > 1:
                    self._hurry(latencies, call, left)
            current.set(call)
            if bound.timeout is not None:
                self._limit_time(bound.timeout, call)
            if raw is not None:
                call.request = bound.decode(raw)
            reply = await bound.handler(call)
            if task.cancelling() or call.aborted is not None or call.status is not UNSET:
                _raise_for_ending(call)
            encoded = bound.encode(reply)
            if len(encoded) > self._max_message:
                raise self._too_large(encoded)
            self.calls.discard(call)
            call.end(OK)
        except BaseException as error:
            if (failure := self._fail(call, error)) is error:
                raise
            raise failure from error
        finally:
            call.task = None  # whose context holds the call: what is no cycle needs no collector
            if latencies is not None:
                now = clock()
                outcome = call.outcome
                if outcome is OK or outcome is None or _ANSWERS[outcome.code]:
                    if call.deadline is not None:  # else nobody has to hurry
                        latencies.record(now, now - start)
                    limiter.end(now, now - start)
                elif outcome.code is DEADLINE_EXCEEDED:
                    limiter.end(now, now - start, expired=True)
                else:
                    limiter.leave()
        return encoded

    def _hurry(self, latencies: Latencies, call: ServerCall, left: float) -> None:
        """Give a call up that others wait behind, when so little of its deadline is left that most would miss it."""
        usual = latencies.quantile(self._clock(), 0.5)
        if usual is not None and left < usual:
            raise DeadlineExceeded(
                f"{left * 1000:.0f} ms of the deadline were left when {call.method.full_name} was to begin,"
                f" which takes {usual * 1000:.0f} ms"
            )

    def _refuse_call(self, limiter: Limiter, call: ServerCall, level: Criticality) -> ResourceExhausted:
        call.pushback = round(limiter.pushback() * 1000)
        in_flight, limit = limiter.in_flight, limiter.limit
        told = f"{level.name} calls get {SHARES[level]}% (`limiter` in the settings)"
        return self._refuse(call, level, f"{in_flight} calls in flight of {limit}; {told}", "calls", in_flight, limit)

    def _count_stream(self, call: ServerCall) -> None:
        """One more call that streams, until it ends. Raises ResourceExhausted when there are too many."""
        in_flight, limit = self._streams, self._settings.limits.open_streams
        if in_flight >= limit:
            told = f"{in_flight} streams are open of {limit} (`limits.open_streams` in the settings)"
            level = CRITICAL if call.criticality is None else call.criticality
            raise self._refuse(call, level, told, "streams", in_flight, limit)
        self._streams = in_flight + 1
        call.on_end(self._uncount_stream)

    def _uncount_stream(self, outcome: Outcome) -> None:
        self._streams -= 1

    def _refuse(
        self, call: ServerCall, level: Criticality, why: str, what: str, in_flight: int, limit: int
    ) -> ResourceExhausted:
        self._refused[level] += 1
        self._shed[level] += 1
        now = self._clock()
        if now >= self._told + 1.0:
            counts = ", ".join(
                f"{count} {level.name}" for level, count in zip(Criticality, self._refused, strict=True) if count
            )
            log.warning("overloaded: refused %s; %d %s in flight, limit %d", counts, in_flight, what, limit)
            self._refused = [0] * len(Criticality)
            self._told = now
        error = ResourceExhausted(f"the server is overloaded: {why}")
        call.end(Outcome(error.code, error, remote=False))
        return error

    async def stream(
        self, bound: Bound, call: ServerCall, raw: bytes | None, write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Serve a call with a stream of replies, each handed to `write`, which raises Broken when the call is gone."""
        if bound.observe is not None:
            bound.observe(call)
        encode = bound.encode
        replies = None
        try:
            self._begin(bound, call)
            if raw is not None:
                call.request = bound.decode(raw)
            replies = await bound.handler(call)
            async for reply in replies:
                encoded = encode(reply)
                if len(encoded) > self._max_message:
                    raise self._too_large(encoded)
                await write(encoded)
            _raise_for_ending(call)
        except BaseException as error:
            failure = self._fail(call, error)
            if replies is not None and replies.outcome is None:
                await self._abandon(replies, failure)
            if failure is error:
                raise
            raise failure from error
        finally:
            call.task = None
        self.calls.discard(call)
        call.end(OK)

    def _too_large(self, reply: bytes) -> MessageTooLarge:
        return MessageTooLarge(
            f"{MessageTooLarge.PREFIX}the reply has {len(reply)} bytes, the server sends up to"
            f" {self._settings.max_message} (`max_message` in its settings)"
        )

    async def _abandon(self, replies: Any, reason: BaseException) -> None:
        try:
            await replies.aclose(reason)
        except Exception:
            log.exception("a handler failed while its abandoned stream was closed")

    def _begin(self, bound: Bound, call: ServerCall) -> None:
        self._count_stream(call)
        call.task = asyncio.current_task(self._loop)
        current.set(call)
        self.calls.add(call)
        if call.deadline is not None and call.deadline <= self.time():  # it waited for so long that nobody waits for it
            raise Broken
        if bound.timeout is not None:
            self._limit_time(bound.timeout, call)

    def _limit_time(self, timeout: float, call: ServerCall) -> None:
        """End a call after so many seconds, unless its caller's deadline is earlier."""
        end = self.time() + timeout
        if call.deadline is not None and call.deadline <= end:
            return
        call.deadline = end
        error = DeadlineExceeded(
            f"{call.method.full_name} took longer than {timeout:g} s (`timeout` in the settings of the server)"
        )
        timer = self._loop.call_at(end, call.expel, error)
        call.on_end(lambda outcome: timer.cancel())

    def _fail(self, call: ServerCall, error: BaseException) -> BaseException:
        """End a failed call; returns what the wire is to raise: an RpcError, or CancelledError when nobody waits."""
        self.calls.discard(call)
        gone = isinstance(error, Broken)
        if isinstance(error, asyncio.CancelledError):
            if call.expelled is not None:
                if call.task is not None:
                    call.task.uncancel()
                call.end(Outcome(call.expelled.code, call.expelled, remote=False))
                return call.expelled
            gone = call.task is not None and call.task.cancelling() > 0
        elif isinstance(error, KeyboardInterrupt | SystemExit):
            call.end(Outcome.of(error))
            return error
        if gone:
            remaining = call.remaining()  # a caller's deadline passes, and is known here, a moment before our own
            late = remaining is not None and remaining < LATE
            code = Code.DEADLINE_EXCEEDED if late else Code.CANCELLED
            call.end(Outcome(code, error_for(code, "the caller stopped waiting"), remote=not late))
            return asyncio.CancelledError()
        failure = call.aborted or self._translate(call, error)
        if call.pushback is None and _was_retried(error):
            call.pushback = NEVER
        call.end(Outcome(failure.code, error, remote=False))
        return failure

    def _translate(self, call: ServerCall, error: BaseException) -> RpcError:
        """What the caller may know of an exception."""
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]  # a task group's only failure is the failure
        if isinstance(error, RpcError) and not error.method:
            return error  # raised by the handler, for the caller
        if isinstance(error, DeadlineExceeded) and error.inherited:
            return DeadlineExceeded(f"the deadline passed while {call.method.full_name} waited for {error.method}")
        for kind in type(error).__mro__:
            if (mapped := self._errors.get(kind)) is not None:
                text = error.message if isinstance(error, RpcError) else str(error)
                answer: RpcError = mapped(text) if isinstance(mapped, type) else mapped(error)
                return answer
        return internal(call, error)


def _was_retried(error: BaseException) -> bool:
    """Whether a failure comes from a call that was made more than once; who retried it has done what can be done."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return any(isinstance(one, RpcError) and bool(one.method) and one.attempts > 1 for one in (error, error.__cause__))


def _is_limited(method: Method[Any, Any]) -> bool:
    """Whether calls count: streams last as long as they like, and health must be answered above all under load."""
    return not (method.client_streaming or method.server_streaming or method.service.startswith("grpc."))


ROOM = 7000
"""Bytes that a failure's message, details and trailing metadata may have; grpc refuses more than 8 kB of headers."""


_large = Allowance(10, 1.0, random.Random())
"""Lines a second about failures that do not fit: a caller may have chosen the text."""


def status_of(call: ServerCall, error: RpcError) -> tuple[str, Metadata]:
    """The message and the trailing metadata that a failed call ends with.

    What does not fit is left out, the details first: the code and the beginning of the message always arrive.

    Raises:
        TypeError, ValueError: what the handler gave cannot be sent.
    """
    message = str(error.message).encode("utf-8", "replace").decode()
    own: Metadata = () if error.metadata is call.trailer else pairs(error.metadata)
    details: Metadata = ((DETAILS, pack(error)),) if error.details else ()
    told: Metadata = () if call.get(REQUEST_ID) is not None else ((REQUEST_ID, call.request_id),)
    if call.pushback is not None:
        told = (*told, (PUSHBACK, str(call.pushback)))
    trailer = (*call.trailer, *own, *told, *details)
    if _size(message, trailer) > ROOM:
        for trailer in ((*call.trailer, *own, *told), told):
            if _size("", trailer) <= ROOM // 2:
                break
        while len(message) > 20 and _size(message, trailer) > ROOM:
            message = f"{message[: len(message) * 3 // 4]}..."
        if _large.take(time.monotonic()):
            log.warning(
                "%s failed with more than %d bytes; some are left out: %.200s", call.method.full_name, ROOM, message
            )
    return message, trailer


def _size(message: str, trailer: Metadata) -> int:
    """Bytes in headers, where what is no ASCII takes three and binary values a third more."""
    text = len(message) if message.isascii() else 3 * len(message.encode())
    return text + sum(32 + len(key) + len(value) * 4 // 3 for key, value in trailer)


def internal(call: ServerCall, error: BaseException) -> Internal:
    """What the caller is told of a failure that is none of its business; the log has the cause under the same id."""
    error_id = secrets.token_hex(4)
    log.error("%s failed, error %s", call.method.full_name, error_id, exc_info=error)
    return Internal(f"internal error {error_id}; its cause stands in the log of the server")


def _raise_for_ending(call: ServerCall) -> None:
    """A handler that returns may have set a status, or have swallowed its cancellation."""
    if call.task is not None and call.task.cancelling():
        raise asyncio.CancelledError
    if call.aborted is not None:
        raise call.aborted
    code, details = call.status
    if code is not Code.OK:
        raise error_for(code, details, metadata=call.trailer)
