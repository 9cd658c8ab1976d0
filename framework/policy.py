"""How calls are made: the settings of every client, and the policy of a method that is made of them.

    proto option       option (framework.method) = { retry: { attempts: 2 } }
    file               [client.catalog.methods.GetProduct]  retry = { attempts = 2 }
    code               ClientSettings(retry=RetrySettings(attempts=2))

`ClientSettings` are those of one service; what concerns its endpoints (balancer, breaker, outlier ejection, the budget
of retries) is the same for all of its methods, and everything else may differ by method. `policy_of` puts it together.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Self, get_args

from framework.call import Criticality, Idempotency, Method
from framework.errors import Code, ConfigError
from framework.parsing import (
    DEFAULT,
    Table,
    boolean,
    check,
    choice,
    codes,
    duration,
    duration_or_ever,
    integer,
    number,
    optional,
    period,
    setting,
    span,
    split_methods,
    table,
)
from framework.tls import NO_CLIENT_TLS, ClientTls

BalancerName = Literal["peak_ewma", "least_loaded", "round_robin", "weighted"]

FAILURES = frozenset({Code.UNAVAILABLE, Code.INTERNAL, Code.UNKNOWN, Code.DATA_LOSS})
"""Codes with which an endpoint says that it is broken, and another one may not be."""

NO_RETRY = {"attempts": 1}
NO_HEDGE = {"extra_load": 0.0, "delay": "none"}
NO_BULKHEAD = {"calls": 0}
NO_BREAKER = {"consecutive": 0, "failure_rate": 0.0, "slow": "none"}
NO_OUTLIER = {"max_ejected": 0}
NO_LIMITER = {"maximum": 0}
"""What `"off"` means."""


@dataclass(frozen=True, slots=True)
class BudgetSettings(Table):
    """How much a client may retry.

    Attributes:
        ratio: retries that one success earns.
        per_second: retries a second allowed on top, so that a client with few calls may retry as well.
        ttl: seconds after which successes and retries are forgotten.

    Raises:
        ConfigError: a value out of its range.
    """

    ratio: float = setting(0.2, number(0, 1))
    per_second: float = setting(10.0, number(0, 1_000_000))
    ttl: float = setting(10.0, period)

    def __post_init__(self) -> None:
        check(self, "retry_budget")


@dataclass(frozen=True, slots=True)
class BackoffSettings(Table):
    """Waits between attempts.

    Attributes:
        initial: seconds before the second attempt.
        factor: by how much each wait is longer than the one before.
        maximum: seconds that no wait exceeds, jitter aside.

    Raises:
        ConfigError: a value out of its range.
    """

    initial: float = setting(0.1, duration)
    factor: float = setting(2.0, number(1, 100))
    maximum: float = setting(1.0, duration)

    def __post_init__(self) -> None:
        check(self, "backoff")
        if self.initial > self.maximum:
            raise ConfigError(f"backoff.initial is {self.initial:g}s, more than backoff.maximum, {self.maximum:g}s")


@dataclass(frozen=True, slots=True)
class BreakerSettings(Table):
    """When an endpoint is taken out of the pick, and for how long.

    Attributes:
        consecutive: failures in a row that open it; 0 is never.
        failure_rate: share of the calls in the window whose failure opens it; 0 is never.
        slow: seconds from which on a call is slow; None ("none" in a file) is never.
        slow_rate: share of the calls in the window whose slowness opens it.
        minimum: calls that the window must hold before a share of them says anything.
        window: seconds that a share is taken over.
        open: least seconds it stays open the first time; each failed probe doubles them.
        open_max: most seconds it stays open.
        probes: calls let through to an endpoint that may be back; all must succeed.
        probe_wait: seconds after which a probe that has not ended has failed.

    Raises:
        ConfigError: a value out of its range.
    """

    consecutive: int = setting(5, integer(0, 1_000_000))
    failure_rate: float = setting(0.5, number(0, 1))
    slow: float | None = setting(None, optional(period))
    slow_rate: float = setting(0.5, number(0.01, 1))
    minimum: int = setting(20, integer(1, 1_000_000))
    window: float = setting(10.0, period)
    open: float = setting(5.0, period)
    open_max: float = setting(300.0, period)
    probes: int = setting(1, integer(1, 1000))
    probe_wait: float = setting(10.0, period)

    def __post_init__(self) -> None:
        check(self, "breaker")
        if self.open > self.open_max:
            raise ConfigError(f"breaker.open is {self.open:g}s, more than breaker.open_max, {self.open_max:g}s")


@dataclass(frozen=True, slots=True)
class OutlierSettings(Table):
    """When a host is ejected, and for how long.

    Attributes:
        interval: seconds between sweeps.
        ejection: seconds of the first ejection; the n-th in a row takes n times as long.
        ejection_max: seconds that no ejection exceeds, unless `ejection` does.
        max_ejected: percent of the hosts that may be ejected at a time, but one at least; 0 is none at all.
        minimum_hosts: hosts with enough calls that there must be to compare them.
        deviations: standard deviations that a host's success rate may be below the mean; 0 is no such comparison.
        success_rate_calls: calls in an interval that are enough to compare success rates.
        failure_percentage: percent of failed calls above which a host is ejected; 100 is never.
        failure_percentage_calls: calls in an interval that are enough to look at that.

    Raises:
        ConfigError: a value out of its range.
    """

    interval: float = setting(10.0, period)
    ejection: float = setting(30.0, period)
    ejection_max: float = setting(300.0, period)
    max_ejected: int = setting(10, integer(0, 100))
    minimum_hosts: int = setting(5, integer(1, 1_000_000))
    deviations: float = setting(1.9, number(0, 100))
    success_rate_calls: int = setting(100, integer(1, 1_000_000_000))
    failure_percentage: int = setting(85, integer(0, 100))
    failure_percentage_calls: int = setting(50, integer(1, 1_000_000_000))

    def __post_init__(self) -> None:
        check(self, "outlier")


@dataclass(frozen=True, slots=True)
class LimiterSettings(Table):
    """Calls a server works on at a time; streams and health checks are not among them.

    Attributes:
        minimum: calls that are always let in.
        maximum: calls that the limit never exceeds; 0 is no limit.
        initial: the limit before anything is known.
        wait: seconds that a call may wait for its turn while handlers that compute keep the event loop busy.

    Raises:
        ConfigError: a value out of its range.
    """

    minimum: int = setting(20, integer(1, 1_000_000))
    maximum: int = setting(5000, integer(0, 1_000_000))
    initial: int = setting(500, integer(1, 1_000_000))
    wait: float = setting(0.2, period)

    def __post_init__(self) -> None:
        if self.maximum and not 1 <= self.minimum <= self.initial <= self.maximum:
            raise ConfigError(
                f"limiter has minimum {self.minimum}, initial {self.initial} and maximum {self.maximum};"
                " they must be whole numbers above 0, in this order"
            )


@dataclass(frozen=True, slots=True)
class RetrySettings(Table):
    """When a failed call is made again, on another endpoint.

    A method that is not idempotent is made again only when it provably was not sent, or when the server asks for it.

    Attributes:
        attempts: how often a call is made at most, the first time included; 1 is no retry.
        codes: failures after which an idempotent call is made again.
        backoff: waits in between.

    Source: gRFC A6.
    """

    attempts: int = setting(3, integer(1, 10))
    codes: frozenset[Code] = setting(FAILURES, codes)
    backoff: BackoffSettings = table(BackoffSettings(), BackoffSettings)


@dataclass(frozen=True, slots=True)
class HedgeSettings(Table):
    """When an idempotent call that has no answer yet is made a second time, elsewhere; the first answer counts.

    Attributes:
        extra_load: share of calls that may be made twice: a hedge is sent once all but this share would have answered;
            0 is never.
        delay: seconds to wait instead of that; None ("none" in a file) is by `extra_load`.
        attempts: how often a call is made at most, the first time included.

    Source: gRFC A6, "Hedging Policy"; the delay: Dean and Barroso, "The Tail at Scale", 2013.
    """

    extra_load: float = setting(0.02, number(0, 0.5))
    delay: float | None = setting(None, optional(duration))
    attempts: int = setting(2, integer(2, 10))


@dataclass(frozen=True, slots=True)
class BulkheadSettings(Table):
    """How many calls of one method may be out at a time, so that one slow method does not take everything.

    Streams are not counted.

    Attributes:
        calls: calls at a time; 0 is no limit.
        queue: calls that may wait for their turn, within their deadline; more fail at once.
    """

    calls: int = setting(1000, integer(0, 1_000_000))
    queue: int = setting(1000, integer(0, 1_000_000))


@dataclass(frozen=True, slots=True)
class KeepaliveSettings(Table):
    """How a connection that has gone silent is found out.

    Attributes:
        interval: seconds without any answer after which a ping is sent, while calls are out or not.
        timeout: seconds that its answer may take before the connection is given up.
    """

    interval: float = setting(10.0, span(1, 86_400))
    timeout: float = setting(5.0, span(0.1, 3600))


@dataclass(frozen=True, slots=True)
class MethodSettings(Table):
    """`[client.NAME.methods.METHOD]`; None leaves it to the proto, and then to the settings of the service.

    Attributes:
        timeout: seconds until a unary reply must be there.
        idle: seconds a stream may be silent; math.inf ("none" in a file) is for ever.
        attempt_timeout: seconds of one attempt; math.inf ("none" in a file) is the whole deadline.
        idempotent: whether making a call twice does no harm, when the proto does not tell.
        retry, hedge, bulkhead: as in ClientSettings.
        breaker: whether failures of this method speak against the endpoint.
        criticality: how much its calls matter; see `framework.Criticality`.
    """

    timeout: float | None = setting(None, duration)
    idle: float | None = setting(None, duration_or_ever)
    attempt_timeout: float | None = setting(None, duration_or_ever)
    idempotent: bool | None = setting(None, boolean)
    retry: RetrySettings | None = table(None, RetrySettings, off=NO_RETRY)
    hedge: HedgeSettings | None = table(None, HedgeSettings, off=NO_HEDGE)
    bulkhead: BulkheadSettings | None = table(None, BulkheadSettings, off=NO_BULKHEAD)
    breaker: bool | None = setting(None, boolean)
    criticality: str | None = setting(None, choice(*Criticality.__members__))

    @classmethod
    def over(cls, given: Any, where: str, service: ClientSettings) -> MethodSettings:
        """Settings from a table of a file; what a nested table leaves out is as it is for the service.

        Raises:
            ConfigError: a name that does not exist, or a value that cannot be used.
        """
        nested = {name: getattr(service, name) for name in ("retry", "hedge", "bulkhead")}
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where} is {given!r}; it must be a table")
        parsed = cls.parse(given, where, cls(**nested))
        return dataclasses.replace(parsed, **{name: None for name in nested if name not in given})


@dataclass(frozen=True, slots=True)
class ClientSettings(Table):
    """`[client]` for every client and `[client.NAME]` for clients of one service.

    Attributes:
        timeout: seconds until a unary reply must be there, where the call, the method's proto and its own settings
            say nothing.
        idle: seconds a stream may be silent while its reader waits; None ("none" in a file) is for ever.
        attempt_timeout: seconds of one attempt of a call with one reply; None ("none") is the whole deadline.
        retry: when a failed call is made again.
        hedge: when a call without an answer is made a second time.
        retry_budget: how many retries and hedges there may be, of all methods together.
        bulkhead: how many calls of a method may be out at a time.
        breaker: when an endpoint is taken out of use for what it does.
        outlier: when an endpoint is taken out of use for doing worse than the others.
        balancer: `peak_ewma` (power of two choices over peak-EWMA latency), `least_loaded` (over calls in flight),
            `weighted` (at random by the weights of the instances) or `round_robin`.
        subset: instances that one client uses at most; of more it takes a random subset of its own.
        connect_timeout: seconds an attempt to connect may take.
        keepalive: how a dead connection is found out.
        max_message: bytes a message may have, in and out.
        tls: whom to trust, and what to show to servers that ask; without it, plain text is spoken.
        plaintext: instances beyond this machine may be called in plain text; with `tls`, those that do not say that
            they speak TLS.
        direct: calls with one request and one reply go past grpc, on a connection of their own, for a third of the CPU.
        methods: what differs for single methods, by name.
    """

    timeout: float = setting(10.0, duration)
    idle: float | None = setting(30.0, optional(period))
    attempt_timeout: float | None = setting(None, optional(period))
    retry: RetrySettings = table(RetrySettings(), RetrySettings, off=NO_RETRY)
    hedge: HedgeSettings = table(HedgeSettings(), HedgeSettings, off=NO_HEDGE)
    retry_budget: BudgetSettings = table(BudgetSettings(), BudgetSettings)
    bulkhead: BulkheadSettings = table(BulkheadSettings(), BulkheadSettings, off=NO_BULKHEAD)
    breaker: BreakerSettings = table(BreakerSettings(), BreakerSettings, off=NO_BREAKER)
    outlier: OutlierSettings = table(OutlierSettings(), OutlierSettings, off=NO_OUTLIER)
    balancer: BalancerName = setting("peak_ewma", choice(*get_args(BalancerName)))
    subset: int = setting(1000, integer(1, 1_000_000))
    connect_timeout: float = setting(2.0, span(0.01, 3600))
    keepalive: KeepaliveSettings = table(KeepaliveSettings(), KeepaliveSettings)
    max_message: int = setting(4 << 20, integer(1024, 2**31 - 1))
    tls: ClientTls = table(ClientTls(), ClientTls, off=NO_CLIENT_TLS)
    plaintext: bool = setting(False, boolean)
    direct: bool = setting(True, boolean)
    methods: Mapping[str, MethodSettings] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(
        cls, given: Any, where: str, base: Self | None = None, over: Callable[[Self], Self] = lambda settings: settings
    ) -> Self:
        """Settings from a table of a file over `base`; `over` is what still stands above those of the service, but
        below those of its methods.

        Raises:
            ConfigError: a name that does not exist, or a value that cannot be used.
        """
        own, tables = split_methods(given, where)
        settings = over(super(ClientSettings, cls).parse(own, where, base))
        methods = dict(settings.methods)
        for name, values in tables.items():
            methods[name] = MethodSettings.over(values, f"{where}.methods.{name}", settings)
        return dataclasses.replace(settings, methods=MappingProxyType(methods))


@dataclass(frozen=True, slots=True)
class Policy:
    """How the calls of one method are made, everything considered.

    Attributes:
        timeout: seconds of a call that names none; None is no deadline.
        idle: seconds a stream of replies may be silent; None is for ever.
        attempt_timeout: seconds of one attempt; None is the whole deadline.
        idempotent: whether a call may be made twice.
        retry: when it is made again after a failure.
        hedge: when it is made again while the first has no answer; None is never.
        bulkhead: calls at a time; None is no limit.
        breaker: whether its failures speak against the endpoint.
        criticality: what its calls say they are, where neither the caller nor the call being served says so.
        origins: where each of them comes from, see `Table.origin`; what is a table itself has its own, and "hedge" and
            "bulkhead" tell why there is none.
    """

    timeout: float | None
    idle: float | None
    attempt_timeout: float | None
    idempotent: bool
    retry: RetrySettings
    hedge: HedgeSettings | None
    bulkhead: BulkheadSettings | None
    breaker: bool
    criticality: str | None
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


IDEMPOTENCY = "idempotency_level"
"""Origin of what the proto declares without an option of the framework's."""


def options_of(method: Method[Any, Any]) -> str:
    """Where what a proto's options say comes from."""
    return f"the options of {method.full_name}"


def policy_of(method: Method[Any, Any], settings: ClientSettings) -> Policy:
    """The policy of a method. Order of say: the method's own settings, the proto's options, the service's settings.

    Raises:
        ConfigError: the options that the method was declared with cannot be used.
    """
    proto = MethodSettings.over(method.options, options_of(method), settings)
    own = settings.methods.get(method.name, MethodSettings())
    origins: dict[str, str] = {}

    def said(name: str, default: Any, origin: str) -> Any:
        for stated in (own, proto):
            value = getattr(stated, name)
            if value is not None:
                origins[name] = stated.origin(name)
                return None if value == math.inf else value
        origins[name] = origin
        return default

    def of_service(name: str) -> Any:
        return said(name, getattr(settings, name), settings.origin(name))

    one = not method.server_streaming
    unary = one and not method.client_streaming
    declared = method.idempotency is not Idempotency.UNKNOWN
    if method.timeout is not None:
        timeout = said("timeout", method.timeout, f"{options_of(method)}.timeout")
    elif one:
        timeout = of_service("timeout")
    else:
        timeout = said("timeout", None, DEFAULT)
    idempotent = bool(said("idempotent", declared, IDEMPOTENCY if declared else DEFAULT))
    hedge, bulkhead = of_service("hedge"), of_service("bulkhead")
    policy = Policy(
        timeout=timeout,
        idle=None if one else of_service("idle"),
        attempt_timeout=of_service("attempt_timeout") if one else None,
        idempotent=idempotent,
        retry=of_service("retry"),
        hedge=hedge if unary and idempotent and (hedge.extra_load or hedge.delay) else None,
        bulkhead=bulkhead if one and bulkhead.calls else None,
        breaker=said("breaker", True, DEFAULT),
        criticality=said("criticality", None, DEFAULT),
        origins=origins,
    )
    if policy.hedge is None:
        origins["hedge"] = hedge.origin("extra_load")
    if policy.bulkhead is None:
        origins["bulkhead"] = bulkhead.origin("calls")
    return policy
