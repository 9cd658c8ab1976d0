"""`framework services`: who is registered, and whether it answers."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from framework.config import Settings

if TYPE_CHECKING:
    from framework.cli import Commands

EPILOG = """\
examples:
  framework services
  framework services --watch
  framework services --registry consul://127.0.0.1:8500 --json"""

CHECK_TIMEOUT = 1.0
"""Seconds in which an instance has to answer its health check."""

REFRESH = 1.0
"""Seconds between two looks with --watch."""


def add_parser(subparsers: Commands) -> None:
    """`services` and its options."""
    from framework.cli import add_plaintext

    parser = subparsers.add_parser(
        "services",
        help="who is registered, and whether it answers",
        description="List every registered instance, and ask each for its health.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--registry", metavar="URL", help="default: the settings' or FRAMEWORK_REGISTRY")
    parser.add_argument("--watch", action="store_true", help="keep looking until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="one JSON document (with --watch: one a line per look)")
    add_plaintext(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table; exit code 1 when an instance does not answer SERVING."""
    from framework.cli import allow_plaintext

    allow_plaintext(args)
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    from framework.discovery.targets import open_registry

    settings = Settings.load()
    registry = open_registry(args.registry or settings.registry)
    try:
        if not args.watch:
            rows = await _look(registry, settings)
            _print(rows, str(registry), as_json=args.json)
            return 0 if all(row["health"] == "SERVING" for row in rows) else 1
        await _follow(registry, settings, as_json=args.json)
        return 0
    finally:
        await registry.aclose()


async def _follow(registry: Any, settings: Settings, *, as_json: bool) -> None:
    from rich.console import Console
    from rich.live import Live

    console = Console()
    live = Live(console=console, auto_refresh=False) if console.is_terminal and not as_json else None
    shown: list[tuple[Any, Any]] | None = None
    with live or contextlib.nullcontext():
        while True:
            rows = await _look(registry, settings)
            if as_json:
                print(json.dumps(rows), flush=True)
            elif live is not None:
                live.update(_table(rows, str(registry)), refresh=True)
            elif shown != (now := [(row["id"], row["health"]) for row in rows]):  # a file or a pipe: what changed
                shown = now
                console.print(_table(rows, str(registry)))
                console.file.flush()
            await asyncio.sleep(REFRESH)


async def _look(registry: Any, settings: Settings) -> list[dict[str, Any]]:
    """One row per instance, with its health."""
    services = await registry.services()
    instances = [instance for name in sorted(services) for instance in services[name].values()]
    instances.sort(key=lambda instance: (instance.service, instance.address))
    health = await asyncio.gather(*(_health(instance, settings) for instance in instances))
    return [
        {
            "service": instance.service,
            "address": instance.address,
            "health": status,
            "latency_ms": latency,
            "version": instance.version,
            "zone": instance.zone,
            "weight": instance.weight,
            "tags": list(instance.tags),
            "id": instance.id,
        }
        for instance, (status, latency) in zip(instances, health, strict=True)
    ]


async def _health(instance: Any, settings: Settings) -> tuple[str, float | None]:
    from framework.cli.call import health_method
    from framework.client.connect import connect_to
    from framework.client.stub import UnaryReply
    from framework.errors import RpcError

    method = health_method()
    loop = asyncio.get_running_loop()
    async with connect_to(instance, settings) as channel:
        handler = channel.bind(method)
        try:
            await UnaryReply(handler, method, method.request(), CHECK_TIMEOUT)  # connects
            start = loop.time()
            reply: Any = await UnaryReply(handler, method, method.request(), CHECK_TIMEOUT)
        except RpcError as error:
            return error.code.name, None
    status = reply.DESCRIPTOR.fields_by_name["status"].enum_type.values_by_number[reply.status].name
    return status, round((loop.time() - start) * 1000, 1)


def _print(rows: list[dict[str, Any]], registry: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.console import Console

    Console().print(_table(rows, registry))


def _table(rows: list[dict[str, Any]], registry: str) -> Any:
    from rich.markup import escape
    from rich.table import Table

    if not rows:
        return escape(f"nothing is registered in {registry}. Another registry? Say --registry or FRAMEWORK_REGISTRY")
    title = f"{len(rows)} instance{'s'[: len(rows) != 1]} in {escape(registry)}"
    table = Table(title=title, title_justify="left")
    for column in ("service", "address", "health", "answers in", "version", "zone", "tags"):
        table.add_column(column, overflow="fold")
    for row in rows:
        color = "green" if row["health"] == "SERVING" else "red"
        latency = "" if row["latency_ms"] is None else f"{row['latency_ms']} ms"
        cells = (row["service"], row["address"], row["health"], latency, row["version"], row["zone"])
        shown = [escape(cell) for cell in (*cells, ", ".join(row["tags"]))]
        shown[2] = f"[{color}]{shown[2]}[/]"
        table.add_row(*shown)
    return table
