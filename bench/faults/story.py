"""How a scenario goes: calls, a fault, its end; and the figures that it comes to."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from statistics import median

from bench.faults.lab import Caller, Fleet, Instance
from bench.faults.report import Report, Span
from bench.harness import Row, meets

Mix = Sequence[tuple[float, str, str]]

Memory = Callable[[float], float]

RIVAL = "grpc.aio"

TRIES = 3
"""How often a scenario is played while the machine is too busy to judge it."""

BUSY = 0.1
"""Seconds of waiting for the CPU, above which a scenario says more about the machine than about the clients."""


@dataclass(frozen=True, slots=True)
class Form:
    """How much of a scenario is played.

    Attributes:
        full: all of it, and the goals as they are; otherwise the short form, with goals for so few calls.
        rate: calls a second of each client.
        rival: a bare client meets the fault as well.
    """

    full: bool
    rate: float
    rival: bool

    @property
    def clients(self) -> list[str]:
        """Who calls."""
        return ["ours", RIVAL] if self.rival else ["ours"]

    @property
    def tail(self) -> float:
        """The quantile that tells whether calls are slow; of a few hundred calls the 99th percentile says nothing."""
        return 0.99 if self.full else 0.9


FULL = Form(full=True, rate=200.0, rival=True)
SHORT = Form(full=False, rate=100.0, rival=False)


@dataclass(frozen=True, slots=True)
class Spans:
    """When what was."""

    before: Span
    during: Span
    after: Span

    @property
    def faulty(self) -> Span:
        """From the fault to the end, what it leaves behind included."""
        return (self.during[0], self.after[1])

    @property
    def whole(self) -> Span:
        """All of it."""
        return (self.before[0], self.after[1])

    def settled(self, seconds: float) -> Span:
        """During the fault, so many seconds after it began."""
        return (self.during[0] + seconds, self.during[1])


@dataclass(frozen=True, slots=True)
class Run:
    """A client's part in a scenario.

    Attributes:
        out: seconds that a faulty instance stayed in rotation, None where there is none.
        servers: megabytes of all instances at a moment.
        held_up: seconds that the lab had to wait for the CPU.
    """

    report: Report
    spans: Spans
    out: float | None
    servers: Memory
    held_up: float


@dataclass(frozen=True, slots=True)
class Result:
    """What a scenario came to."""

    name: str
    rows: Sequence[Row]
    runs: Sequence[Run]

    @property
    def missed(self) -> list[str]:
        """The goals that were not met, each in a line; with what failed, if anything did."""
        lines = [f"{row.name} is {row.value:.4g} {row.unit}, not {row.goal}" for row in self.rows if not row.met]
        ours = self.runs[0]
        return lines and [*lines, *filter(None, [ours.report.why(ours.spans.faulty)]), *self._busy()]

    def _busy(self) -> list[str]:
        return [f"the machine was busy: the lab waited {self.held_up:.2f} s for it"] if self.held_up > BUSY else []

    @property
    def held_up(self) -> float:
        """Seconds that the lab had to wait for the CPU."""
        return max(run.held_up for run in self.runs)


async def judged(play: Callable[[], Awaitable[Result]], form: Form) -> Result:
    """Play a scenario; again, when the machine was too busy to judge it, in the short form only if it missed goals."""
    for _ in range(TRIES - 1):
        result = await play()
        if result.held_up <= BUSY or not (form.full or result.missed):
            return result
        print(f"  {result.name}: again, the machine was busy; {'; '.join(result.missed)}", file=sys.stderr, flush=True)
    return await play()


async def nothing() -> None:
    """Do nothing."""


async def story(
    fleet: Fleet,
    callers: Sequence[Caller],
    rate: float,
    times: tuple[float, float, float],
    fault: Callable[[], Awaitable[None]],
    heal: Callable[[], Awaitable[None]] = nothing,
    mix: Mix | None = None,
) -> tuple[Spans, list[Report]]:
    """Call all the time; after a while break something, and after another heal it.

    Args:
        times: seconds before the fault, at least so many of the fault, and after it.
        fault, heal: what breaks, and what ends it.
    """
    await fleet.warm_up(callers, rate)
    await asyncio.gather(*(caller.load(rate, mix) for caller in callers))
    marks = [time.monotonic()]
    await asyncio.sleep(times[0])
    marks.append(time.monotonic())
    await fault()
    await asyncio.sleep(max(0.0, marks[-1] + times[1] - time.monotonic()))
    marks.append(time.monotonic())
    await heal()
    await asyncio.sleep(times[2])
    marks.append(time.monotonic())
    reports = await asyncio.gather(*(caller.finish(fleet) for caller in callers))
    return Spans((marks[0], marks[1]), (marks[1], marks[2]), (marks[2], marks[3])), reports


def runs_of(
    fleet: Fleet, spans: Spans, reports: Sequence[Report], victim: Instance | None = None, silent: bool = False
) -> list[Run]:
    """The parts of all clients.

    Args:
        victim: the faulty instance.
        silent: it does not execute what it is given, so that of a bare client only failures tell of it.
    """
    usage = tuple(fleet.usage)

    def servers(moment: float) -> float:
        return next((row[1] for row in usage if row[0] >= moment), usage[-1][1]) / 1e6

    runs = []
    for report in reports:
        out = None
        if victim is not None:
            blind = silent and not report.picks
            out = (
                report.last_failure(spans.during)
                if blind
                else report.in_rotation(victim, spans.during, len(fleet.instances))
            )
        runs.append(Run(report, spans, out, servers, fleet.held_up))
    return runs


class Judge:
    """Collects the figures of a scenario; what they are is a function of a client's part, ours first."""

    def __init__(self, name: str, runs: Sequence[Run]) -> None:
        self._name = name
        self._runs = runs
        self._rows: list[Row] = []

    def row(self, what: str, unit: str, figure: Callable[[Run], float], goal: str = "", *, alone: bool = False) -> None:
        """One figure; without a goal it is only written down, and `alone` the rival has none."""
        value = figure(self._runs[0])
        rival = figure(self._runs[1]) if len(self._runs) > 1 and not alone else None
        if rival is not None and math.isnan(rival):
            rival = None
        self._rows.append(figure_row(f"{self._name}.{what}", unit, [value], [] if rival is None else [rival], goal))

    def result(self) -> Result:
        """All of them, and those that every scenario has."""
        if len(self._runs) == 0:
            raise ValueError("nobody called")
        for span in ("before", "during", "after"):
            for quantile in (50, 99):
                self.row(
                    f"p{quantile}.{span}",
                    "ms",
                    lambda run, span=span, quantile=quantile: (  # type: ignore[misc]  # bound here
                        1000 * run.report.latency(getattr(run.spans, span), quantile / 100)
                    ),
                )
        self.row("failed.all", "calls", lambda run: run.report.failed(run.spans.faulty))
        self.row("attempts.all", "per call", lambda run: run.report.attempts(run.spans.faulty))
        self.row("executed_twice.idempotent", "requests", lambda run: run.report.twice("Get"))
        self.row("client.memory", "MB", lambda run: run.report.most(1) / 1e6)
        self.row("client.descriptors", "files", lambda run: run.report.most(2))
        self.row("client.tasks", "tasks", lambda run: run.report.most(3))
        return Result(self._name, self._rows, self._runs)


def figure_row(name: str, unit: str, values: Sequence[float], rival: Sequence[float], goal: str) -> Row:
    """A row of medians with the lowest and highest value; unlike in a benchmark, the goal is the value's."""
    value = median(values)
    other = median(rival) if rival else None
    ratio = value / other if other else value
    met = not goal or meets(value, goal)
    return Row(name, value, unit, RIVAL if rival else "", other, ratio, min(values), max(values), goal, met)
