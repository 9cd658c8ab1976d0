"""`framework generate`: typed stubs from proto files."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    from framework.cli import Commands
    from framework.codegen import Mistake

DESCRIPTION = """\
Make typed Python from every .proto file below PROTO_DIR.

For PROTO_DIR/shop/catalog/v1/catalog.proto, PACKAGE_DIR/shop/catalog/v1/ gets
  catalog_pb2.py, catalog_pb2.pyi   the messages and their types
  catalog_rpc.py                    CatalogServicer to subclass, CatalogClient to call

Imports between them are relative, so PACKAGE_DIR can be anywhere. It becomes a Python package, unless it is an import
root: a directory called src, or one that holds pyproject.toml. Names that Python cannot use get an underscore.

google/protobuf, google/api, google/rpc, buf/validate and framework/options.proto are found without a copy in
PROTO_DIR."""

EXAMPLES = """\
examples:
  framework generate --out src                     from ./protos
  framework generate api/protos --out shop/stubs   imported as shop.stubs.shop.catalog.v1.catalog_rpc
  framework generate --out src --check             in CI: exit code 1 when a file is not what its proto says"""


def add_parser(subparsers: Commands) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "generate", help="make typed stubs from proto files", description=DESCRIPTION, epilog=EXAMPLES
    )
    parser.add_argument(
        "proto_dir",
        metavar="PROTO_DIR",
        type=Path,
        nargs="?",
        default=Path("protos"),
        help="the directory that imports between proto files start from (protos)",
    )
    parser.add_argument("--out", metavar="PACKAGE_DIR", type=Path, required=True, help="where the output goes")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; name the files that are not up to date and exit with 1"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Generate, or check."""
    from framework.codegen import ProtoError, generate

    try:
        result = generate(args.proto_dir, args.out, check=args.check, inspect=http_mistakes)
    except ProtoError as error:
        if args.debug:
            raise
        print(error, file=sys.stderr)
        return 1
    for warning in result.warnings:
        print(warning, file=sys.stderr)
    if result.stale:
        for file in result.stale:
            print(f"{file.path}: {file.reason}", file=sys.stderr)
        command = f"framework generate {args.proto_dir} --out {args.out}"
        print(f"framework: {_files(len(result.stale))} to make again: {command}", file=sys.stderr)
        return 1
    done = [
        f"{_files(len(files))} {what}"
        for files, what in [
            (result.written, "written"),
            (result.removed, "removed"),
            (result.unchanged, "up to date"),
        ]
        if files
    ]
    print(f"{args.out}: {', '.join(done)}")
    return 0


def http_mistakes(files: Mapping[str, FileDescriptorProto], protos: Sequence[str]) -> Iterator[Mistake]:
    """Rules and options of HTTP that could not be served."""
    from google.protobuf import descriptor_pb2

    from framework.codegen import Mistake
    from framework.codegen.services import METHOD, OPTIONS, SERVICE
    from framework.http.methods import mistakes_in, pool_of

    pool = pool_of(descriptor_pb2.FileDescriptorSet(file=files.values()))
    for proto in protos:
        services = pool.FindFileByName(proto).services_by_name.values()
        for method, error in mistakes_in(services):
            service = method.containing_service
            path = (SERVICE, service.index, METHOD, method.index)
            option = (*path, OPTIONS, *error.place)
            yield Mistake(proto, str(error), (option, option[: len(path) + 2], path))


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
