"""What happens to Consul. A bare client with a fixed list does not notice; ours must not either."""

from __future__ import annotations

import asyncio
import signal
import time

from bench.faults.lab import Lab, until
from bench.faults.proxies import false_consul
from bench.faults.story import Form, Judge, Result, runs_of, story


async def consul_down(lab: Lab, form: Form) -> Result:
    """The agent is killed, and comes back without its memory; then one more instance comes."""
    back = found = registered = first = 0.0
    async with (
        lab.own_agent() as agent,
        lab.fleet(agent=agent) as fleet,
        fleet.callers(form.clients) as callers,
    ):

        async def fault() -> None:
            await asyncio.to_thread(agent.kill)
            agent.forget()

        async def heal() -> None:
            nonlocal back, found, registered, first
            await asyncio.to_thread(agent.start)
            back = time.monotonic()

            async def all_there() -> bool:
                return await asyncio.to_thread(agent.passing, fleet.service) >= len(fleet.instances)

            await until(all_there, "every instance is registered again")
            found = time.monotonic()
            newcomer = await lab.newcomer(fleet, agent)
            registered = time.monotonic()
            try:
                await until(lambda: any(id.startswith("a") for id, *_ in newcomer.executed()), "a newcomer gets calls")
                first = min(moment for id, _, moment in newcomer.executed() if id.startswith("a"))
            finally:
                newcomer.signal(signal.SIGTERM)
                await newcomer.ended()

        spans, reports = await story(fleet, callers, form.rate, (5, 20, 5) if form.full else (1, 3, 1), fault, heal)
    judge = Judge("consul_down", runs_of(fleet, spans, reports))
    judge.row("failed", "calls", lambda run: run.report.failed(spans.faulty), "<= 0")
    judge.row("registered_again", "s", lambda run: found - back, "<= 2", alone=True)
    judge.row("fresh", "s", lambda run: max(0.0, first - registered), "<= 2", alone=True)
    judge.row("connections", "opened or closed", lambda run: run.report.churn(spans.during), "<= 0", alone=True)
    return judge.result()


async def consul_flaps(lab: Lab, form: Form) -> Result:
    """The agent comes and goes, fails, and says for a while that nobody is there."""
    async with (
        false_consul(lab.agent.address) as between,
        lab.fleet(discovered_at=between.address) as fleet,
        fleet.callers(form.clients) as callers,
    ):

        async def fault() -> None:
            for _ in range(4 if form.full else 1):
                for mode, seconds in (("down", 0.7), ("pass", 0.3), ("fail", 0.7), ("pass", 0.3), ("empty", 2.0)):
                    between.turn(mode)
                    await asyncio.sleep(seconds)
            between.turn("pass")

        spans, reports = await story(fleet, callers, form.rate, (5, 0, 8) if form.full else (1, 0, 1), fault)
    judge = Judge("consul_flaps", runs_of(fleet, spans, reports))
    judge.row("failed", "calls", lambda run: run.report.failed(spans.faulty), "<= 0")
    judge.row("connections", "opened or closed", lambda run: run.report.churn(spans.faulty), "<= 0", alone=True)
    judge.row(
        "logged", "warnings", lambda run: run.report.warned("framework.discovery", spans.faulty), ">= 1", alone=True
    )
    return judge.result()
