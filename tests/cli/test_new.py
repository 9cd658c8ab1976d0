"""`framework new`: the project that it makes, and the names that it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework.cli import main
from framework.cli.new import create

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def elsewhere() -> Iterator[None]:
    """What lies about in the repository is no package: people try `framework new hello` there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [path for path in sys.path if Path(path).resolve() != ROOT])
        yield


@pytest.fixture(scope="module")
def project(elsewhere: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project called my_shop."""
    return create("my_shop", tmp_path_factory.mktemp("new"))


def environment(registry: Path) -> dict[str, str]:
    """The environment of a user's shell; without what a make that runs these tests hands down."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return own | {"FRAMEWORK_REGISTRY": f"sqlite:///{registry}"}


def make(project: Path, target: str, registry: Path = Path("registry.db")) -> str:
    """What a make target prints; it must succeed."""
    ran = subprocess.run(
        ["make", target], cwd=project, env=environment(registry), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_project_passes_its_tests(project: Path) -> None:
    """`make test` succeeds at once."""
    assert "3 passed" in make(project, "test")


def test_framework_that_cannot_be_installed(project: Path) -> None:
    """On a machine without it the last line before make's own says how to install it."""
    own = environment(Path("registry.db")) | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": ""}
    (project / "local.mk").rename(project / "not_here.mk")
    try:
        ran = subprocess.run(["make", "run"], cwd=project, env=own, capture_output=True, text=True, check=False)
    finally:
        (project / "not_here.mk").rename(project / "local.mk")
    assert ran.returncode == 2
    assert "pip install -e /path/to/framework; or use a Python that has it: make PYTHON=" in ran.stderr.splitlines()[-2]


def test_project_is_typed_and_tidy(project: Path) -> None:
    """mypy --strict has nothing to say, the generated files are up to date, and the formatter would change nothing."""
    assert "Success: no issues found" in make(project, "check")
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        subprocess.run([sys.executable, "-m", *command], cwd=project, check=True)


def test_service_runs_and_answers(project: Path, tmp_path: Path) -> None:
    """`make run` starts the service, `make client` finds and calls it, and a signal stops it."""
    registry = tmp_path / "registry.db"
    with subprocess.Popen(
        ["make", "run"],
        cwd=project,
        env=environment(registry),
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as service:
        try:
            assert service.stderr is not None
            assert "my_shop has its admin pages on http://127.0.0.1:" in service.stderr.readline()
            assert "my_shop serves on 127.0.0.1:" in service.stderr.readline()
            printed = make(project, "client", registry)
        finally:
            os.killpg(service.pid, signal.SIGTERM)
    assert printed.splitlines() == [
        "Hello, you!",
        "Hello, you!",
        "Hallo, you!",
        "Bonjour, you!",
        "NOT_FOUND: nobody here speaks 'tlh'",
    ]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("My-Shop", "use lower-case letters, digits and underscores, starting with a letter, such as my_shop."),
        ("1st", "such as my_shop."),
        ("../hello", "such as hello."),
        ("class", "'class' is a keyword of Python."),
        ("calendar", "there is a Python package called 'calendar' already."),
        ("framework", "there is a Python package called 'framework' already."),
        ("taken", "taken exists in"),
    ],
)
def test_name_that_cannot_be_used(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that would not work is refused with the reason, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    assert main(["new", name]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_what_to_do_next_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with the commands that follow."""
    monkeypatch.chdir(tmp_path)
    assert main(["new", "hello"]) == 0
    printed = capsys.readouterr().out
    assert [line.split()[:2] for line in printed.splitlines()[1:]] == [
        ["cd", "hello"],
        ["make", "run"],
        ["make", "client"],
        ["make", "test"],
    ]
