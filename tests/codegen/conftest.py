"""A directory of proto files and what is generated from it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from framework.codegen import Result, generate


@dataclass
class Tree:
    """`protos` and its output `out`, side by side."""

    protos: Path
    out: Path

    def write(self, name: str, body: str) -> None:
        """Write a proto3 file, in the package that its directory says; a body that names its syntax stands alone."""
        if not body.lstrip().startswith(("syntax", "edition")):
            package = name.rpartition("/")[0].replace("/", ".")
            body = f'syntax = "proto3";\npackage {package};\n{body}' if package else f'syntax = "proto3";\n{body}'
        path = self.protos / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body, encoding="utf-8")

    def generate(self, *, check: bool = False) -> Result:
        return generate(self.protos, self.out, check=check)

    def files(self) -> set[str]:
        """What is in the output directory, without caches and the manifest."""
        found = (path.relative_to(self.out) for path in self.out.rglob("*") if path.is_file())
        return {path.as_posix() for path in found if path.suffix != ".pyc" and not path.name.startswith(".")}

    def read(self, name: str) -> str:
        return (self.out / name).read_text(encoding="utf-8")

    def python(self, code: str, *, cwd: Path | None = None) -> str:
        """What a new interpreter prints; warnings are errors to it."""
        command = [sys.executable, "-W", "error", "-c", code]
        ran = subprocess.run(command, cwd=cwd or self.out.parent, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Nothing yet: `protos` is empty, and the output will be the package `stubs`."""
    (tmp_path / "protos").mkdir()
    return Tree(tmp_path / "protos", tmp_path / "stubs")
