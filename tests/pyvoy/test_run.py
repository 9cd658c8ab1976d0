"""How `framework run --engine pyvoy` comes up and goes down, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf.wrappers_pb2 import StringValue as Text

from framework import Method, UnaryReply, connect
from framework.discovery.targets import open_registry
from tests.cli.lab import framework, serving

GREET = Method("lab.v1.Lab", "Greet", Text, Text)
PYVOY = ("--engine", "pyvoy")

MISTAKES = """\
from contextlib import asynccontextmanager
from framework import ConfigError, Service
from lab_service import Lab


@asynccontextmanager
async def raises(service):
    raise ConfigError("no database")
    yield


raising = Service("raising", servicers=[Lab()], lifespan=raises)
intercepted = Service("intercepted", servicers=[Lab()], grpc_interceptors=[object()])
"""


async def test_up_and_down(folder: Path, path: str, tmp_path: Path) -> None:
    """It is registered on the port that it was given, is called by name, and leaves the registry on SIGTERM."""
    registry = f"sqlite:///{tmp_path / 'registry.db'}"
    with serving(folder, "-m", "framework", "run", "wired", *PYVOY, "--registry", registry, PYTHONPATH=path) as server:
        async with connect(f"{registry}#wired") as channel:
            assert (await UnaryReply(channel.bind(GREET), GREET, Text(value="Ada"))).value == "Hello, Ada!"
        code, said = server.end()
    assert (code, said[-1]) == (0, "wired has stopped")
    opened = open_registry(registry)
    try:
        assert dict(await opened.services()) == {}
    finally:
        await opened.aclose()


def test_without_pyvoy(folder: Path) -> None:
    """One line says what to install."""
    missing = framework(folder, "run", "lab_service", *PYVOY, PYTHONPATH="")
    line = "framework: pyvoy is not installed; --engine pyvoy takes: pip install framework-grpc[pyvoy]\n"
    assert (2, line) == (missing.returncode, missing.stderr)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("lab_service", "--workers", "2"), "the engine pyvoy has no workers; leave --workers out, or"),
        (("lab_service", "--http", "0"), "the engine pyvoy serves HTTP on the port of gRPC; leave --http out"),
        (
            ("lab_service", "--host", "192.0.2.1", "--plaintext"),
            "cannot listen on 192.0.2.1: it is no address of this machine",
        ),
        (("mistakes:intercepted",), "intercepted has grpc_interceptors, which need grpc's own server, and not pyvoy"),
        (("mistakes:raising",), "no database"),
    ],
)
def test_mistakes(folder: Path, path: str, arguments: tuple[str, ...], line: str) -> None:
    """What cannot be served is told in one line, wherever it is found out."""
    (folder / "mistakes.py").write_text(MISTAKES)
    said = framework(folder, "run", *arguments, *PYVOY, PYTHONPATH=path).stderr
    assert said.startswith(f"framework: {line}")
    assert said.count("\n") == 1
