"""The `framework` command.

Each command is a module of this package with `add_parser(subparsers)`, which names its `run(args) -> int` as the
default of `run`. The modules are imported to build the help, so what is slow to import is imported inside `run`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from framework import hangup
from framework.errors import mistakes

if TYPE_CHECKING:
    Commands: TypeAlias = argparse._SubParsersAction[argparse.ArgumentParser]
    """What `add_parser` of a command is given."""

COMMANDS = ("new", "generate", "openapi", "run", "gateway", "services", "call", "explain", "access", "certs")
"""The modules of the commands, in the order of the help."""

RELOADING = ("run", "gateway")
"""Commands that may take SIGHUP as other than the end."""

EXAMPLES = """\
examples:
  framework new hello                              a project that runs and passes its tests
  framework generate protos --out src              typed stubs; --check in CI
  framework run shop.catalog:service               serve until Ctrl-C
  framework gateway --port 8080                    HTTP in front of what is registered
  framework services --watch                       who is there
  framework call shop.catalog.v1.Catalog/GetProduct '{"id": "p1"}'
  framework explain shop.catalog.v1.Catalog/GetProduct
  framework access show                            who may call what

`framework COMMAND --help` tells more about a command."""

INTERRUPTED = 130
BROKEN_PIPE = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 no, 2 a mistake in how it was asked."""
    with hangup.holding():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    debug = False
    try:
        parser = _parser()
        args = parser.parse_args(argv)
        if args.command not in RELOADING:
            hangup.release()
        debug = args.debug
        if args.command is None:
            parser.print_help(sys.stderr)
            return 2
        return _flushed(args.run(args))
    except SystemExit as ended:  # argparse has printed help, the version or what is wrong
        if isinstance(ended.code, str):  # a module that ends the process with a text
            print(ended.code, file=sys.stderr)
            return 1
        return _flushed(ended.code or 0)
    except BrokenPipeError:
        return _abandoned()
    except Exception as error:
        if debug or not (found := mistakes(error)):
            raise
        for mistake in found:
            print(f"framework: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if debug:
            raise
        return INTERRUPTED


def add_plaintext(parser: argparse.ArgumentParser) -> None:
    """The option that allows plain text beyond this machine."""
    parser.add_argument(
        "--plaintext", action="store_true", help="allow plain text beyond this machine, to listen and to call"
    )


def allow_plaintext(args: argparse.Namespace) -> None:
    """Say what `--plaintext` says in the environment: settings are read again when their file changes, and workers
    read them too."""
    if args.plaintext:
        os.environ.update(FRAMEWORK_SERVER_PLAINTEXT="true", FRAMEWORK_CLIENT_PLAINTEXT="true")
        os.environ.update(FRAMEWORK_GATEWAY_PLAINTEXT="true")


def _flushed(code: int) -> int:
    """The exit code, once what was printed has reached its reader."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return _abandoned()
    return code


def _abandoned() -> int:
    """Let the interpreter, which flushes once more when it ends, have somewhere to write; the reader has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return BROKEN_PIPE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="framework",
        description="gRPC microservices in Python.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for name in COMMANDS:
        importlib.import_module(f"framework.cli.{name}").add_parser(commands)
    for command in commands.choices.values():  # `framework generate --debug` is what people type
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
    return parser


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show the version and exit")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"framework {importlib.metadata.version('framework-grpc')}")
        parser.exit()
