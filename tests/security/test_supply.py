"""What is not to be in the code, and what is to be known of what others wrote."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
FORBIDDEN = {
    "eval(input())": "S307",
    'exec("pass")': "S102",
    "import pickle\npickle.loads(b'')": "S301",
    "import marshal\nmarshal.loads(b'')": "S302",
    'import os\nos.system("ls")': "S605",
    'import subprocess\nsubprocess.run("ls *", shell=True)': "S602",
    "import yaml\nyaml.load(open('a'))": "S506",
    "import ssl\nssl._create_unverified_context()": "S323",
}


@pytest.mark.parametrize("code", FORBIDDEN)
def test_make_check_refuses(code: str) -> None:
    """Code that runs text, a shell or whatever a stream says, with the settings of this project."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise"]
    ran = subprocess.run(
        [*command, "--stdin-filename", "framework/made_up.py", "-"],
        input=code,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert FORBIDDEN[code] in re.findall(r"\bS\d+", ran.stdout)


def test_every_dependency_is_pinned_with_its_hashes() -> None:
    """A line of requirements.lock names one version, and at least one hash follows."""
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.lock").read_text().strip())
    assert [one for one in entries if not re.match(r"[\w.-]+==\S+[^\n]*\\\n +--hash=sha256:[0-9a-f]{64}", one)] == []


def audited(folder: Path, answer: Any) -> tuple[int, str]:
    """How `scripts/audit` ends, and its words, when pip-audit answers this."""
    program = folder / "pip-audit-2.10.1/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer if isinstance(answer, str) else json.dumps(answer)}\nEND\n")
    program.chmod(0o755)
    ran = subprocess.run(
        [sys.executable, ROOT / "scripts/audit"],
        env={**os.environ, "FRAMEWORK_TOOLS": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


def test_a_known_vulnerability_fails_the_check(tmp_path: Path) -> None:
    """It is named, with the version that is without it."""
    flaw = {"id": "CVE-2030-1", "fix_versions": ["1.1"]}
    packages = [{"name": "one", "version": "1.0", "vulns": [flaw]}, {"name": "two", "skip_reason": "not there"}]
    told = (
        "requirements.lock: one 1.0 has CVE-2030-1; fixed in 1.1\n"
        "audit: 1 packages, 1 known vulnerabilities, 1 not in the database\n"
    )
    code, said = audited(tmp_path, {"dependencies": packages})
    assert (1, sorted(told.splitlines())) == (code, sorted(said.splitlines()))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (
            {"dependencies": [{"name": "one", "skip_reason": "not there"}]},
            "the package index has no vulnerability data",
        ),
        ("", "no answer"),
    ],
)
def test_without_a_database_the_check_is_skipped_in_one_line(tmp_path: Path, answer: Any, reason: str) -> None:
    """No answer is not the answer that all is well, and it is not a failure."""
    assert (0, f"audit: skipped, {reason}\n") == audited(tmp_path, answer)
