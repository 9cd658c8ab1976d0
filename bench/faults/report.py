"""What was measured: the calls of one client, the attempts behind them, and what the instances executed.

Moments are on the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.faults.service import DEADLINE

if TYPE_CHECKING:
    from bench.faults.lab import Fleet, Instance

WINDOW = 1.0
"""Seconds that an instance's share of the attempts is taken over."""

OUT = 0.1
"""Share of its fair share, under which an instance counts as out of rotation; what is left are probes."""


class Sample(NamedTuple):
    """One call: when it was due, how long it took from then on, and how it ended."""

    due: float
    seconds: float
    code: str
    id: str
    method: str
    criticality: str
    said: str


class Pick(NamedTuple):
    """One attempt that our client gave to a connection."""

    start: float
    address: str
    id: str
    end: float
    code: str


class Executed(NamedTuple):
    """One request that an instance began to execute."""

    id: str
    method: str
    moment: float
    instance: int


LEFT_ALONE = 2.0
"""Seconds without an attempt, after which an instance has been taken out; one look a second does not count as that."""

Span = tuple[float, float]
"""From one moment to another, the second excluded."""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the calls of one client."""

    client: str
    calls: Sequence[Sample]
    picks: Sequence[Pick]
    executed: Sequence[Executed]
    connections: Sequence[tuple[float, str, str]]
    usage: Sequence[tuple[float, float, int, int]]
    warnings: Sequence[tuple[float, str]]

    @classmethod
    def of(cls, client: str, tag: str, results: dict[str, Any], fleet: Fleet) -> Report:
        """From what the client wrote down, and what the instances executed of it."""
        executed = [
            Executed(id, method, moment, instance.number)
            for instance in fleet.instances
            for id, method, moment in instance.executed()
            if id.startswith(tag)
        ]
        return cls(
            client,
            sorted(Sample(*row) for row in results["calls"]),
            sorted(Pick(*row) for row in results["picks"]),
            sorted(executed, key=lambda one: one.moment),
            results["connections"],
            results["usage"],
            results["warnings"],
        )

    def within(self, span: Span, **which: str) -> list[Sample]:
        """The calls that were due in this time, and have these attributes."""
        found = self.calls[_at(self.calls, span[0]) : _at(self.calls, span[1])]
        return [one for one in found if all(getattr(one, name) == value for name, value in which.items())]

    def failed(self, span: Span, **which: str) -> int:
        """How many of them failed."""
        return sum(one.code != "OK" for one in self.within(span, **which))

    def failed_percent(self, span: Span, **which: str) -> float:
        """How many of a hundred failed."""
        calls = self.within(span, **which)
        return 100.0 * sum(one.code != "OK" for one in calls) / max(1, len(calls))

    def goodput(self, span: Span) -> float:
        """Calls a second that came back well in this time."""
        done = sum(one.code == "OK" and span[0] <= one.due + one.seconds < span[1] for one in self.calls)
        return done / (span[1] - span[0])

    def latency(self, span: Span, quantile: float) -> float:
        """Seconds; a call that failed has taken all of its deadline, or those who fail at once would look fast."""
        return quantile_of(
            (one.seconds if one.code == "OK" else max(one.seconds, DEADLINE) for one in self.within(span)), quantile
        )

    def why(self, span: Span) -> str:
        """The commonest failures, in words."""
        found = Counter(f"{one.code} {one.said}" for one in self.within(span) if one.code != "OK")
        return "; ".join(f"{count} x {what}" for what, count in found.most_common(3))

    def attempts(self, span: Span) -> float:
        """Attempts per call: what our client sent; of a bare one only what instances began to execute."""
        ids = {one.id for one in self.within(span)}
        sent = sum(one.id in ids for one in self.picks) if self.picks else sum(one.id in ids for one in self.executed)
        return sent / max(1, len(ids))

    def retried(self, id: str) -> int:
        """Attempts at one call that began after another had failed; a hedge begins while another is out."""
        mine = [one for one in self.picks if one.id == id]
        failed = [one.end for one in mine if one.code not in ("OK", "CANCELLED", "NOT_SENT")]
        return sum(any(one.start >= end for end in failed) for one in mine)

    def twice(self, method: str) -> int:
        """Requests of a method that were executed more than once."""
        return sum(count > 1 for count in Counter(one.id for one in self.executed if one.method == method).values())

    def given(self, instance: Instance, span: Span) -> tuple[list[float], list[float]]:
        """When this instance got attempts, and when any did: as sent by our client; of a bare one as executed."""
        if self.picks:
            all_of = [(one.start, one.address == instance.address) for one in self.picks]
        else:
            all_of = [(one.moment, one.instance == instance.number) for one in self.executed]
        inside = [(moment, its) for moment, its in all_of if span[0] <= moment < span[1]]
        return [moment for moment, its in inside if its], [moment for moment, _ in inside]

    def share_percent(self, instance: Instance, span: Span) -> float:
        """How many of a hundred attempts this instance got."""
        its, everyone = self.given(instance, span)
        return 100.0 * len(its) / max(1, len(everyone))

    def in_rotation(self, instance: Instance, span: Span, count: int) -> float:
        """Seconds from the beginning of a time until this instance had its share of attempts for the last time.

        It has its share while it got more than a tenth of the fair one of `count` instances within the last second.
        """
        its, everyone = self.given(instance, span)
        for number in range(len(its) - 1, -1, -1):
            begin = its[number] - WINDOW
            mine = number + 1 - bisect.bisect_right(its, begin)
            among = bisect.bisect_right(everyone, its[number]) - bisect.bisect_right(everyone, begin)
            if mine > max(1.0, OUT * among / count):
                return its[number] - span[0]
        return 0.0

    def given_until_out(self, instance: Instance, span: Span) -> int:
        """How many attempts this instance got until it was left alone for two seconds, or to the end."""
        its, _ = self.given(instance, span)
        for number, moment in enumerate(its[1:], 1):
            if moment - its[number - 1] >= LEFT_ALONE:
                return number
        return len(its)

    def last_failure(self, span: Span) -> float:
        """Seconds from the beginning of a time until the last call was made that failed; 0 when none did."""
        return max((one.due - span[0] for one in self.within(span) if one.code != "OK"), default=0.0)

    def back_to_normal(self, after: Span, before: Span) -> float:
        """Seconds until calls are as before: no failure, and the slowest tenth no more than half as slow again."""
        bound, recovered = 1.5 * self.latency(before, 0.9), 0.0
        begin = after[0]
        while begin < after[1]:
            span = (begin, begin + 0.5)
            if self.failed(span) or self.latency(span, 0.9) > bound:
                recovered = span[1] - after[0]
            begin += 0.5
        return recovered

    def churn(self, span: Span) -> int:
        """Connections that our client opened or closed."""
        return sum(span[0] <= moment < span[1] for moment, *_ in self.connections)

    def warned(self, logger: str, span: Span) -> int:
        """Warnings of this logger and those below it."""
        return sum(span[0] <= moment < span[1] and line.startswith(logger) for moment, line in self.warnings)

    def memory(self, moment: float) -> float:
        """Megabytes of this client, about then."""
        return next((row[1] for row in self.usage if row[0] >= moment), self.usage[-1][1]) / 1e6

    def most(self, column: int) -> float:
        """The highest figure in a column of `usage`."""
        return max(row[column] for row in self.usage)


def _at(calls: Sequence[Sample], moment: float) -> int:
    return bisect.bisect_left(calls, moment, key=lambda one: one.due)


def quantile_of(values: Iterable[float], quantile: float) -> float:
    """The smallest value that this share of them does not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered), max(1, math.ceil(quantile * len(ordered)))) - 1] if ordered else math.nan
