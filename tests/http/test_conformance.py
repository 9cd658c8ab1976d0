"""Connect's own conformance suite: its reference client against every server here, and our client against its servers.

In `conformance`, NAME.yaml says what it speaks, NAME.known which cases must fail and why, NAME.flaky which may,
NAME.skip what cannot be run.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.http import lab
from tests.tools import tool

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).with_name("conformance")


async def conformance(
    name: str, *program: str, files: Path, mode: str = "server", also: str = "", **variables: str
) -> int:
    """How many cases pass; fails when one does not. Those of the client's own clock may fail on a busy machine.

    Args:
        program: what is tested.
        also: the name of more lists.
    """
    lab.compile_folder(FOLDER / "protos", str(files))
    given = [
        (option, line)
        for option, kind in (("--known-failing", "known"), ("--known-flaky", "flaky"), ("--skip", "skip"))
        for path in (FOLDER / f"{name}.{kind}", FOLDER / f"{also}.{kind}")
        if path.exists()
        for line in path.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    given += [("--parallel", "2"), ("--max-servers", "1")] if mode == "server" else []
    process = await asyncio.create_subprocess_exec(
        tool("connectconformance"),
        *("--conf", str(FOLDER / f"{name}.yaml"), "--mode", mode, "--known-flaky", "Timeouts/**"),
        *(word for pair in given for word in pair),
        *("--", sys.executable, "-m", *program),
        cwd=ROOT,
        env={**os.environ, "CONFORMANCE_FILES": str(files), **variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    told = (await process.communicate())[0].decode()
    print(told)
    counts = re.search(r"^(\d+) passed, (\d+) failed", told, re.MULTILINE)
    assert counts is not None
    assert process.returncode == 0
    return int(counts[1])


@pytest.mark.timeout(600)
@pytest.mark.long
async def test_connect_and_grpc_web(tmp_path: Path) -> None:
    """Connect and gRPC-Web over HTTP/1.1."""
    assert await conformance("http", "tests.http.conformance.server", "http", files=tmp_path / "files") > 1300


@pytest.mark.timeout(600)
async def test_grpc(tmp_path: Path) -> None:
    """gRPC on grpc.aio."""
    assert await conformance("grpc", "tests.http.conformance.server", "grpc", files=tmp_path / "files") > 350


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_pyvoy(tmp_path: Path) -> None:
    """gRPC, Connect and gRPC-Web on one port, over HTTP/1.1 and HTTP/2."""
    paths = os.pathsep.join([str(Path(tool("pyvoy")).parents[1]), str(ROOT)])
    server = "tests.http.conformance.inside"
    assert await conformance("pyvoy", server, files=tmp_path / "files", PYTHONPATH=paths) > 1800


@pytest.mark.timeout(600)
async def test_client(tmp_path: Path) -> None:
    """Our client, with calls past grpc where there are such."""
    program = ("tests.http.conformance.client", "direct")
    assert await conformance("client", *program, files=tmp_path / "files", mode="client") > 200


@pytest.mark.timeout(600)
async def test_client_through_grpc(tmp_path: Path) -> None:
    """Our client, with all calls through grpc.aio."""
    program = ("tests.http.conformance.client", "grpc")
    assert await conformance("client", *program, files=tmp_path / "files", mode="client", also="client_grpc") > 190
