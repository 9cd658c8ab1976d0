"""A tree of proto files and the tree of Python made of it, on disk.

A manifest in the output directory records what went in and what came out: an unchanged tree is not compiled again,
and what a deleted proto file left behind is removed. Nothing that the manifest does not know ever is.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from framework.codegen.layout import Layout
from framework.errors import FrameworkError

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

Inspect: TypeAlias = "Callable[[Mapping[str, FileDescriptorProto], Sequence[str]], Iterable[Mistake]]"
"""Looks into the descriptions of all files for mistakes in those of a tree, which are named."""

MANIFEST = ".framework-generate.json"
LEFT_OVER = "left over"
PROVIDED = ("buf/validate/", "framework/", "google/")


@dataclass(frozen=True)
class Mistake:
    """What compiles and yet makes no sense.

    Attributes:
        proto: the file.
        message: what is wrong.
        paths: where it is, as source locations name it: the first that has a place.
    """

    proto: str
    message: str
    paths: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Stale:
    """A file that is not what its proto file says.

    Attributes:
        path: the file.
        reason: `missing`, `out of date`, `edited by hand` or `left over`.
    """

    path: Path
    reason: str


@dataclass(frozen=True)
class Result:
    """What `generate` did, or with `check` what it found.

    Attributes:
        written, removed, unchanged: output files.
        stale: files that `generate` would write or remove; only a check leaves any.
        warnings: protoc's, `file:line:column: warning: message`.
    """

    written: tuple[Path, ...] = ()
    removed: tuple[Path, ...] = ()
    unchanged: tuple[Path, ...] = ()
    stale: tuple[Stale, ...] = ()
    warnings: tuple[str, ...] = ()


def generate(proto_dir: Path, out: Path, *, check: bool = False, inspect: Inspect | None = None) -> Result:
    """Make the Python of a tree of proto files. Files that are right already are not touched.

    Args:
        proto_dir: the directory that imports between proto files start from.
        out: where the output goes. It becomes a package, unless it is an import root: a directory called `src`, or
            one that holds pyproject.toml.
        check: write nothing, and compare the output with what is there.
        inspect: looks for more mistakes than the compiler does.

    Raises:
        ProtoError: a proto file has mistakes; the output is left as it was.
        FrameworkError: a directory is missing or empty, or cannot be written to.
    """
    protos = protos_in(proto_dir)
    source = Path(os.path.relpath(proto_dir, out)).as_posix()
    manifest = _read_manifest(out)
    known: Mapping[str, Any] = manifest.get(source, {})
    outputs: Mapping[str, str] = known.get("outputs", {})
    entry = {"tools": _tools(), "inputs": {proto: _digest(proto_dir / proto) for proto in protos}}
    if not check and {**entry, "outputs": outputs} == known and _intact(out, outputs):
        return Result(unchanged=tuple(out / path for path in outputs))

    texts, warnings = render(proto_dir, protos, root=_is_root(out), inspect=inspect)
    stale = tuple(_compare(out, texts, outputs))
    changed = tuple(item.path for item in stale if item.reason != LEFT_OVER)
    unchanged = tuple(out / path for path in texts if out / path not in changed)
    if check:
        return Result(unchanged=unchanged, stale=stale, warnings=warnings)

    removed = tuple(item.path for item in stale if item.reason == LEFT_OVER)
    ours = {path for other in manifest.values() for path in other["outputs"]}
    entry["outputs"] = {
        path: _digest_of(text.encode())
        for path, text in texts.items()
        if out / path in changed or path in ours or not path.endswith("__init__.py")
    }
    try:
        _replace(out, {path: text for path, text in texts.items() if out / path in changed}, outputs)
        _remove(removed)
        _write_manifest(out, manifest, source, entry)
    except OSError as error:
        raise FrameworkError(f"cannot write to {out}: {error.strerror}. Choose another with --out.") from error
    return Result(changed, removed, unchanged, warnings=warnings)


def describe(proto_dir: Path) -> Mapping[str, FileDescriptorProto]:
    """The descriptions of all proto files of a tree by name, imported ones included.

    Raises:
        ProtoError: a proto file has mistakes.
        FrameworkError: the directory is missing or empty.
    """
    from framework.codegen.compiler import describe_protos

    return describe_protos(proto_dir, protos_in(proto_dir))


def render(
    proto_dir: Path, protos: Sequence[str], *, root: bool, inspect: Inspect | None = None
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The text of every output file by its path below the output directory, and the warnings."""
    # Imported here: a tree that has not changed needs no protobuf.
    from framework.codegen.compiler import ProtoError, compile_protos, mistake
    from framework.codegen.messages import message_module, message_stub
    from framework.codegen.services import message_types, service_module

    layout = Layout(protos, root=root)
    compiled = compile_protos(proto_dir, protos)
    types = message_types(compiled.files)
    texts = {str(path): "" for path in layout.packages()}
    for proto in protos:
        file = compiled.files[proto]
        texts[str(layout.path(proto, "_pb2.py"))] = message_module(file, compiled.messages[proto], layout)
        texts[str(layout.path(proto, "_pb2.pyi"))] = message_stub(file, compiled.stubs[proto], layout)
        if file.service:
            texts[str(layout.path(proto, "_rpc.py"))] = service_module(file, types, layout, proto_dir)
    found = () if inspect is None else inspect(compiled.files, protos)
    if lines := [mistake(proto_dir, compiled.files[one.proto], one.message, *one.paths) for one in found]:
        raise ProtoError("\n".join(lines))
    return texts, compiled.warnings


def protos_in(proto_dir: Path) -> list[str]:
    """The proto files of a tree, without copies of those that an installed package provides.

    Raises:
        FrameworkError: there is no such directory, or nothing in it.
    """
    from framework.codegen.compiler import include_paths

    if proto_dir.is_file():
        raise FrameworkError(f"{proto_dir} is a file. Name the directory that holds your .proto files.")
    if not proto_dir.is_dir():
        raise FrameworkError(f"there is no directory {proto_dir}. Name the one that holds your .proto files.")
    protos: list[str] = []
    for folder, folders, names in os.walk(proto_dir):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "node_modules"]
        where = Path(folder).relative_to(proto_dir)
        protos += [(where / name).as_posix() for name in names if name.endswith(".proto")]
    copies = {proto for proto in protos if proto.startswith(PROVIDED)}
    if copies:
        paths = include_paths()
        copies = {proto for proto in copies if any((path / proto).exists() for path in paths)}
    if not set(protos) - copies:
        raise FrameworkError(f"there are no .proto files in {proto_dir}.")
    return sorted(set(protos) - copies)


def _is_root(out: Path) -> bool:
    if (out / "__init__.py").exists():
        return False
    return out.resolve().name == "src" or (out / "pyproject.toml").exists()


def _tools() -> dict[str, str]:
    """What the output depends on besides the input."""
    own = hashlib.blake2b(digest_size=16)
    package = Path(__file__).parent.parent
    others = ("options.py", "http/methods.py", "http/rules.py", "http/success.py")  # what is a mistake
    for path in (*sorted(Path(__file__).parent.glob("*.py")), *(package / name for name in others)):
        own.update(path.read_bytes())
    try:
        versions = {name: importlib.metadata.version(name) for name in ("grpcio-tools", "mypy-protobuf")}
    except importlib.metadata.PackageNotFoundError as error:
        raise FrameworkError(f"{error.name} is missing. Install it: pip install {error.name}") from None
    return {"framework": own.hexdigest(), **versions}


def _digest_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    """The digest of a file, empty when there is none."""
    try:
        return _digest_of(path.read_bytes())
    except OSError:
        return ""


def _intact(out: Path, outputs: Mapping[str, str]) -> bool:
    # What stands in an __init__.py is the user's affair.
    return all(
        (out / path).exists() if path.endswith("__init__.py") else _digest(out / path) == digest
        for path, digest in outputs.items()
    )


def _compare(out: Path, texts: Mapping[str, str], known: Mapping[str, str]) -> Iterator[Stale]:
    """What differs on disk, given the digests of what was written last."""
    for path, text in texts.items():
        file = out / path
        if not file.exists():
            yield Stale(file, "missing")
        elif not path.endswith("__init__.py") and (digest := _digest(file)) != _digest_of(text.encode()):
            yield Stale(file, "edited by hand" if known.get(path, digest) != digest else "out of date")
    gone: set[Path] = set()
    # Modules first, then packages from the innermost: a package is left over when nothing else is in it.
    for path in sorted(known.keys() - texts.keys(), key=lambda path: (path.endswith("__init__.py"), -path.count("/"))):
        file = out / path
        if _digest(file) != known[path]:
            continue
        if file.name == "__init__.py":
            if {entry for entry in file.parent.iterdir() if entry.name != "__pycache__"} - gone != {file}:
                continue
            gone.add(file.parent)
        gone.add(file)
        yield Stale(file, LEFT_OVER)


def _replace(out: Path, texts: Mapping[str, str], known: Mapping[str, str]) -> None:
    """Write files, each one whole or not at all."""
    for path in texts.keys() - known.keys():
        file = out / path
        if file.exists() and b"generated" not in file.read_bytes()[:400].lower():
            raise FrameworkError(f"{file} is in the way: it was not generated. Move it, or generate elsewhere.")
    out.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".framework-", dir=out))
    try:
        for number, (path, text) in enumerate(texts.items()):
            new = temporary / str(number)
            new.write_bytes(text.encode())
            (out / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(new, out / path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink()
        if path.name == "__init__.py":
            shutil.rmtree(path.parent / "__pycache__", ignore_errors=True)
            path.parent.rmdir()


def _read_manifest(out: Path) -> dict[str, Any]:
    """The manifest: by source directory what was generated from it; empty when it cannot be read."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = manifest.values() if isinstance(manifest, dict) else [None]
    return manifest if all(isinstance(entry, dict) and "outputs" in entry for entry in entries) else {}


def _write_manifest(out: Path, manifest: dict[str, Any], source: str, entry: Mapping[str, Any]) -> None:
    for other in manifest.values():  # a file belongs to the source that made it last
        other["outputs"] = {path: digest for path, digest in other["outputs"].items() if path not in entry["outputs"]}
    manifest = {name: other for name, other in manifest.items() if other["outputs"]} | {source: entry}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    if _digest(out / MANIFEST) != _digest_of(text.encode()):
        _replace(out, {MANIFEST: text}, {MANIFEST: ""})
