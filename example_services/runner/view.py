"""What a person sees of it: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Column, Table

from example_services.runner.customers import Tally, price
from example_services.runner.fleet import Fleet

REFRESH = 0.25  # seconds between two pictures
REPORT = 5.0  # seconds between two plain lines
STYLES = {"starting": "yellow", "serving": "green", "leaving": "cyan"}

console = Console(highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """Print a line, above the live table when there is one."""
    console.print(text, markup=False)


def hints(fleet: Fleet) -> str:
    """Commands to copy: the shop is a gRPC system like any other."""
    address = fleet.of("catalog")[0].address
    framework = shutil.which("framework") or str(Path(sys.executable).with_name("framework"))
    framework = "framework" if shutil.which("framework") else _relative(framework)
    return f"""
Look at it with grpcurl:
  grpcurl -plaintext {address} list
  grpcurl -plaintext {address} describe shop.catalog.v1.Catalog
  grpcurl -plaintext -d '{{"id": "p-0001"}}' {address} shop.catalog.v1.Catalog/GetProduct
or with the framework, which finds the address by itself:
  {framework} services --registry {fleet.registry}
  {framework} call shop.catalog.v1.Catalog/GetProduct '{{"id": "p-0001"}}' --registry {fleet.registry}
Kill an instance, and see who notices:
  kill -9 {fleet.of("payments")[0].pid}
"""


def _relative(path: str) -> str:
    cwd = Path.cwd()
    return str(Path(path).relative_to(cwd)) if Path(path).is_relative_to(cwd) else path


@asynccontextmanager
async def showing(fleet: Fleet, tally: Tally) -> AsyncIterator[None]:
    """Show how things stand while the block runs."""
    task = asyncio.create_task(_draw(fleet, tally) if console.is_terminal else _report(tally))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _draw(fleet: Fleet, tally: Tally) -> None:
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(Group(_instances(fleet), _orders(tally), _standing(tally)), refresh=True)
            await asyncio.sleep(REFRESH)


async def _report(tally: Tally) -> None:
    while True:
        await asyncio.sleep(REPORT)
        say(_standing(tally))


def _standing(tally: Tally) -> str:
    p50, p99 = tally.percentile(50), tally.percentile(99)
    return f"{tally}, repeated: {tally.repeated}, latency: p50 {p50:.0f} ms, p99 {p99:.0f} ms"


def _instances(fleet: Fleet) -> Table:
    table = Table("instance", "state", "address", "pid", "starts")
    for one in fleet.instances:
        state = f"[{STYLES[one.state]}]{one.state}[/]"
        table.add_row(one.name, state, one.address, str(one.pid), str(one.starts))
    return table


def _orders(tally: Tally) -> Table:
    table = Table("order", "customer", "total", Column("what", no_wrap=True))
    for order in tally.recent:
        what = ", ".join(f"{line.quantity} {line.name}" for line in order.lines)
        table.add_row(order.id, order.customer_id, price(order.total), what)
    return table
