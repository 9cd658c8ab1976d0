"""Connect's own conformance suite, with its reference client: Connect and gRPC-Web over HTTP/1.1."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.tools import tool

FOLDER = Path(__file__).with_name("conformance")


@pytest.mark.timeout(600)
async def test_connect_and_grpc_web() -> None:
    """Every case passes; some depend on the client's own clock, and may fail on a machine that is busy."""
    command = [
        tool("connectconformance"),
        *("--conf", str(FOLDER / "config.yaml"), "--mode", "server"),
        *("--known-flaky", "Timeouts/**", "--parallel", "2"),
        *("--", sys.executable, "-m", "tests.http.conformance.server"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=Path(__file__).parents[2], stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    told = (await process.communicate())[0].decode()
    print(told)
    counts = re.search(r"^(\d+) passed, (\d+) failed", told, re.MULTILINE)
    assert counts is not None
    assert int(counts[1]) > 1300
    assert process.returncode == 0
