"""A channel: binds every method, once, to one handler from interceptors to the wire."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from difflib import get_close_matches
from types import TracebackType
from typing import Any, Self

from framework.call import Call, Handler, Interceptor, Method, Reply, stack
from framework.client.attempts import Attempts, Counts
from framework.client.budget import RetryBudget
from framework.client.bulkhead import Bulkhead
from framework.client.fallback import Fallback, fallback, without_fallback
from framework.client.hedging import Hedges
from framework.client.pool import Pool
from framework.interceptors.identity import Signer, tell
from framework.interceptors.inherit import inherit
from framework.percentile import Latencies
from framework.policy import ClientSettings, policy_of
from framework.telemetry.telemetry import Telemetry
from framework.telemetry.telemetry import telemetry as current_telemetry

log = logging.getLogger("framework.client")


class Bound:
    """A method whose handler stays the same while settings change below it.

    Attributes:
        inner: what a call goes through now.
        handler: calls that. A function, since calling an object costs twice as much.
        outer: the handler inside the user's interceptors, which are bound once whatever the settings become.
    """

    __slots__ = ("handler", "inner", "outer")

    outer: Handler

    def __init__(self, inner: Handler) -> None:
        self.inner = inner

        def handler(call: Call) -> Awaitable[Reply]:
            return self.inner(call)

        self.handler: Handler = handler


class ServiceChannel:
    """Calls to one service, balanced over its instances.

    From outer to inner: the user's interceptors, fallback, `inherit` (deadline, id, criticality), then `attempts`:
    bulkhead, retries or hedges, and for each attempt a pick, the endpoint's breaker and the wire.

    Args:
        pool: the endpoints.
        settings: how calls are made.
        interceptors: the user's, outermost first.
        fallbacks: by name of the method, what answers instead when a call has failed for good.
        release: what to close after the pool, such as a registry that was opened for this channel.
        rng: for jitter; given by tests.
        telemetry: what watches the calls; default: that of the service that runs here, or of the process.
        signer: tells for whom calls are made.
        audience: to whom it tells that; empty is to what is called, by its own name.
    """

    def __init__(
        self,
        pool: Pool,
        settings: ClientSettings,
        interceptors: Iterable[Interceptor] = (),
        release: Callable[[], Awaitable[None]] | None = None,
        *,
        fallbacks: Mapping[str, Fallback] | None = None,
        rng: random.Random | None = None,
        telemetry: Telemetry | None = None,
        signer: Signer | None = None,
        audience: str = "",
    ) -> None:
        self.pool = pool
        self._telemetry = telemetry or current_telemetry()
        self._counts: dict[Method[Any, Any], Counts] = {}
        if self._telemetry.settings.metrics:
            self._telemetry.figures.add(pool)
        self.settings = settings
        self._interceptors = tuple(interceptors)
        self._fallbacks = dict(fallbacks or {})
        self._release = release
        self._rng = rng or random.Random()
        self._tell = None if signer is None else tell(signer, audience)
        self._budget = RetryBudget(settings.retry_budget)
        self._bound: dict[Method[Any, Any], Bound] = {}
        self._latencies: dict[Method[Any, Any], Latencies] = {}
        self._bulkheads: dict[Method[Any, Any], Bulkhead] = {}
        self._doubted: set[str] = set()  # names in the settings about which the log was told

    def bind(self, method: Method[Any, Any]) -> Handler:
        """The handler of a method, interceptors and all; the same one every time."""
        bound = self._bound.get(method)
        if bound is None:
            bound = self._bound[method] = Bound(self._stack(method))
            bound.outer = self._observed(method, stack(self._interceptors, method, bound.handler))
            if len(self._bound) == 1:
                asyncio.get_running_loop().call_soon(self._doubt)  # when a client has bound all its methods
        return bound.outer

    def _observed(self, method: Method[Any, Any], handler: Handler) -> Handler:
        observe = self._telemetry.client(method, self.pool.service)
        if observe is None:
            return handler

        def observed(call: Call) -> Awaitable[Reply]:
            observe(call)
            return handler(call)

        return observed

    def _stack(self, method: Method[Any, Any]) -> Handler:
        policy = policy_of(method, self.settings)
        latencies = self._latencies.setdefault(method, Latencies())
        bulkhead = self._bulkheads.setdefault(method, Bulkhead(policy.bulkhead))
        counts = self._counts.get(method)
        if counts is None:
            counts = self._counts[method] = Counts(self.pool.service, method.full_name)
            if self._telemetry.settings.metrics:
                self._telemetry.figures.add(counts)
        attempts = Attempts(self.pool, method, policy, self._budget, latencies, self._rng, bulkhead, counts)
        if method.server_streaming:
            handler: Handler = attempts.stream
        else:
            if policy.hedge is not None:
                attempts.hedges = Hedges(attempts, policy.hedge)
            handler = attempts.unary
        own = [inherit(policy.timeout, policy.idle, policy.criticality)]
        if self._fallbacks:
            answer = self._fallbacks.get(method.name)
            own.insert(0, without_fallback if answer is None else fallback(answer))
        if self._tell is not None:  # by whom the deadline is known, and once for all attempts
            own.append(self._tell)
        return stack(own, method, handler)

    def apply(self, settings: ClientSettings) -> None:
        """Go by other settings from the next call on; connections and what is known of endpoints stay.

        Raises:
            ConfigError: the settings do not fit a method that is in use; nothing has changed.
        """
        before = self.settings, self._budget
        self.settings = settings
        if settings.retry_budget != before[0].retry_budget:
            self._budget = RetryBudget(settings.retry_budget)
        try:
            handlers = {method: self._stack(method) for method in self._bound}
        except Exception:
            self.settings, self._budget = before
            raise
        self.pool.configure(settings)
        for method, handler in handlers.items():
            self._bound[method].inner = handler
            self._bulkheads[method].configure(policy_of(method, settings).bulkhead)
        self._doubt()

    def _doubt(self) -> None:
        """Warn of names of methods that look misspelt; what they say would be ignored without a word."""
        known = {method.name: None for method in self._bound}
        for kind, names in (
            ("there is a fallback for", self._fallbacks),
            ("there are settings of", self.settings.methods),
        ):
            for name in names:
                if name not in known and name not in self._doubted and (close := get_close_matches(name, known, 1)):
                    self._doubted.add(name)
                    log.warning(
                        "%s: no method %s is called here, but %s it. Did you mean %s?",
                        self.pool.service,
                        name,
                        kind,
                        close[0],
                    )

    async def close(self, grace: float | None = None) -> None:
        """Close every connection; calls in flight are cancelled. `grace` is grpc.aio's, and not waited for."""
        await self.pool.aclose()
        self._telemetry.figures.leave(self.pool)
        for counts in self._counts.values():
            self._telemetry.figures.leave(counts)
        if self._release is not None:
            await self._release()
            self._release = None

    async def __aenter__(self) -> Self:
        self.pool.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Channel over {self.pool!r}>"
