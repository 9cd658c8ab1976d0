"""`framework explain SERVICE/METHOD`: how calls of a method are made, and who says so."""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.config import Settings
from framework.errors import ConfigError, RpcError
from framework.parsing import DEFAULT

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool

    from framework.call import Method
    from framework.cli import Commands
    from framework.explain import Explanation
    from framework.policy import ClientSettings

PROTOS = Path("protos")
"""Where the proto is looked up when nobody serves it."""

EPILOG = """\
examples:
  framework explain shop.catalog.v1.Catalog/GetProduct
  framework explain shop.catalog.v1.Catalog/GetProduct --protos protos     nothing needs to run
  framework explain catalog/shop.catalog.v1.Catalog/GetProduct             the service's registered name said
  framework explain shop.catalog.v1.Catalog/GetProduct --json

What the proto says is learnt from a running instance, as `framework call` does. When there is none, and nobody has said
where one should be, it is read from the files in ./protos. The settings are those that a client would have that is
started here, with this environment."""


def add_parser(subparsers: Commands) -> None:
    """`explain` and its options."""
    parser = subparsers.add_parser(
        "explain",
        help="how calls of a method are made, and who says so",
        description="Print the policy of a method: deadlines, retries, hedging and so on, and where each comes from.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", metavar="[NAME/]SERVICE/METHOD", help="full name of the service, and the method")
    parser.add_argument("--registry", metavar="URL", help="default: the settings' or FRAMEWORK_REGISTRY")
    parser.add_argument("--target", help="ask this instead of looking the service up: HOST:PORT, or any target")
    parser.add_argument("--protos", type=Path, metavar="DIR", help="ask nobody; the proto is in this directory")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: framework.toml, if there)")
    parser.add_argument("--all", action="store_true", help="the settings of the service too that nobody has changed")
    parser.add_argument("--json", action="store_true", help="one JSON document, with everything")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print, and return 0. Raises FrameworkError for a method that cannot be found."""
    from framework.cli.call import find_method, names
    from framework.explain import explain

    name, service, method_name = names(args.method)
    settings = Settings.load(args.config)
    found = _look_up(args, name, service, settings)
    method = find_method(found.service, method_name)
    own = settings.client_for(found.name)
    file = str(settings.source.file) if settings.source is not None and settings.source.stamp is not None else ""
    explanation = explain(method, own, file)
    if args.json:
        print(json.dumps(_document(method, found, file, explanation), indent=2))
    else:
        _print(method, found, file, explanation, everything=args.all)
    for line in (*_misspelt(found.service, own), *found.notes):
        print(f"framework: {line}", file=sys.stderr)
    return 0


@dataclass(frozen=True, slots=True)
class Found:
    """A service, and how it is known.

    Attributes:
        service: its descriptor.
        name: what it is registered as, and its settings are called.
        where: who describes it.
        notes: what is not sure.
    """

    service: ServiceDescriptor
    name: str
    where: str
    notes: tuple[str, ...] = ()


def _look_up(args: argparse.Namespace, name: str, service: str, settings: Settings) -> Found:
    if args.protos is not None:
        return _from_protos(args.protos, name, service, settings)
    try:
        return asyncio.run(_from_instance(args, name, service, settings))
    except (ConfigError, RpcError) as error:
        if args.target is None and args.registry is None and PROTOS.is_dir():
            return _from_protos(PROTOS, name, service, settings)
        raise ConfigError(f"{error} (or read its proto: --protos DIR)") from None


async def _from_instance(args: argparse.Namespace, name: str, service: str, settings: Settings) -> Found:
    from framework.cli.call import describe, find
    from framework.client.connect import connect

    registry = args.registry or settings.registry
    target = args.target or await find(name, service, registry, settings)
    asked = Settings(registry=registry)  # plain settings to ask with: those that are explained may not work
    async with connect(target, settings=asked) as channel:
        described = await describe(channel, service)
    if name or not args.target:
        return Found(described, name or target, f"the running {target}")
    return _guessed(described, f"the running {target}", settings)


def pool_of(folder: Path) -> tuple[DescriptorPool, Mapping[str, FileDescriptorProto]]:
    """The protos in a folder, in a pool of their own, and by name. Raises ProtoError."""
    from google.protobuf import descriptor_pool

    from framework.codegen import describe

    files = describe(folder)
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(file: str) -> None:
        if file not in added:
            added.add(file)
            for dependency in files[file].dependency:
                add(dependency)
            pool.Add(files[file])

    for file in files:
        add(file)
    return pool, files


def _from_protos(folder: Path, name: str, service: str, settings: Settings) -> Found:
    pool, files = pool_of(folder)
    try:
        found = pool.FindServiceByName(service)
    except KeyError:
        there = [f"{file.package}.{one.name}".lstrip(".") for file in files.values() for one in file.service]
        raise ConfigError(f"no proto in {folder} declares {service}. There are: {', '.join(sorted(there))}") from None
    where = str(folder / found.file.name)
    return Found(found, name, where) if name else _guessed(found, where, settings)


def _guessed(service: ServiceDescriptor, where: str, settings: Settings) -> Found:
    """A service whose registered name nobody has said: a part of its full name that the settings know, or the last."""
    parts = service.full_name.lower().replace("_", "-").split(".")
    name = next((part for part in reversed(parts) if part in settings.clients), parts[-1])
    if name in settings.clients or not settings.clients:
        return Found(service, name, where)
    others = ", ".join(sorted(settings.clients))
    note = f"{name} is a guess, and the settings are of {others}: say NAME/{service.full_name}/METHOD if it is one"
    return Found(service, name, where, (note,))


def _misspelt(service: ServiceDescriptor, settings: ClientSettings) -> Iterator[str]:
    """Settings of methods that the service does not have, and that look like one that it has."""
    for name in settings.methods:
        if name not in service.methods_by_name and (close := get_close_matches(name, service.methods_by_name, 1, 0.8)):
            yield f"there are settings of a method {name}, which {service.name} does not have. Did you mean {close[0]}?"


def _document(method: Method[Any, Any], found: Found, file: str, explanation: Explanation) -> dict[str, Any]:
    return {
        "method": method.full_name,
        "service": found.name,
        "file": file or None,
        "idempotency_level": method.idempotency.name,
        "settings": {row.name: {"value": _plain(row.value), "from": row.origin} for row in explanation.rows},
        "sentences": explanation.sentences,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, frozenset):
        return [code.name for code in sorted(value)]
    return None if value == math.inf else value


def _print(method: Method[Any, Any], found: Found, file: str, explanation: Explanation, *, everything: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a pipe has no width to keep to
    console.print(f"[bold]{escape(repr(method)[len('<Method ') : -1])}[/]", soft_wrap=True)
    print(f"called by clients of {found.name}; proto from {found.where}, settings from {file or 'no file'}")
    print()
    for sentence in explanation.sentences:
        print(textwrap.fill(sentence, console.width, initial_indent="- ", subsequent_indent="  "))
    print()
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("setting", "value", "from"):
        grid.add_column(column, overflow="fold", header_style="dim", no_wrap=column == "setting")
    left_out = 0
    for row in explanation.rows:
        if row.shared and row.origin == DEFAULT and not everything:
            left_out += 1
            continue
        style = "dim" if row.origin == DEFAULT else ""
        grid.add_row(escape(row.name), escape(row.text), escape(row.origin), style=style)
    console.print(grid)
    if left_out:
        print(f"\n{left_out} more settings, of {found.name} as a whole, are at their defaults: --all shows them")
