"""Which Python module a proto file becomes, and how one module imports another."""

from __future__ import annotations

import keyword
import re
import sys
from collections.abc import Iterable
from pathlib import PurePosixPath

from framework.errors import FrameworkError

OWN = {"buf/validate/validate.proto": "framework.validate_pb2"}
"""Modules that are not where protoc has them in mind: their package may be somebody else's, or not there at all."""


def legal(name: str) -> str:
    """A name of letters, digits and underscores that does not start with a digit: `v1-beta` is `v1_beta`."""
    name = re.sub(r"\W", "_", name)
    return f"_{name}" if name[:1].isdigit() else name


def identifier(name: str) -> str:
    """A legal name that is no keyword: `class` is `class_`."""
    name = legal(name)
    return f"{name}_" if keyword.iskeyword(name) else name


def protoc_module(proto: str) -> str:
    """The dotted module that protoc has in mind for the messages of a proto file."""
    return proto.removesuffix(".proto").replace("-", "_").replace("/", ".") + "_pb2"


def import_line(package: str, module: str, alias: str | None = None) -> str:
    """The statement that imports a module of a package; no package stands for the top level."""
    renamed = f" as {alias}" if alias and alias != module else ""
    return f"from {package} import {module}{renamed}" if package else f"import {module}{renamed}"


def dotted(package: str, module: str) -> str:
    """A module of a package as one name: `..a` and `b` are `..a.b`, `..` and `b` are `..b`."""
    return f"{package}{module}" if package.endswith(".") or not package else f"{package}.{module}"


class Layout:
    """The modules of one tree.

    Modules of the tree import each other relatively, so the tree works wherever it is put. In an import root, which
    is itself on the path, top-level packages have no common parent and import each other absolutely.

    Attributes:
        root: True when the output directory is an import root, False when it is a package.
    """

    def __init__(self, protos: Iterable[str], *, root: bool) -> None:
        self.root = root
        self._stems: dict[str, str] = {}
        self._by_module: dict[str, str] = {}
        origin: dict[str, str] = {}
        for proto in protos:
            *folders, name = PurePosixPath(proto).with_suffix("").parts
            stem = ".".join([*map(identifier, folders), legal(name)])
            if stem in origin:
                raise FrameworkError(
                    f"{origin[stem]} and {proto} would both become the Python module {stem}_pb2. Rename one of them."
                )
            origin[stem] = proto
            self._stems[proto] = stem
            self._by_module[protoc_module(proto)] = proto
        if root:
            self._refuse_to_hide()

    def _refuse_to_hide(self) -> None:
        for proto, stem in self._stems.items():
            top = stem.split(".")[0] if "." in stem else ""
            if top in sys.stdlib_module_names or top in ("framework", "google", "grpc"):
                raise FrameworkError(
                    f"{proto} would become a top-level package {top!r} and hide the one that Python already has. "
                    "Generate into a package, such as --out src/NAME."
                )

    def __contains__(self, proto: str) -> bool:
        return proto in self._stems

    def proto(self, module: str) -> str | None:
        """The proto file of this tree whose messages protoc puts into a module, or None."""
        return self._by_module.get(module)

    def module(self, proto: str, suffix: str = "_pb2") -> str:
        """The dotted module that holds the messages of a proto file (or `_rpc`), below the output directory.

        A file outside the tree is one that an installed package provides, under the name that protoc gives it.
        """
        return self._stems[proto] + suffix if proto in self._stems else OWN.get(proto) or protoc_module(proto)

    def path(self, proto: str, suffix: str) -> PurePosixPath:
        """The output file, relative to the output directory: suffix is `_pb2.py`, `_pb2.pyi` or `_rpc.py`."""
        return PurePosixPath(self._stems[proto].replace(".", "/") + suffix)

    def packages(self) -> list[PurePosixPath]:
        """The `__init__.py` files that make the output importable."""
        folders = {folder for proto in self._stems for folder in self.path(proto, "").parents}
        if self.root:
            folders.discard(PurePosixPath("."))
        return sorted(folder / "__init__.py" for folder in folders)

    def package(self, importer: str, imported: str) -> tuple[str, str]:
        """The package, as the modules of one proto file name it, and the message module in it of another."""
        *target, module = self.module(imported).split(".")
        if imported not in self:
            return ".".join(target), module
        here = self.module(importer).split(".")[:-1]
        shared = 0
        while shared < min(len(here), len(target)) and here[shared] == target[shared]:
            shared += 1
        if self.root and shared == 0:
            return ".".join(target), module
        return "." * (len(here) - shared + 1) + ".".join(target[shared:]), module
