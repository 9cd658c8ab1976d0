"""What docs/security.md shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from framework import Settings

DOCS = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
TABLES = [
    block for block in re.findall(r"```toml\n(.*?)```", DOCS, re.DOTALL) if "[auth" in block or "[access" in block
]


@pytest.mark.parametrize("text", TABLES, ids=[block.splitlines()[0] for block in TABLES])
def test_settings(tmp_path: Path, text: str) -> None:
    """The settings that it shows can be read, with the comments in them as settings too."""
    file = tmp_path / "framework.toml"
    whole = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    for shown in (text, whole):
        file.write_text(shown)
        assert Settings.load(file, {}).source is not None
