"""Play scenarios, print tables, write `bench/faults.json`."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench.faults import overloads, registries, scenarios
from bench.faults.lab import Lab
from bench.faults.story import BUSY, FULL, SHORT, Form, Result, Run, figure_row, judged
from bench.harness import Row
from tests.consul_agent import ConsulAgent

SCENARIOS: dict[str, Callable[[Lab, Form], Awaitable[Result]]] = {
    "kill": scenarios.kill,
    "sigstop": scenarios.sigstop,
    "slow": scenarios.slow,
    **{
        f"errors{percent}.{code.lower()}": partial(scenarios.errors, percent=percent, code=code)
        for percent in (100, 30)
        for code in ("UNAVAILABLE", "INTERNAL")
    },
    "consul_down": registries.consul_down,
    "consul_flaps": registries.consul_flaps,
    "blackhole": scenarios.vanish,
    "rolling": scenarios.rolling,
    "storm": overloads.storm,
    "clock": scenarios.clock,
    "oversize": scenarios.oversize,
    "overload": overloads.overload,
}
RESULTS = Path(__file__).parents[1] / "faults.json"


def lines_of(result: Result) -> list[tuple[str, ...]]:
    """A scenario in the table: a line for each client."""
    return [(result.name if number == 0 else "", *_line(run)) for number, run in enumerate(result.runs)]


def _line(run: Run) -> tuple[str, ...]:
    report, spans = run.report, run.spans
    phases = (spans.before, spans.during, spans.after)
    return (
        report.client,
        f"{len(report.within(spans.faulty))}",
        f"{report.failed(spans.faulty)}",
        " ".join(f"{1000 * report.latency(span, 0.5):.0f}" for span in phases),
        " ".join(f"{1000 * report.latency(span, 0.99):.0f}" for span in phases),
        f"{report.attempts(spans.faulty):.3f}",
        "" if run.out is None else f"{run.out:.2f}",
        f"{report.twice('Put')} {report.twice('Get')}",
        f"{report.usage[0][1] / 1e6:.0f}-{report.most(1) / 1e6:.0f}",
        f"{run.servers(spans.before[1]):.0f}-{run.servers(spans.after[1]):.0f}",
        f"{report.most(2):.0f}",
        f"{report.most(3):.0f}",
    )


def shown(results: Sequence[Result]) -> Table:
    """What happened."""
    table = Table(title="faults: calls from the fault on; latencies before, during and after it", title_justify="left")
    for column in ("fault", "client", "calls", "failed", "p50 ms", "p99 ms", "attempts", "in rotation s"):
        table.add_column(column)
    for column in ("twice put get", "client MB", "servers MB", "files", "tasks"):
        table.add_column(column)
    for result in results:
        for line in lines_of(result):
            table.add_row(*line)
        table.add_section()
    return table


def goals(rows: Sequence[Row]) -> Table:
    """What was to happen."""
    table = Table(title="goals, of the value", title_justify="left")
    for column in ("figure", "value", "lowest - highest", "unit", "goal", "", "grpc.aio"):
        table.add_column(column)
    for row in rows:
        if row.goal:
            met = "[green]met[/]" if row.met else "[red]missed[/]"
            rival = "" if row.rival_value is None else f"{row.rival_value:.4g}"
            spread = f"{row.low:.4g} - {row.high:.4g}" if row.low != row.high else ""
            table.add_row(row.name, f"{row.value:.4g}", spread, row.unit, row.goal, met, rival)
    return table


def together(rounds: Sequence[Result]) -> list[Row]:
    """The same scenario played several times, as one row for each figure."""
    merged = []
    for same in zip(*(result.rows for result in rounds), strict=True):
        rival = [row.rival_value for row in same if row.rival_value is not None]
        merged.append(figure_row(same[0].name, same[0].unit, [row.value for row in same], rival, same[0].goal))
    return merged


async def play(lab: Lab, names: Sequence[str], form: Form, rounds: int) -> tuple[list[Result], list[Row]]:
    """Play scenarios, so many times each."""
    last: list[Result] = []
    rows: list[Row] = []
    for name in names:
        results = []
        for _ in range(rounds):
            result = await judged(partial(SCENARIOS[name], lab, form), form)
            results.append(result)
            busy = "" if result.held_up <= BUSY else f" (the machine was busy: the lab waited {result.held_up:.2f} s)"
            print(f"  {name}: {'; '.join(result.missed) or 'goals met'}{busy}", file=sys.stderr, flush=True)
        last.append(results[-1])
        rows += together(results)
    return last, rows


def main() -> int:
    """Play what the command line names; exit code 1 when a goal is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults",
        description="Play faults, print what became of the calls, and write bench/faults.json.",
        epilog=f"scenarios: {', '.join(SCENARIOS)}",
    )
    parser.add_argument("scenario", nargs="*", help="the beginnings of their names; all of them, about 10 minutes")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="play each N times")
    parser.add_argument("--short", action="store_true", help="the form of the tests; writes nothing")
    asked = parser.parse_args()
    names = [name for name in SCENARIOS if not asked.scenario or any(map(name.startswith, asked.scenario))]
    if not names:
        parser.error(f"no scenario of that name; there are {', '.join(SCENARIOS)}")
    form, rounds = SHORT if asked.short else FULL, asked.rounds
    with (
        tempfile.TemporaryDirectory() as folder,
        ConsulAgent(Path(folder)) as agent,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        results, rows = runner.run(play(Lab(Path(folder), agent), names, form, rounds))
    console = Console(width=160)
    console.print(shown(results), goals(rows))
    if form is FULL:
        kept = [] if not RESULTS.exists() else json.loads(RESULTS.read_text())
        fresh = {row.name for row in rows}
        kept = [row for row in kept if row["name"] not in fresh] + [row.as_dict() for row in rows]
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
