"""The protos of these tests, as dynamic messages: no code is generated for them."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor

from framework.codegen.compiler import include_paths

PROTOS = Path(__file__).with_name("protos")


def compile_text(text: str) -> descriptor_pool.DescriptorPool:
    """The pool of one proto file given as text."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "test.proto").write_text(text)
        return _pool(Path(folder), ["test.proto"])


@cache
def pool() -> descriptor_pool.DescriptorPool:
    """The pool of all protos in `tests/http/protos`."""
    return compile_folder(PROTOS)


def compile_folder(folder: Path, kept: str | None = None) -> descriptor_pool.DescriptorPool:
    """The pool of all protos in a folder; `kept` is a file that has it, once somebody has made it."""
    return _pool(folder, sorted(str(path.relative_to(folder)) for path in folder.rglob("*.proto")), kept)


def _pool(folder: Path, names: list[str], kept: str | None = None) -> descriptor_pool.DescriptorPool:
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(kept or Path(temporary, "set"))
        if not made.exists():
            _compile(folder, names, made)
        files = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes())
    found = descriptor_pool.DescriptorPool()
    for file in files.file:
        found.Add(file)
    return found


def _compile(folder: Path, names: list[str], made: Path) -> None:
    command = [sys.executable, "-P", "-m", "grpc_tools.protoc", "-I.", *(f"-I{path}" for path in include_paths())]
    subprocess.run([*command, "--include_imports", f"--descriptor_set_out={made}", *names], cwd=folder, check=True)


def file(name: str) -> FileDescriptor:
    """The descriptor of `lab/v1/NAME.proto`."""
    return pool().FindFileByName(f"lab/v1/{name}.proto")


@cache
def message(name: str) -> Any:
    """The class of the message `lab.v1.NAME`."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(f"lab.v1.{name}"))
