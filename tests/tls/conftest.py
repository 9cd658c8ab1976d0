"""Fixtures of the tests of TLS."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tls.lab import Folder


@pytest.fixture
def certs(tmp_path: Path) -> Folder:
    """A development CA."""
    return Folder(tmp_path / "certs")
