"""Run benchmarks, print a table, write `bench/results.json`."""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from pathlib import Path

import uvloop
from rich.console import Console
from rich.table import Table

from bench import auth, calls, discovery, engine, gateway, http, start, telemetry, tls, workers
from bench.harness import Row

BENCHES = {
    "client": calls.client,
    "server": calls.server,
    "memory": calls.memory,
    "pyvoy": engine.pyvoy,
    "picks": discovery.picks,
    "local": discovery.local,
    "consul": discovery.consul,
    "http": http.http,
    "gateway": gateway.gateway,
    "auth": auth.auth,
    "start": start.start,
    "telemetry": telemetry.telemetry,
    "workers": workers.workers,
    "tls": tls.tls,
}
RESULTS = Path(__file__).with_name("results.json")


async def run(names: list[str]) -> tuple[list[Row], list[str]]:
    """Run the benchmarks of these names, showing each figure as it comes; which of them broke off comes too."""
    rows, broken = [], []
    for name in names:
        try:
            async for row in BENCHES[name]():
                print(f"  {row.name}: {row.value:.4g} {row.unit}", file=sys.stderr, flush=True)
                rows.append(row)
        except Exception:  # what has been measured is kept
            traceback.print_exc()
            broken.append(name)
    return rows, broken


def table(rows: list[Row]) -> Table:
    """The figures, readable."""
    shown = Table(title="benchmarks", title_justify="left")
    for column in ("figure", "value", "rival", "its value", "ratio (95%)", "goal", ""):
        shown.add_column(column)
    for row in rows:
        rival = "" if row.rival_value is None else f"{row.rival_value:.4g} {row.unit}"
        spread = f"{row.ratio:.3g} ({row.low:.3g} - {row.high:.3g})"
        met = "[green]met[/]" if row.met else "[red]missed[/]"
        shown.add_row(row.name, f"{row.value:.4g} {row.unit}", row.rival, rival, spread, row.goal, met)
    return shown


def main() -> int:
    """`python -m bench [NAME]`; exit code 1 when a goal is missed or a benchmark breaks off."""
    wanted = sys.argv[1:]
    names = [name for name in BENCHES if not wanted or any(name.startswith(given) for given in wanted)]
    if not names:
        print(f"bench: no benchmark of that name; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rows, broken = runner.run(run(names))
    Console(width=140).print(table(rows))
    kept = [] if not RESULTS.exists() else json.loads(RESULTS.read_text())
    fresh = {row.name for row in rows}
    kept = [row for row in kept if row["name"] not in fresh] + [row.as_dict() for row in rows]
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    if broken:
        print(f"bench: broke off: {', '.join(broken)}", file=sys.stderr)
    return 0 if all(row.met for row in rows) and not broken else 1


if __name__ == "__main__":
    sys.exit(main())
