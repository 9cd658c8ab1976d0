"""Running protoc and mypy-protobuf over a tree."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from framework.codegen.layout import protoc_module
from framework.errors import FrameworkError

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

OWN_PROTOS = Path(__file__).parent.parent / "protos"
DIAGNOSTIC = re.compile(r"(?P<file>[^:]+):(?P<line>\d+):(?P<column>\d+): (?P<message>.*)")


class ProtoError(FrameworkError):
    """Proto files that do not compile; the message has a line `file:line:column: message` for each mistake."""


def mistake(proto_dir: Path, file: FileDescriptorProto, message: object, *paths: tuple[int, ...]) -> str:
    """The line for a mistake, with the first of these paths that has a place in the file, or a part that has one."""
    places = file.source_code_info.location
    where = next((one.span for path in paths for one in places if tuple(one.path[: len(path)]) == path), None)
    place = f":{where[0] + 1}:{where[1] + 1}" if where else ""
    return f"{proto_dir / file.name}{place}: {message}"


@dataclass(frozen=True)
class Compiled:
    """What the tools made of a tree.

    Attributes:
        files: the description of every proto file by name, imported ones included, options parsed.
        messages: by name of the proto file, the Python module that protoc wrote.
        stubs: by name of the proto file, the types that mypy-protobuf wrote for it.
        warnings: `file:line:column: warning: message`, one each.
    """

    files: Mapping[str, FileDescriptorProto]
    messages: Mapping[str, str]
    stubs: Mapping[str, str]
    warnings: tuple[str, ...]


def include_paths() -> list[Path]:
    """Where proto files are found that nobody needs to copy: buf/validate, google/protobuf and the like, framework."""
    # Found and not imported: importing grpc_tools extends sys.path and sys.meta_path.
    tools = importlib.metadata.distribution("grpcio-tools").locate_file("grpc_tools/_proto")
    commons = importlib.metadata.distribution("googleapis-common-protos").locate_file("")
    return [OWN_PROTOS, Path(str(tools)), Path(str(commons))]


def compile_protos(proto_dir: Path, protos: Sequence[str]) -> Compiled:
    """Compile proto files, named relative to their directory."""
    with tempfile.TemporaryDirectory(prefix="framework-") as temporary:
        folder = Path(temporary)
        files, warnings = _run(proto_dir, protos, folder, f"--python_out={folder}")
        messages = {
            proto: (folder / (protoc_module(proto).replace(".", "/") + ".py")).read_text(encoding="utf-8")
            for proto in protos
        }
    return Compiled(files, messages, _stubs(protos, files), warnings)


def describe_protos(proto_dir: Path, protos: Sequence[str]) -> Mapping[str, FileDescriptorProto]:
    """The descriptions of proto files and of what they import, by name, comments included; no code is made."""
    with tempfile.TemporaryDirectory(prefix="framework-") as temporary:
        return _run(proto_dir, protos, Path(temporary))[0]


def _run(
    proto_dir: Path, protos: Sequence[str], folder: Path, *outputs: str
) -> tuple[dict[str, FileDescriptorProto], tuple[str, ...]]:
    """Run protoc with its output in a folder; returns the descriptions and the warnings."""
    from google.protobuf import descriptor_pb2

    from framework import options_pb2 as options_pb2  # so that the framework's options are parsed

    arguments = folder / "arguments"
    arguments.write_text(
        "\n".join(
            [
                "-I.",
                *(f"-I{path}" for path in include_paths()),
                *outputs,
                f"--descriptor_set_out={folder / 'descriptors'}",
                "--include_imports",
                "--include_source_info",
                *protos,
            ]
        ),
        encoding="utf-8",
    )
    warnings = _protoc(proto_dir, arguments)
    descriptors = descriptor_pb2.FileDescriptorSet.FromString((folder / "descriptors").read_bytes())
    return {file.name: file for file in descriptors.file}, warnings


def _protoc(proto_dir: Path, arguments: Path) -> tuple[str, ...]:
    """Run protoc inside the tree, so that it names files as their imports do; returns the warnings."""
    ran = subprocess.run(
        [sys.executable, "-P", "-m", "grpc_tools.protoc", f"@{arguments}"],
        cwd=proto_dir,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    found = [match for match in map(DIAGNOSTIC.fullmatch, ran.stderr.splitlines()) if match]
    found.sort(key=lambda match: (match["file"], int(match["line"]), int(match["column"])))
    lines = tuple(_shown(proto_dir, match) for match in found)
    if ran.returncode:
        raise ProtoError("\n".join(lines) or ran.stderr.strip() or f"protoc ended with status {ran.returncode}")
    return lines


def _shown(proto_dir: Path, match: re.Match[str]) -> str:
    path = proto_dir / match["file"]
    return f"{path if path.exists() else match['file']}:{match['line']}:{match['column']}: {match['message']}"


def _stubs(protos: Sequence[str], files: Mapping[str, FileDescriptorProto]) -> dict[str, str]:
    """Run mypy-protobuf as protoc would, but by this interpreter: its script need not be on PATH."""
    from google.protobuf.compiler import plugin_pb2

    request = plugin_pb2.CodeGeneratorRequest(file_to_generate=protos, proto_file=files.values(), parameter="quiet")
    ran = subprocess.run(
        [sys.executable, "-P", "-c", "from mypy_protobuf.main import main; main()"],
        input=request.SerializeToString(),
        capture_output=True,
        check=False,
    )
    if ran.returncode:
        raise FrameworkError(f"mypy-protobuf failed:\n{ran.stderr.decode(errors='replace').strip()}")
    response = plugin_pb2.CodeGeneratorResponse.FromString(ran.stdout)
    return {proto: file.content for proto, file in zip(protos, response.file, strict=True)}
