"""Outlier ejection: takes hosts out of the pick that do worse than the others, on the evidence of all of them.

Every `interval` seconds one sweep over all hosts looks at the calls since the last one:

    | host      | at a sweep                                                          | next                          |
    |-----------|---------------------------------------------------------------------|-------------------------------|
    | in use    | success rate < mean - deviations * sigma of the hosts' rates        | ejected, multiplier + 1       |
    | in use    | more than `failure_percentage` of its calls failed                  | ejected, multiplier + 1       |
    | in use    | neither, or there is no room                                        | in use, multiplier - 1 (>= 0) |
    | ejected   | for min(ejection * multiplier, max(ejection, ejection_max)) seconds | in use                        |

Only hosts with enough calls are looked at, and only when there are `minimum_hosts` of them: with four hosts or fewer
this never fires, and the breaker of each is what is left. Room is `max_ejected` percent of the hosts, but one at least.
The worst go first.

Source: gRFC A50, Outlier Detection; the panic threshold is Envoy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from framework.policy import OutlierSettings

PANIC = 50
"""Percent of the hosts: with fewer of them healthy, all are used."""


class Host:
    """What outlier ejection knows of one host. Whoever calls it counts.

    Attributes:
        successes, failures: calls since the last sweep.
        ejected: it is out of the pick.
        multiplier: ejections not yet made up for by clean sweeps.
    """

    __slots__ = ("_since", "ejected", "failures", "multiplier", "successes")

    def __init__(self) -> None:
        self.successes = 0
        self.failures = 0
        self.ejected = False
        self.multiplier = 0
        self._since = 0.0

    def record(self, success: bool) -> None:
        """A call has ended that says something about the host."""
        if success:
            self.successes += 1
        else:
            self.failures += 1

    def sweep(self, now: float, settings: OutlierSettings) -> None:
        """Begin a new interval; come back when the time is served."""
        self.successes = self.failures = 0
        if not self.ejected:
            self.multiplier = max(0, self.multiplier - 1)
        elif now >= self._since + self._sentence(settings):
            self.ejected = False

    def eject(self, now: float) -> None:
        """Leave the pick."""
        self.ejected = True
        self.multiplier += 1
        self._since = now

    def _sentence(self, settings: OutlierSettings) -> float:
        return min(settings.ejection * self.multiplier, max(settings.ejection, settings.ejection_max))

    def __repr__(self) -> str:
        state = "ejected" if self.ejected else "in use"
        return f"<Host {state} multiplier={self.multiplier} {self.failures} of {self.successes + self.failures} failed>"


def sweep(hosts: Sequence[Host], now: float, settings: OutlierSettings) -> list[Host]:
    """Look at all hosts of a service; the caller does so every `settings.interval` seconds.

    Returns:
        those that were ejected or came back, to be told of.
    """
    before = [host.ejected for host in hosts]
    room = max(1, len(hosts) * settings.max_ejected // 100) if settings.max_ejected else 0
    room -= sum(before)
    for host in _outliers(hosts, settings)[: max(0, room)]:
        host.eject(now)
    for host in hosts:
        host.sweep(now, settings)
    return [host for host, was in zip(hosts, before, strict=True) if host.ejected is not was]


def _outliers(hosts: Sequence[Host], settings: OutlierSettings) -> list[Host]:
    """Hosts in use that ought to be ejected, the worst first."""
    rates = [(host.successes / calls, calls, host) for host in hosts if (calls := host.successes + host.failures)]
    found = _by_success_rate(rates, settings) + _by_failure_percentage(rates, settings)
    unique = {id(host): (rate, host) for rate, host in found if not host.ejected}
    return [host for _, host in sorted(unique.values(), key=lambda each: each[0])]


def _by_success_rate(rates: list[tuple[float, int, Host]], settings: OutlierSettings) -> list[tuple[float, Host]]:
    enough = [(rate, host) for rate, calls, host in rates if calls >= settings.success_rate_calls]
    if len(enough) < settings.minimum_hosts or not settings.deviations:
        return []
    threshold = success_rate_threshold([rate for rate, _ in enough], settings.deviations)
    return [(rate, host) for rate, host in enough if rate < threshold]


def success_rate_threshold(rates: Sequence[float], deviations: float) -> float:
    """The success rate below which a host is an outlier: mean - deviations * standard deviation of all."""
    mean = math.fsum(rates) / len(rates)
    sigma = math.sqrt(math.fsum((rate - mean) ** 2 for rate in rates) / len(rates))
    return mean - deviations * sigma


def _by_failure_percentage(rates: list[tuple[float, int, Host]], settings: OutlierSettings) -> list[tuple[float, Host]]:
    enough = [each for each in rates if each[1] >= settings.failure_percentage_calls]
    if len(enough) < settings.minimum_hosts:
        return []
    return [(rate, host) for rate, calls, host in enough if host.failures * 100 > settings.failure_percentage * calls]


def panicking(healthy: int, total: int, threshold: int = PANIC) -> bool:
    """Whether so few hosts are healthy that all must be used: what is left would break down under the whole load.

    Args:
        healthy: hosts that no check, breaker or ejection speaks against.
        total: all hosts.
        threshold: percent of them.
    """
    return healthy * 100 < threshold * total
