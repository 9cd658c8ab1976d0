"""The engines and clients that tests run, as `scripts/tools` fetched them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NoReturn

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "tools"


@cache
def tool(name: str) -> str:
    """The executable of a tool. A test that cannot have it is skipped, or fails where CI promises it."""
    found = subprocess.run([sys.executable, SCRIPT, "--path", name], capture_output=True, text=True, check=False)
    if found.returncode == 0:
        return found.stdout.strip()
    return _missing(f"{name} is not here: `make tools` fetches it, or put it on PATH")


def on_path(name: str) -> str:
    """A program that the machine has; without it a test is skipped, or fails where CI promises it."""
    return shutil.which(name) or _missing(f"{name} is not on PATH")


def _missing(missing: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(missing, pytrace=False)
    pytest.skip(missing)
