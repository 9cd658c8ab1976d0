"""Files that are followed: each by itself, wherever the process goes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from framework.errors import ConfigError
from framework.security import files
from framework.security.files import Followed, follow


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at often."""
    monkeypatch.setattr(files, "INTERVAL", 0.001)


def read(path: Path) -> str:
    """What a file says."""
    return files.text_of(path)


def looked_at(file: Followed[str]) -> str:
    """What it says once it has been looked at for long enough."""
    file.look()
    file.look()
    return file.value


def test_wherever_the_process_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative path is one from where the process was when it began to follow."""
    monkeypatch.chdir(tmp_path)
    Path("keys.toml").write_text("a")
    file = Followed(Path("keys.toml"), read)
    monkeypatch.chdir("/")
    (tmp_path / "keys.toml").write_text("another")
    assert looked_at(file) == "another"


def test_a_mistake_is_told_as_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the start, by the name that stands in the settings."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^none.toml cannot be read"):
        Followed(Path("none.toml"), read)


def test_a_folder_that_cannot_be_read_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said stays; what changed in the meantime is taken over as soon as it can be read again."""

    def names(path: Path) -> str:
        return " ".join(sorted(one.name for one in path.iterdir()))

    (tmp_path / "orders.pem").touch()
    (tmp_path / "evil.pem").touch()
    folder = Followed(tmp_path, names)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "iterdir", refused)
        assert looked_at(folder) == "evil.pem orders.pem"
    (tmp_path / "evil.pem").unlink()
    assert looked_at(folder) == "orders.pem"


def refused(path: Path) -> None:
    raise PermissionError(13, "Permission denied")


class Looked:
    """Something that is looked at, and cannot be at first."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.looks = 0

    def look(self) -> None:
        """Fail, or end the following with the third look."""
        self.looks += 1
        if self.looks <= self.failures:
            raise ValueError("not now")
        if self.looks == 3:
            raise asyncio.CancelledError


async def test_one_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The others are looked at all the same, and it is looked at again."""
    bad, good = Looked(2), Looked(0)
    with pytest.raises(asyncio.CancelledError):
        await follow([good, bad])
    assert (good.looks, bad.looks) == (3, 2)
    failed = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(failed) == 2
