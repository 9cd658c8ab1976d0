"""`framework openapi`: the OpenAPI document of services, without running them."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.errors import ConfigError

if TYPE_CHECKING:
    from framework.cli import Commands

DESCRIPTION = """\
Write OpenAPI 3.1 of what is served over HTTP: every google.api.http rule, and POST /package.Service/Method for methods
that have none. It comes from proto files, or from the servicers of a Service; one without servicers=[...] is asked by
entering its lifespan."""

EPILOG = """\
examples:
  framework openapi --protos protos > openapi.json
  framework openapi shop.catalog:service --yaml --title Shop --server https://api.shop.example"""


def add_parser(subparsers: Commands) -> None:
    """`openapi` and its options."""
    parser = subparsers.add_parser(
        "openapi", help="the OpenAPI document of services", description=DESCRIPTION, epilog=EPILOG
    )
    parser.add_argument("targets", metavar="MODULE:SERVICE", nargs="*", help="where a Service is")
    parser.add_argument("--protos", metavar="DIR", type=Path, help="a directory of .proto files instead")
    parser.add_argument("--yaml", action="store_true", help="YAML, not JSON")
    parser.add_argument("--title", help="of the API (default: the name of the Service, or API)")
    parser.add_argument("--api-version", metavar="TEXT", default="1", help="of the API (1)")
    parser.add_argument("--server", metavar="URL", action="append", default=[], help="what paths are below; repeatable")
    parser.add_argument("--grpc-target", metavar="HOST:PORT", default="", help="of gRPC, for the page that shows this")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the document. Raises FrameworkError for what cannot be read or served."""
    from framework.codegen import ProtoError
    from framework.http.openapi import Info, document, json_text, yaml_text

    if bool(args.targets) == (args.protos is not None):
        raise ConfigError("say what to describe: MODULE:SERVICE, or --protos DIR")
    try:
        title, services, comments = _of_services(args.targets) if args.targets else _of_protos(args.protos)
    except ProtoError as error:
        if args.debug:
            raise
        print(error, file=sys.stderr)
        return 1
    if not services:
        raise ConfigError(f"there is no service in {args.protos}")
    info = Info(args.title or title, args.api_version, servers=tuple(args.server), grpc_target=args.grpc_target)
    shown = document(services, info, comments=comments)
    sys.stdout.write(yaml_text(shown) if args.yaml else json_text(shown))
    return 0


def _of_protos(proto_dir: Path) -> tuple[str, list[Any], dict[str, str]]:
    from google.protobuf import descriptor_pb2

    from framework.codegen.comments import comments_of_all
    from framework.codegen.compiler import describe_protos
    from framework.codegen.tree import protos_in
    from framework.http.methods import pool_of, services_in

    protos = protos_in(proto_dir)
    files = describe_protos(proto_dir, protos)
    pool = pool_of(descriptor_pb2.FileDescriptorSet(file=files.values()))
    names = [
        f"{files[proto].package}.{service.name}".lstrip(".") for proto in protos for service in files[proto].service
    ]
    return "API", list(services_in(pool, names)), comments_of_all(files.values())


def _of_services(targets: list[str]) -> tuple[str, list[Any], None]:
    from google.protobuf import descriptor_pool

    from framework.cli.run import load
    from framework.http.methods import services_in

    loaded = [load(target) for target in targets]
    names = dict.fromkeys(name for service in loaded for name in asyncio.run(_names(service)))
    title = loaded[0].name if len(loaded) == 1 else "API"
    return title, list(services_in(descriptor_pool.Default(), names)), None


async def _names(service: Any) -> list[str]:
    """The services that a Service serves, by full name."""
    if service.servicers:
        return [method.service for servicer in service.servicers for method in servicer.__methods__]
    async with service.assembled() as pipeline:
        return list(pipeline.services)
