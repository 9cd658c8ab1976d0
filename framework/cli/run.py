"""`framework run MODULE:SERVICE`: serve until a signal."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from framework import hangup
from framework.config import Settings
from framework.errors import ConfigError
from framework.parsing import Table

if TYPE_CHECKING:
    from framework.cli import Commands
    from framework.service import Service

SERVER = ("host", "port", "advertise", "workers")
"""Options that are settings of the server."""

EPILOG = """\
examples:
  framework run shop.catalog:service
  framework run shop.catalog:service --port 50051 --registry consul://127.0.0.1:8500
  framework run shop.catalog:service --http 8081
  framework run shop.catalog:service --host 0.0.0.0 --advertise catalog.internal:50051 --plaintext
  framework run shop.catalog:service --workers auto
  framework run shop.catalog:service --engine pyvoy

SIGTERM and Ctrl-C drain: deregister, let calls end, leave. A second one stops at once. With workers, SIGHUP replaces
them one by one with ones that read code and settings anew."""


def add_parser(subparsers: Commands) -> None:
    """`run` and its options."""
    from framework.cli import add_plaintext

    parser = subparsers.add_parser(
        "run",
        help="serve a service until a signal",
        description="Import a module, and serve the Service that it holds: registered, health-checked, reflected.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", metavar="MODULE:SERVICE", help="where the Service is; SERVICE defaults to `service`")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on; 0, the default, is any free one")
    parser.add_argument("--http", metavar="PORT", help="serve HTTP on this port too: JSON, Connect, gRPC-Web, streams")
    parser.add_argument("--advertise", metavar="HOST[:PORT]", help="what clients are told to dial")
    parser.add_argument(
        "--registry", metavar="URL", help="consul://HOST:PORT, sqlite:///FILE, local (default), or none"
    )
    parser.add_argument("--workers", metavar="N", help="processes that share the port (default 1); auto: one per CPU")
    parser.add_argument(
        "--engine", choices=("grpc", "pyvoy"), default="grpc", help="pyvoy, an experiment: gRPC and HTTP on one port"
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: framework.toml, if there)")
    add_plaintext(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve. Raises FrameworkError for a target, a setting or an address that cannot be used."""
    from framework.cli import allow_plaintext
    from framework.workers.worker import Worker

    allow_plaintext(args)
    worker = Worker.claim()
    with worker.reporting() if worker is not None else contextlib.nullcontext():
        service, settings = asked(args)
        command = again("run", args, (*SERVER, "http", "registry", "config"))
        if args.engine == "pyvoy":
            from framework.pyvoy.engine import launch

            hangup.release()
            launch(service, settings, [args.target, *command[4:], *(["--plaintext"] if args.plaintext else [])])
        else:
            service.launch(settings, worker, [*command, args.target])
    return 0


def asked(args: argparse.Namespace) -> tuple[Service, Settings]:
    """The Service and its settings. Raises ConfigError."""
    service = load(args.target)
    settings = Settings.load(args.config) if args.config or service.settings is None else service.settings
    given: dict[str, Any] = {name: getattr(args, name) for name in SERVER if getattr(args, name) is not None}
    if args.http is not None:
        given["http"] = {"port": args.http}
    server = options(settings.server, given)
    settings = dataclasses.replace(settings, server=server, registry=args.registry or settings.registry)
    return service, settings.in_plaintext() if args.plaintext else settings  # those that code has made, too


T = TypeVar("T", bound=Table)


def options(settings: T, given: Mapping[str, Any]) -> T:
    """Settings with options of the command line over them. Raises ConfigError, which names the option."""
    try:
        return type(settings).parse(given, "", settings) if given else settings
    except ConfigError as error:
        raise ConfigError(f"--{str(error).replace('http.port', 'http', 1)}") from None


def again(name: str, args: argparse.Namespace, options: Iterable[str]) -> list[str]:
    """What to run for the same command once more, wherever this was called from."""
    given = [f"--{option}={getattr(args, option)}" for option in options if getattr(args, option) is not None]
    given += ["--plaintext"] if args.plaintext else []
    return [sys.executable, "-m", "framework", name, *given]


def load(target: str) -> Service:
    """The Service at `module:name`.

    Raises:
        ConfigError: there is no such module or name, or it is no Service.
    """
    from framework.service import Service

    name, _, attribute = target.partition(":")
    attribute = attribute or "service"
    if name.endswith(".py") or os.sep in name or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigError(f"{target!r} is no module. {_module_hint(name, attribute)}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise  # the module is there, and one that it imports is not: that is for its traceback to tell
        hint = next((folder for folder in ("src",) if Path(folder, *name.split(".")).with_suffix(".py").exists()), None)
        more = f". There is one in {hint}/: set PYTHONPATH={hint}" if hint else ""
        raise ConfigError(f"there is no module {error.name} in {os.getcwd()} or in the environment{more}") from None
    found = getattr(module, attribute, None)
    if isinstance(found, Service):
        return found
    others = [key for key, value in vars(module).items() if isinstance(value, Service)]
    there = f"There is {', '.join(f'{name}:{key}' for key in others)}." if others else "It holds no Service."
    what = "is no Service" if found is not None else "does not exist"
    raise ConfigError(f"{name}:{attribute} {what}. {there}")


def _module_hint(name: str, attribute: str) -> str:
    path = Path(name)
    with contextlib.suppress(ValueError):
        path = path.relative_to(Path.cwd()) if path.is_absolute() else path
    parts = [part for part in path.with_suffix("").parts if part not in (".", "..")]
    if path.is_absolute() or not parts or not all(part.isidentifier() for part in parts):
        return "Write it with dots, like shop.catalog:service, and run this where its package is"
    return f"Write it with dots, like {'.'.join(parts)}:{attribute}"
