"""The tables of the guide."""

from __future__ import annotations

import re
from pathlib import Path

from framework import ClientSettings, MethodSettings
from framework.parsing import leaves, shown

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text(encoding="utf-8")


def test_every_setting_of_a_client() -> None:
    """The guide has each with its default, and says which of them a method can have."""
    found = re.findall(r"^\| `([\w.]+)` \| `([^`]+)` \| (M?) ?\|", GUIDE, re.MULTILINE)
    methods = {path for path, _ in leaves(MethodSettings)}
    expected = [
        (".".join(path), shown(f, f.default), "M" if path in methods else "") for path, f in leaves(ClientSettings)
    ]
    assert sorted(found) == sorted(expected)


def test_every_setting_of_a_method() -> None:
    """And each that only a method can have."""
    section = GUIDE[GUIDE.index("A method alone") : GUIDE.index("**Order of say.**")]
    found = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    shared = {path for path, _ in leaves(ClientSettings)}
    assert sorted(found) == sorted(".".join(path) for path, _ in leaves(MethodSettings) if path not in shared)
