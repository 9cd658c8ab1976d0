"""The document against the server that it describes, by schemathesis."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.http.kiosk import Site, served

ROOT = Path(__file__).parents[2]
LONGEST = 15  # seconds of making things up


@pytest.mark.long
@pytest.mark.timeout(120)
async def test_the_server_does_what_its_document_says(tmp_path: Path) -> None:
    """Whatever the document allows is accepted, and every answer is one that it describes.

    One check is left out: what the document does not allow may be accepted, since ProtoJSON reads more than it writes
    (null for any field, numbers as text).
    """
    site = Site()
    site.kiosk.may_hang = False
    command = (
        *(sys.executable, "-m", "schemathesis.cli", "run", "--no-color", "--mode=all"),
        *("--exclude-checks=negative_data_rejection", "--phases=examples,coverage,fuzzing", "--max-examples=10"),
        *(f"--max-time={LONGEST}", "--seed=1", "--generation-database=none", "--suppress-health-check=filter_too_much"),
    )
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "tests.http.schemathesis_formats", "PYTHONPATH": str(ROOT)}
    async with served(site) as base:
        ran = await asyncio.create_subprocess_exec(
            *command, f"{base}/openapi.json", cwd=tmp_path, env=environment, stdout=-1, stderr=-2
        )
        try:
            told, _ = await ran.communicate()
        finally:
            if ran.returncode is None:
                ran.kill()
                await ran.wait()
    assert ran.returncode == 0, told.decode()
    cases = re.search(r"(\d+) generated, (\d+) passed", told.decode())
    assert cases is not None
    assert cases[1] == cases[2]
    assert int(cases[1]) > 100
