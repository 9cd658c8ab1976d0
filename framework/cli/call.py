"""`framework call SERVICE/METHOD JSON`: call a method through discovery and reflection, without generated code."""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import sys
import threading
from collections.abc import AsyncIterator, Iterable
from typing import TYPE_CHECKING, Any

from framework.config import Settings
from framework.errors import ConfigError
from framework.parsing import duration

if TYPE_CHECKING:
    from google.protobuf.descriptor import ServiceDescriptor

    from framework.call import Call, Handler, Interceptor, Metadata, Method, Reply
    from framework.cli import Commands
    from framework.client.dropin import Channel

TIMEOUT = 10.0
"""Seconds that the service has for one reply, and for telling its messages."""

EPILOG = """\
examples:
  framework call shop.catalog.v1.Catalog/GetProduct '{"id": "p1"}'
  framework call catalog/shop.catalog.v1.Catalog/ListProducts          the service's registered name said
  framework call grpc.health.v1.Health/Check --target 127.0.0.1:50051
  printf '{"id": "p1"}\\n{"id": "p2"}\\n' | framework call shop.orders.v1.Orders/Quote -

The service is looked up by its full name among what is registered. A method that takes a stream is given several
JSON arguments, or lines of standard input. Replies are printed as JSON, a stream one a line as they come."""


def add_parser(subparsers: Commands) -> None:
    """`call` and its options."""
    from framework.cli import add_plaintext

    parser = subparsers.add_parser(
        "call",
        help="call a method with JSON, through discovery and reflection",
        description="Call a method of a running service; its messages are learnt from the service itself.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", metavar="[NAME/]SERVICE/METHOD", help="full name of the service, and the method")
    parser.add_argument("json", nargs="*", help="the request; several for a stream; - reads lines from standard input")
    parser.add_argument("--registry", metavar="URL", help="default: the settings' or FRAMEWORK_REGISTRY")
    parser.add_argument("--target", help="call this instead of looking the service up: HOST:PORT, or any target")
    parser.add_argument(
        "--timeout",
        type=_seconds,
        metavar="DURATION",
        help="10 (s), 500ms; default 10 for one reply, the proto's or none for a stream",
    )
    parser.add_argument("--header", "-H", action="append", default=[], metavar="NAME:VALUE", help="metadata to send")
    add_plaintext(parser)
    parser.set_defaults(run=run)


def _seconds(text: str) -> float:
    try:
        return duration(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def run(args: argparse.Namespace) -> int:
    """Call, print, and return 0; 1 when the call failed. Raises FrameworkError for what cannot be called."""
    from framework.cli import allow_plaintext

    allow_plaintext(args)
    from framework.errors import RpcError

    try:
        return asyncio.run(_run(args))
    except RpcError as error:
        print(f"framework: {error}", file=sys.stderr)
        for detail in error.details:
            print(f"  {detail.DESCRIPTOR.full_name} {_line(detail)}", file=sys.stderr)
        return 1


async def _run(args: argparse.Namespace) -> int:
    from framework.client.connect import connect
    from framework.client.stub import StreamReply, UnaryReply

    name, service, method_name = names(args.method)
    metadata = tuple(header(text) for text in args.header)
    settings = Settings.load()
    registry = args.registry or settings.registry
    target = args.target or await find(name, service, registry, settings, metadata)
    own = _with_registry(settings, registry)
    async with connect(target, settings=own, interceptors=[sending(metadata)]) as channel:
        method = await reflect(channel, service, method_name, args.timeout or TIMEOUT)
        requests = _requests(args.json, method)
        request: Any = requests if method.client_streaming else await _only(requests, args.method)
        handler = channel.bind(method)
        if method.server_streaming:
            async for reply in StreamReply(handler, method, request, args.timeout):
                print(_line(reply), flush=True)
        else:
            print(_pretty(await UnaryReply(handler, method, request, args.timeout or TIMEOUT)))
    return 0


def _with_registry(settings: Settings, registry: str) -> Settings:
    import dataclasses

    return dataclasses.replace(settings, registry=registry)


def names(text: str) -> tuple[str, str, str]:
    """The parts of [NAME/]SERVICE/METHOD; without a NAME that is empty."""
    parts = text.strip("/").replace(":", "/").split("/")
    if len(parts) == 2:
        return "", parts[0], parts[1]
    if len(parts) == 3:
        return parts[0], parts[1], parts[2]
    raise ConfigError(
        f"{text!r} names no method; write package.Service/Method, for example grpc.health.v1.Health/Check"
    )


def header(text: str) -> tuple[str, str | bytes]:
    """The metadata that `--header` says. Raises ConfigError."""
    from framework.metadata import pairs

    name, _, value = (part.strip() for part in text.partition(":"))
    try:
        sent = base64.b64decode(value, validate=True) if name.lower().endswith("-bin") else value
        return pairs(((name, sent),))[0]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"--header {text!r}: {error} (name:value, and base64 for a name that ends in -bin)") from None


def sending(metadata: Metadata) -> Interceptor:
    """Send metadata with every call of a channel: asking what there is may take credentials too."""

    def interceptor(method: Method[Any, Any], next: Handler) -> Handler:
        def handler(call: Call) -> Reply:
            call.metadata = (*call.metadata, *metadata)
            return next(call)

        return handler

    return interceptor


async def find(name: str, service: str, url: str, settings: Settings, metadata: Metadata = ()) -> str:
    """The registered name of who serves a full service name: what says so itself by reflection."""
    from framework.client.connect import connect
    from framework.discovery.targets import open_registry
    from framework.errors import RpcError
    from framework.policy import ClientSettings
    from framework.reflection import Reflection

    if name:
        return name
    registry = open_registry(url)
    try:
        registered = {name: instances for name, instances in (await registry.services()).items() if instances}
        if not registered:
            raise ConfigError(f"nothing is registered in {registry}. Start a service, or say where with --target")
        there: list[str] = []
        silent: list[str] = []
        # The likeliest first: shop.catalog.v1.Catalog is probably served by `catalog`.
        words = service.lower().replace("_", "-").split(".")
        for candidate in sorted(registered, key=lambda one: (one not in words, one)):
            own = settings.client_for(candidate)
            asking = Settings(client=ClientSettings(tls=own.tls, plaintext=own.plaintext))
            said = [sending(metadata)]
            async with connect(candidate, settings=asking, registry=registry, interceptors=said) as channel:
                try:
                    names = await Reflection(channel).services()
                except (RpcError, ConfigError) as error:
                    silent.append(f"{candidate} ({getattr(error, 'message', error)})")
                    continue
                if service in names:
                    return candidate
                there += [f"{one} (on {candidate})" for one in names if not one.startswith("grpc.")]
        known = f". There are: {', '.join(there)}" if there else ""
        unknown = f". What these serve is not known: {', '.join(silent)}" if silent else ""
        raise ConfigError(f"no registered service serves {service}{known}{unknown}")
    finally:
        await registry.aclose()


async def _only(requests: AsyncIterator[Any], method: str) -> Any:
    found = [request async for request in requests]
    if len(found) != 1:
        raise ConfigError(f"{method} takes one request, and {len(found)} were given")
    return found[0]


async def _requests(texts: list[str], method: Method[Any, Any]) -> AsyncIterator[Any]:
    from google.protobuf import json_format

    pool = method.request.DESCRIPTOR.file.pool
    async for number, text in _numbered(texts or (["-"] if method.client_streaming else ["{}"])):
        try:
            request = json_format.Parse(text, method.request(), descriptor_pool=pool)
        except json_format.ParseError as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"request {number} is no {method.request.DESCRIPTOR.full_name}: {reason}") from None
        if missing := request.FindInitializationErrors():
            raise ConfigError(f"request {number} lacks {', '.join(missing)}")
        yield request


async def _numbered(texts: Iterable[str]) -> AsyncIterator[tuple[int, str]]:
    number = 0
    for text in texts:
        if text != "-":
            number += 1
            yield number, text
            continue
        lines: asyncio.Queue[str] = asyncio.Queue()
        threading.Thread(target=_read_lines, args=(asyncio.get_running_loop(), lines), daemon=True).start()
        while line := await lines.get():
            if line.strip():
                number += 1
                yield number, line


def _read_lines(loop: asyncio.AbstractEventLoop, lines: asyncio.Queue[str]) -> None:
    """In a daemon thread: one that waits for input must not keep the process."""
    line = " "
    while line:
        line = sys.stdin.readline()
        try:
            loop.call_soon_threadsafe(lines.put_nowait, line)
        except RuntimeError:  # the call has ended
            return


def _pretty(message: Any) -> str:
    from google.protobuf import json_format

    return json_format.MessageToJson(message, descriptor_pool=message.DESCRIPTOR.file.pool)


def _line(message: Any) -> str:
    from google.protobuf import json_format

    try:
        shown = json_format.MessageToDict(message, descriptor_pool=message.DESCRIPTOR.file.pool)
    except (TypeError, KeyError):  # an Any of a type that nobody here knows
        return str(message).replace("\n", " ")
    return json.dumps(shown, ensure_ascii=False)


# What there is


def health_method() -> Method[Any, Any]:
    """grpc.health.v1.Health/Check."""
    from framework.server.health import Health

    return next(method for method in Health.__methods__ if method.name == "Check")


async def reflect(channel: Channel, service: str, name: str, timeout: float = TIMEOUT) -> Method[Any, Any]:
    """A method with its messages, learnt from the server.

    Raises:
        ConfigError: the server does not have it; the message says what it has.
    """
    return find_method(await describe(channel, service, timeout), name)


def find_method(service: ServiceDescriptor, name: str) -> Method[Any, Any]:
    """A method of a service by its name.

    Raises:
        ConfigError: there is none; the message says which there are.
    """
    from framework.options import method_of

    found = service.methods_by_name.get(name)
    if found is None:
        there = ", ".join(sorted(service.methods_by_name))
        raise ConfigError(f"{service.full_name} has no method {name}. It has: {there}")
    return method_of(found)


async def describe(channel: Channel, service: str, timeout: float = TIMEOUT) -> ServiceDescriptor:
    """A service, as the server describes it.

    Raises:
        ConfigError: the server does not have it; the message says what it has.
    """
    from google.protobuf import descriptor_pb2

    from framework.errors import RpcError
    from framework.http.methods import pool_of
    from framework.reflection import NoReflection, Reflection

    reflection = Reflection(channel, timeout)
    try:
        files = await reflection.files([service])
        return pool_of(descriptor_pb2.FileDescriptorSet(file=files.values())).FindServiceByName(service)
    except (NoReflection, RpcError):
        raise
    except (ConfigError, KeyError):
        there = ", ".join(await reflection.services())
        raise ConfigError(f"the server does not serve {service}. It serves: {there}") from None
