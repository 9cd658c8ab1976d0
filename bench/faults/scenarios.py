"""What happens to instances, and what is to become of the calls: the goals stand beside each figure.

Every scenario takes the lab and a form. The short form has fewer calls; where a goal cannot be judged with them, it has
one of its own, or none.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial

from bench.faults.lab import Caller, Fleet, Lab, until
from bench.faults.proxies import blackhole
from bench.faults.service import DEADLINE, HANG
from bench.faults.story import Form, Judge, Mix, Result, Run, nothing, runs_of, story

BOTH: Mix = ((0.8, "Get", ""), (0.2, "Put", ""))
"""Calls that may be repeated, and some that may not."""


async def kill(lab: Lab, form: Form) -> Result:
    """`kill -9` of one instance, which is started again later."""
    async with lab.fleet() as fleet, fleet.callers(form.clients) as callers:
        victim = fleet.instances[0]

        async def fault() -> None:
            # While it works on a call of ours that may be repeated, or there would be nothing to lose.
            seen = len(victim.executed())
            await until(
                lambda: any(id.startswith("a") and method == "Get" for id, method, _ in victim.executed()[seen:]),
                "a call reaches the victim",
                pause=0.001,
            )
            await victim.kill()

        spans, reports = await story(
            fleet, callers, form.rate, (5, 10, 5) if form.full else (2, 3, 1), fault, victim.start, BOTH
        )
    runs = runs_of(fleet, spans, reports, victim, silent=True)

    def excess(run: Run) -> float:
        in_flight = {
            pick.id for pick in run.report.picks if pick.address == victim.address and pick.end >= spans.during[0]
        }
        lost = [one for one in run.report.within(spans.whole, method="Put") if one.code != "OK"]
        return float(sum(one.id not in in_flight for one in lost))

    def last_pick(run: Run) -> float:
        if not run.report.picks:
            return run.report.last_failure(spans.during)
        its, _ = run.report.given(victim, spans.during)
        return max(its, default=spans.during[0]) - spans.during[0]

    judge = Judge("kill", runs)
    judge.row("idempotent.failed", "calls", lambda run: run.report.failed(spans.whole, method="Get"), "<= 0")
    judge.row("others.failed", "calls", lambda run: run.report.failed(spans.whole, method="Put"))
    judge.row("others.failed_not_in_flight", "calls", excess, "<= 0", alone=True)
    judge.row("others.executed_twice", "requests", lambda run: run.report.twice("Put"), "<= 0")
    judge.row("last_pick", "s", last_pick, "<= 0.2")
    return judge.result()


async def _gray(name: str, fleet: Fleet, callers: list[Caller], form: Form, fault: Fault, heal: Fault) -> Result:
    """One instance neither answers nor closes its connections."""
    victim = fleet.instances[0]
    spans, reports = await story(fleet, callers, form.rate, (5, 12, 5) if form.full else (2, 6, 1), fault, heal)
    judge = Judge(name, runs_of(fleet, spans, reports, victim, silent=True))
    judge.row("failed", "% of calls", lambda run: run.report.failed_percent(spans.faulty), "<= 0.1")
    judge.row("in_rotation", "s", lambda run: run.out or 0.0, "<= 2" if form.full else "<= 4")
    judge.row(
        f"p{100 * form.tail:.0f}.after_3s",
        "times before",
        partial(_slower, form=form, settled=3.0),
        "<= 2" if form.full else "<= 4",
    )
    return judge.result()


Fault = Callable[[], Awaitable[None]]


def _slower(run: Run, form: Form, settled: float) -> float:
    """The tail during the fault, so many seconds after it began, in terms of the one before."""
    return run.report.latency(run.spans.settled(settled), form.tail) / run.report.latency(run.spans.before, form.tail)


async def sigstop(lab: Lab, form: Form) -> Result:
    """SIGSTOP of one instance, SIGCONT later."""
    async with lab.fleet() as fleet, fleet.callers(form.clients) as callers:
        victim = fleet.instances[0]

        async def fault() -> None:
            victim.signal(signal.SIGSTOP)

        async def heal() -> None:
            victim.signal(signal.SIGCONT)

        return await _gray("sigstop", fleet, callers, form, fault, heal)


async def vanish(lab: Lab, form: Form) -> Result:
    """Packets to and from one instance vanish: a proxy before it forwards nothing, and closes nothing."""
    async with (
        blackhole() as proxy,
        lab.fleet(behind=proxy.listen) as fleet,
        fleet.callers(form.clients) as callers,
    ):

        async def fault() -> None:
            proxy.flow.clear()

        async def heal() -> None:
            proxy.flow.set()

        return await _gray("blackhole", fleet, callers, form, fault, heal)


async def slow(lab: Lab, form: Form) -> Result:
    """One instance takes ten times as long."""
    async with lab.fleet() as fleet, fleet.callers(form.clients) as callers:
        victim = fleet.instances[0]
        spans, reports = await story(
            fleet,
            callers,
            form.rate,
            (8, 20, 5) if form.full else (3, 6, 1),
            partial(fleet.behave, victim, median=0.2),
            partial(fleet.behave, victim, median=0.02),
        )
    judge = Judge("slow", runs_of(fleet, spans, reports, victim))
    # One look a second at whether it has recovered is 0.4% of the calls of the full form, and 1% of the short one's.
    judge.row(
        "share",
        "% of attempts",
        lambda run: run.report.share_percent(victim, spans.settled(1.0)),
        "<= 0.5" if form.full else "<= 1.5",
    )
    judge.row(
        f"p{100 * form.tail:.0f}",
        "times before",
        partial(_slower, form=form, settled=1.0),
        "<= 1.3" if form.full else "<= 3",
    )
    judge.row("failed", "calls", lambda run: run.report.failed(spans.faulty), "<= 0")
    return judge.result()


async def errors(lab: Lab, form: Form, *, percent: int, code: str) -> Result:
    """One instance fails all its requests, or some, and at once."""
    async with lab.fleet() as fleet, fleet.callers(form.clients) as callers:
        victim = fleet.instances[0]
        long = 30 if percent < 100 else 15
        spans, reports = await story(
            fleet,
            callers,
            form.rate,
            (5, long, 5) if form.full else (1, 4, 1),
            partial(fleet.behave, victim, errors=percent / 100, code=code),
            partial(fleet.behave, victim, errors=0.0),
        )
    judge = Judge(f"errors{percent}.{code.lower()}", runs_of(fleet, spans, reports, victim))
    judge.row(
        "failed",
        "% of calls",
        lambda run: run.report.failed_percent(spans.faulty),
        "<= 0.01" if percent == 100 else "<= 0.1",
    )
    if percent == 100:
        judge.row("given_until_out", "attempts", lambda run: run.report.given_until_out(victim, spans.during), "<= 5")
    # The short form ends before two sweeps of the outlier detection.
    judge.row("in_rotation", "s", lambda run: run.out or 0.0, "<= 20" if form.full and percent < 100 else "")
    return judge.result()


async def rolling(lab: Lab, form: Form) -> Result:
    """Every instance is drained and started again, one after the other, while calls of both kinds go on."""
    half: Mix = ((0.5, "Get", ""), (0.5, "Put", ""))
    # Calls that take a while, so that some are always in flight where an instance stops.
    fleets = lab.fleet(drain=1.0 if form.full else 0.3, behaviour={"median": 0.1})
    async with fleets as fleet, fleet.callers(form.clients) as callers:

        async def fault() -> None:
            for instance in fleet.instances:
                before = len(instance.executed())
                await instance.replace()
                await until(
                    lambda instance=instance, before=before: len(instance.executed()) > before,  # type: ignore[misc]  # bound
                    "calls reach the instance that was started again",
                )

        spans, reports = await story(
            fleet, callers, form.rate, (5, 0, 3) if form.full else (1, 0, 1), fault, nothing, half
        )
    judge = Judge("rolling", runs_of(fleet, spans, reports))
    judge.row("idempotent.failed", "calls", lambda run: run.report.failed(spans.whole, method="Get"), "<= 0")
    judge.row("others.failed", "calls", lambda run: run.report.failed(spans.whole, method="Put"), "<= 0")
    judge.row("others.executed_twice", "requests", lambda run: run.report.twice("Put"), "<= 0")
    return judge.result()


async def clock(lab: Lab, form: Form) -> Result:
    """The wall clocks of client and instances are set an hour forward, then an hour back, while an instance is out.

    Nothing is to happen: the instance that fails everything stays out, calls end at their deadlines, and no budget is
    earned or lost. There is no rival, since grpc's own clock is not moved.
    """
    jumps: list[float] = []
    hung: list[float] = []
    async with lab.fleet() as fleet, fleet.callers(["ours"]) as callers:
        victim, [caller] = fleet.instances[0], callers
        await fleet.behave(victim, errors=1.0)

        async def jump(offset: float) -> None:
            jumps.append(time.monotonic())
            await asyncio.gather(fleet.behave(clock=offset), caller.ask(clock=offset))
            probe = await caller.ask(probe={"method": "Put", "prefix": HANG})
            hung.append(abs(probe["seconds"] - DEADLINE) if probe["code"] == "DEADLINE_EXCEEDED" else LOST)
            await asyncio.sleep(2.0 if form.full else 0.5)

        async def fault() -> None:
            await jump(3600.0)
            await jump(-3600.0)

        spans, reports = await story(
            fleet, callers, form.rate, (5, 0, 3) if form.full else (3, 0, 1), fault, partial(jump, 0.0)
        )
    judge = Judge("clock", runs_of(fleet, spans, reports))
    judge.row("failed", "calls", lambda run: run.report.failed(spans.faulty), "<= 0")
    judge.row("deadline.off_by", "s", lambda run: max(hung), "<= 0.1")
    judge.row(
        "broken.given_after_a_jump",
        "attempts",
        lambda run: max(len(run.report.given(victim, (at, at + 1.0))[0]) for at in jumps),
        "<= 3",
    )
    judge.row(
        "attempts.more_than_before",
        "per call",
        lambda run: run.report.attempts(spans.faulty) - run.report.attempts(spans.before),
        "<= 0.02" if form.full else "<= 0.05",
    )
    return judge.result()


LOST = 60.0
"""Stands for a deadline that was not kept at all."""

LARGE = 5 << 20
"""Bytes of a message that is larger than the 4 MiB that a client sends and a server takes."""


async def oversize(lab: Lab, form: Form) -> Result:
    """Messages that are too large, many in a row, beside a load that is well."""
    answers: dict[str, list[dict[str, object]]] = {}
    async with lab.fleet() as fleet, fleet.callers(form.clients) as callers:

        async def send(caller: Caller) -> None:
            answers[caller.client] = [
                await caller.ask(probe={"method": "Get", "size": LARGE}) for _ in range(60 if form.full else 30)
            ]

        async def fault() -> None:
            await asyncio.gather(*(send(caller) for caller in callers))

        spans, reports = await story(fleet, callers, form.rate, (5, 5, 3) if form.full else (1, 2, 1), fault)
    judge = Judge("oversize", runs_of(fleet, spans, reports))

    def clear(run: Run) -> float:
        probes = answers[run.report.client]
        good = [one for one in probes if one["code"] == "RESOURCE_EXHAUSTED" and str(4 << 20) in str(one["said"])]
        return 100.0 * len(good) / len(probes)

    def retries(run: Run) -> float:
        return float(sum(run.report.retried(str(one["id"])) for one in answers[run.report.client]))

    def lowest(run: Run) -> float:
        return min(run.report.share_percent(instance, spans.faulty) for instance in fleet.instances)

    judge.row("clear", "% with code and limit", clear, ">= 100")
    judge.row("retries", "attempts", retries, "<= 0", alone=True)
    judge.row("others.failed", "calls", lambda run: run.report.failed(spans.faulty), "<= 0")
    judge.row("lowest_share", "% of attempts", lowest, ">= 10")
    return judge.result()
