"""Connect's own conformance suite, with its reference client, against every server here.

In `conformance`, NAME.yaml says what it speaks, NAME.known which cases must fail and why, NAME.skip what cannot be run.
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


async def conformance(name: str, *server: str, files: Path, **variables: str) -> int:
    """How many cases pass; fails when one does not. Those of the client's own clock may fail on a busy machine."""
    lab.compile_folder(FOLDER / "protos", str(files))
    given = [
        (option, f"@{path}")
        for option, path in (("--known-failing", FOLDER / f"{name}.known"), ("--skip", FOLDER / f"{name}.skip"))
        if path.exists()
    ]
    process = await asyncio.create_subprocess_exec(
        tool("connectconformance"),
        *("--conf", str(FOLDER / f"{name}.yaml"), "--mode", "server", "--known-flaky", "Timeouts/**"),
        *("--parallel", "2", "--max-servers", "1", *(word for pair in given for word in pair)),
        *("--", sys.executable, "-m", *server),
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
async def test_connect_and_grpc_web(tmp_path: Path) -> None:
    """Connect and gRPC-Web over HTTP/1.1."""
    assert await conformance("http", "tests.http.conformance.server", "http", files=tmp_path / "files") > 1300


@pytest.mark.timeout(600)
async def test_grpc(tmp_path: Path) -> None:
    """gRPC on grpc.aio."""
    assert await conformance("grpc", "tests.http.conformance.server", "grpc", files=tmp_path / "files") > 350


@pytest.mark.timeout(600)
async def test_pyvoy(tmp_path: Path) -> None:
    """gRPC, Connect and gRPC-Web on one port, over HTTP/1.1 and HTTP/2."""
    paths = os.pathsep.join([str(Path(tool("pyvoy")).parents[1]), str(ROOT)])
    server = "tests.http.conformance.inside"
    assert await conformance("pyvoy", server, files=tmp_path / "files", PYTHONPATH=paths) > 1800
