"""More calls than there is room for. Our client has a fleet of our servers, the bare one has one of bare servers.

An instance works on a few requests at a time, each of which takes a known time on average, so the capacity is known
whatever the machine: what limits is the work, not the CPU.
"""

from __future__ import annotations

import math
from functools import partial

from bench.faults.lab import Lab
from bench.faults.story import Form, Judge, Memory, Mix, Result, Run, runs_of, story

WORKERS = 8
MEDIAN, SIGMA = 0.15, 0.4
EACH = WORKERS / (MEDIAN * math.exp(SIGMA**2 / 2))
"""Requests a second that an instance can finish."""

BEHAVIOUR = {"workers": WORKERS, "median": MEDIAN, "sigma": SIGMA}

CRITICALITIES: Mix = (
    (0.2, "Get", "CRITICAL"),
    (0.3, "Get", "SHEDDABLE_PLUS"),
    (0.5, "Get", "SHEDDABLE"),
)

PLAIN: Mix = ((1.0, "Get", ""),)


async def _overload(
    lab: Lab, form: Form, times: tuple[float, float, float], mix: Mix, factor: float
) -> tuple[list[Run], float]:
    """Half the capacity, then more than all of it, then half again; gives the capacity as well."""
    count = 5 if form.full else 3
    capacity = count * EACH
    runs: list[Run] = []
    for client in form.clients:
        async with (
            lab.fleet(kind="ours" if client == "ours" else "bare", count=count, behaviour=BEHAVIOUR) as fleet,
            fleet.callers([client]) as callers,
        ):
            [caller] = callers
            fault, heal = partial(caller.load, factor * capacity), partial(caller.load, capacity / 2)
            spans, reports = await story(fleet, callers, capacity / 2, times, fault, heal, mix)
            runs += runs_of(fleet, spans, reports)
    return runs, capacity


async def storm(lab: Lab, form: Form) -> Result:
    """Twice as many calls as there is room for, all of which may be retried."""
    runs, capacity = await _overload(lab, form, (5, 30, 10) if form.full else (2, 6, 5), PLAIN, 2.0)
    judge = Judge("storm", runs)
    # A budget gives 20% of the successes, 10 a second, and at the beginning what 10 seconds without calls have left:
    # 1.12 over the long form, and more over the first six seconds of an overload.
    judge.row(
        "attempts",
        "per call",
        lambda run: run.report.attempts(run.spans.during),
        "<= 1.12" if form.full else "<= 1.2",
    )
    judge.row(
        "goodput",
        "% of capacity",
        lambda run: 100.0 * run.report.goodput(run.spans.settled(1.0)) / capacity,
        ">= 90" if form.full else ">= 50",
    )
    judge.row("baseline_again", "s", lambda run: run.report.back_to_normal(run.spans.after, run.spans.before), "<= 5")
    return judge.result()


async def overload(lab: Lab, form: Form) -> Result:
    """Three times as many calls as there is room for, a fifth of which are critical."""
    runs, capacity = await _overload(lab, form, (5, 20, 5) if form.full else (2, 6, 1), CRITICALITIES, 3.0)
    judge = Judge("overload", runs)
    judge.row(
        "goodput",
        "% of capacity",
        lambda run: 100.0 * run.report.goodput(run.spans.settled(1.0)) / capacity,
        ">= 90" if form.full else ">= 50",
    )
    judge.row(
        "critical",
        "% that succeed",
        lambda run: 100.0 - run.report.failed_percent(run.spans.during, criticality="CRITICAL"),
        ">= 99.9" if form.full else ">= 95",
    )
    judge.row("servers.memory", "times at a quarter", lambda run: _growth(run, run.servers), "<= 1.1")
    # The client keeps every call that it made, for the report: its memory says little.
    return judge.result()


def _growth(run: Run, memory: Memory) -> float:
    """Memory at the end of the overload, in terms of a quarter of it."""
    begin, end = run.spans.during
    return memory(end) / memory(begin + (end - begin) / 4)
