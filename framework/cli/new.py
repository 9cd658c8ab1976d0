"""`framework new`: a project that runs and passes its tests."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from framework.errors import FrameworkError

if TYPE_CHECKING:
    from framework.cli import Commands

TEMPLATES = Path(__file__).parent / "templates" / "project"
SUFFIX = ".tmpl"

EXAMPLES = """\
examples:
  framework new hello
  cd hello && make run"""


def add_parser(subparsers: Commands) -> None:
    """Add the command to the command line."""
    parser = subparsers.add_parser(
        "new",
        help="make a project that runs and passes its tests",
        description="Make a small project in ./NAME: a proto file, a service, a client, tests and a Makefile.",
        epilog=EXAMPLES,
    )
    parser.add_argument("name", metavar="NAME", help="of the project, its Python package and its service: my_shop")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the project and say what to do next."""
    create(args.name, Path.cwd())
    print(f"{args.name}: a service, a client and tests")
    print(f"  cd {args.name}")
    print("  make run       start the service")
    print("  make client    call it, from another terminal")
    print("  make test      run the tests")
    if importlib.util.find_spec("pytest") is None or importlib.util.find_spec("pytest_asyncio") is None:
        print(f"`make test` needs pytest: {sys.executable} -m pip install 'framework-grpc[test]'")
    return 0


def create(name: str, parent: Path) -> Path:
    """Make a project in a new directory called like it, which appears whole or not at all.

    Raises:
        FrameworkError: a name that cannot be used, or a directory that is there or cannot be made.
    """
    _validate(name)
    project = parent / name
    if project.exists():
        raise FrameworkError(f"{name} exists in {parent}. Choose another name, or remove it.")
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=parent) as temporary:
            draft = Path(temporary) / name
            _write(draft, name)
            os.rename(draft, project)
    except OSError as error:
        raise FrameworkError(f"cannot make {project}: {error.strerror}.") from error
    return project


def _validate(name: str) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        hint = re.sub(r"\W+", "_", name.lower()).strip("_")
        example = hint if re.fullmatch(r"[a-z][a-z0-9_]*", hint) else "my_shop"
        raise FrameworkError(
            f"{name!r} cannot be the name of a Python package here: use lower-case letters, digits and underscores, "
            f"starting with a letter, such as {example}."
        )
    if keyword.iskeyword(name):
        raise FrameworkError(f"{name!r} is a keyword of Python. Choose another name.")
    if name in sys.stdlib_module_names or name in ("framework", "tests") or importlib.util.find_spec(name) is not None:
        raise FrameworkError(f"there is a Python package called {name!r} already. Choose another name.")


def _write(project: Path, name: str) -> None:
    from framework import __version__
    from framework.codegen import generate

    words = {"greeter": name, "Greeter": "".join(part.capitalize() for part in name.split("_")), "VERSION": __version__}
    pattern = re.compile("|".join(words))

    def renamed(text: str) -> str:
        return pattern.sub(lambda match: words[match[0]], text)

    for template in sorted(TEMPLATES.rglob(f"*{SUFFIX}")):
        file = project / renamed(template.relative_to(TEMPLATES).as_posix().removesuffix(SUFFIX))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(renamed(template.read_text(encoding="utf-8")), encoding="utf-8", newline="\n")
    (project / "local.mk").write_text(f"PYTHON := {sys.executable}\n", encoding="utf-8")
    generate(project / "protos", project / "src")
