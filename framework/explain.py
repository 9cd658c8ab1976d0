"""How calls of a method are made, and who says so: for people.

It says what `policy_of` has made of proto and settings, and what the settings remember of where they were read; it
decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from framework.call import Method
from framework.parsing import CODE, DEFAULT, Table, leaves, seconds, shown
from framework.policy import IDEMPOTENCY, ClientSettings, MethodSettings, Policy, options_of, policy_of


@dataclass(frozen=True, slots=True)
class Row:
    """One setting.

    Attributes:
        name: as the settings call it, `retry.attempts`.
        value: as it is in code.
        text: the same as a file would say it.
        origin: who says so.
        shared: it is of the service, and the same for all its methods.
    """

    name: str
    value: Any
    text: str
    origin: str
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Explanation:
    """How calls of a method are made.

    Attributes:
        policy: the same for the machine.
        rows: every setting.
        sentences: what they mean.
    """

    policy: Policy
    rows: tuple[Row, ...]
    sentences: tuple[str, ...]


OWN = ("timeout", "attempt_timeout", "idle", "idempotent", "retry", "hedge", "bulkhead", "breaker", "criticality")
"""Settings of a method, in the order in which they are shown."""

SHARED = (
    *("retry_budget", "breaker", "outlier", "balancer", "subset", "connect_timeout", "direct", "keepalive"),
    *("max_message", "tls", "plaintext"),
)
"""Settings of a service that its methods cannot have for themselves."""


def explain(method: Method[Any, Any], settings: ClientSettings, file: str = "") -> Explanation:
    """How calls of a method are made under the settings of a service.

    Args:
        file: what to call the file that the settings were read from.

    Raises:
        ConfigError: the settings do not go with what the proto says.
    """
    policy = policy_of(method, settings)
    rows = _rows(method, settings, policy, file)
    origin = {row.name: row.origin for row in rows}
    sentences = [
        _time(method, policy),
        *_failures(method, policy, origin),
        _hedging(method, policy, origin),
        *_limits(policy),
        _endpoints(settings, policy),
    ]
    return Explanation(policy, tuple(rows), tuple(sentences))


def _rows(method: Method[Any, Any], settings: ClientSettings, policy: Policy, file: str) -> list[Row]:
    own = {name: f for (name, *rest), f in leaves(MethodSettings) if not rest}

    def said(where: str, path: str) -> str:
        return _origin(method, where, path, file)

    def table(name: str, value: Table, shared: bool = False) -> Iterator[Row]:
        for names, f in leaves(type(value)):
            inner: Any = value
            for step in names[:-1]:
                inner = getattr(inner, step)
            path = ".".join((name, *names))
            found = getattr(inner, names[-1])
            yield Row(path, found, shown(f, found), said(inner.origin(names[-1]), path), shared)

    def off(name: str, why: str) -> Row:
        return Row(name, None, "off", why or said(policy.origins[name], f"{name}.{OFF_BY[name]}"))

    found: list[Row] = []
    for name in OWN:
        value = getattr(policy, name)
        if isinstance(value, Table):
            found += table(name, value)
        elif name in OFF_BY:
            found.append(off(name, _why_not(method, policy, name)))
        elif name == ("attempt_timeout" if method.server_streaming else "idle"):
            continue  # of the other kind
        else:
            found.append(Row(name, value, shown(own[name], value), said(policy.origins[name], name)))
    fields = dict(leaves(ClientSettings))
    for name in SHARED:
        value = getattr(settings, name)
        if isinstance(value, Table):
            found += table(name, value, shared=True)
        else:
            text = shown(fields[(name,)], value)
            found.append(Row(name, value, text, said(settings.origin(name), name), shared=True))
    return found


OFF_BY = {"hedge": "extra_load", "bulkhead": "calls"}
"""What is 0 when there is none."""


def _why_not(method: Method[Any, Any], policy: Policy, name: str) -> str:
    """Why a method cannot have it at all, whatever anybody says; empty when it can."""
    if name == "bulkhead":
        return "streams are not counted" if method.server_streaming else ""
    if method.client_streaming or method.server_streaming:
        return "a stream is never made twice"
    return "" if policy.idempotent else "not idempotent"


def _origin(method: Method[Any, Any], where: str, path: str, file: str) -> str:
    if where in (CODE, DEFAULT):
        return where
    if where == IDEMPOTENCY:
        return "proto idempotency_level"
    if where.startswith("FRAMEWORK_"):
        return f"environment {where}"
    if where.startswith(options_of(method)):
        return "proto option"
    return f"{file} [{where.removesuffix(f'.{path}')}]"


def _time(method: Method[Any, Any], policy: Policy) -> str:
    text = "A call that names no timeout has no deadline"
    if policy.timeout is not None:
        text = f"A call that names no timeout has {seconds(policy.timeout)}"
    if method.server_streaming:
        ever = "for ever" if policy.idle is None else f"for {seconds(policy.idle)}"
        return f"{text}; its replies may be silent {ever}."
    if policy.attempt_timeout is not None:
        return f"{text}; one attempt has {seconds(policy.attempt_timeout)} of it."
    return f"{text}."


def _failures(method: Method[Any, Any], policy: Policy, origin: dict[str, str]) -> Iterator[str]:
    retry = policy.retry
    more = retry.attempts - 1
    yield "If it provably was not sent, it goes to another endpoint at once."
    times = "once more" if more == 1 else f"up to {more} times more"
    began = ", as long as no reply has begun" if method.server_streaming else ""
    if not more:
        yield f"Else a failed call is not made again: retry.attempts is 1 ({origin['retry.attempts']})."
    elif method.client_streaming:
        yield "Else a failed call is not made again, because its requests are a stream and have been sent."
    elif not policy.idempotent:
        yield (
            f"Else a failed call is made again only when the server says when, {times}, because nobody says that it "
            "is idempotent. If it is: `option idempotency_level = IDEMPOTENT;` in the proto, or `idempotent = true` in "
            "the settings of the method."
        )
    else:
        codes = _listed([code.name for code in sorted(retry.codes)])
        late = " or takes longer than an attempt may" if policy.attempt_timeout is not None else ""
        failed = f"fails with {codes}{late}" if codes else "the server says when to repeat"
        reason = _reason(method, origin["idempotent"])
        yield f"If it {failed}, it is made again {times} on another endpoint{began}, because {reason}."
    if more and policy.idempotent and not method.client_streaming:
        backoff = retry.backoff
        yield (
            f"It waits {seconds(backoff.initial)} before that, then {backoff.factor:g} times as long each time,"
            f" {seconds(backoff.maximum)} at most, all +-20%."
        )


def _reason(method: Method[Any, Any], origin: str) -> str:
    if origin == "proto idempotency_level":
        return f"the proto says {method.idempotency.name}"
    return f"{'the proto' if origin == 'proto option' else origin} says that it is idempotent"


def _hedging(method: Method[Any, Any], policy: Policy, origin: dict[str, str]) -> str:
    hedge = policy.hedge
    if hedge is None:
        why = _why_not(method, policy, "hedge") or f"hedge.extra_load is 0 ({origin['hedge']})"
        return f"It is not hedged: {why}."
    if hedge.delay is not None:
        when = f"after {seconds(hedge.delay)}"
    else:
        when = f"when {100 * (1 - hedge.extra_load):.4g}% of calls would have theirs"
    times = "a second time" if hedge.attempts == 2 else f"again, {hedge.attempts} times in all,"
    return f"If it has no answer {when}, it is made {times} on another endpoint, and the first answer counts."


def _limits(policy: Policy) -> Iterator[str]:
    if policy.bulkhead is not None:
        yield (
            f"At most {policy.bulkhead.calls} calls of this method are out at a time, and {policy.bulkhead.queue} wait;"
            " more fail at once."
        )
    if policy.criticality is not None:
        yield f"Where not all calls can be served, it is {policy.criticality}, unless the caller says otherwise."


def _endpoints(settings: ClientSettings, policy: Policy) -> str:
    breaker = settings.breaker
    out = []
    if breaker.consecutive:
        out.append(f"{breaker.consecutive} failures in a row")
    if breaker.failure_rate:
        out.append(f"{breaker.failure_rate:.0%} failures within {seconds(breaker.window)}")
    if breaker.slow is not None:
        out.append(f"{breaker.slow_rate:.0%} of its calls slower than {seconds(breaker.slow)}")
    if not out:
        return "No endpoint is taken out of use by a breaker."
    if not policy.breaker:
        return "Its failures do not speak against an endpoint."
    return f"An endpoint is taken out of use for a while after {_listed(out)}."


def _listed(items: list[str]) -> str:
    return " or ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))
