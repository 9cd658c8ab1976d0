"""`framework gateway`: HTTP in front of what is registered, until a signal."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from framework.cli.run import again, options
from framework.config import Settings
from framework.errors import ConfigError

if TYPE_CHECKING:
    from framework.cli import Commands

EPILOG = """\
examples:
  framework gateway
  framework gateway --port 0 --registry consul://127.0.0.1:8500
  framework gateway --services catalog,orders
  framework gateway --workers auto

Every method is at POST /package.Service/Method, as JSON, Connect and gRPC-Web; those with a google.api.http rule are at
their own paths too. Services that come, go and change are followed. /healthz and /readyz say how the gateway is. CORS,
limits and the like: [gateway] in the settings. SIGTERM and Ctrl-C drain; a second one stops at once.
With workers, SIGHUP replaces them one by one with ones that read the settings anew."""

OPTIONS = ("host", "port", "services", "workers")
"""Options that are settings of the gateway."""


def add_parser(subparsers: Commands) -> None:
    """`gateway` and its options."""
    from framework.cli import add_plaintext

    parser = subparsers.add_parser(
        "gateway",
        help="serve what is registered over HTTP",
        description="Serve the methods of registered services over HTTP; what they are is learnt from them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (default 8080); 0 is any free one")
    parser.add_argument("--services", metavar="NAME,NAME", help="serve these only (default: all that are registered)")
    parser.add_argument("--workers", metavar="N", help="processes that share the port (default 1); auto: one per CPU")
    parser.add_argument("--registry", metavar="URL", help="default: the settings' or FRAMEWORK_REGISTRY")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings (default: framework.toml, if there)")
    add_plaintext(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve. Raises FrameworkError for a setting or an address that cannot be used."""
    from framework.cli import allow_plaintext
    from framework.workers.worker import Worker

    allow_plaintext(args)
    worker = Worker.claim()
    with worker.reporting() if worker is not None else contextlib.nullcontext():
        settings = Settings.load(args.config)
        given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
        gateway = options(settings.gateway, given)
        settings = dataclasses.replace(settings, gateway=gateway, registry=args.registry or settings.registry)
        try:
            from framework.gateway import Gateway
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{error.name} is not installed; the gateway needs: pip install framework-grpc[gateway]"
            ) from None
        Gateway().launch(settings, worker, again("gateway", args, (*OPTIONS, "registry", "config")))
    return 0
