"""Text that is not to be read by chance."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import pytest

from framework.errors import ConfigError
from framework.parsing import Secret, Table, secret, setting


@dataclass(frozen=True, slots=True)
class Door(Table):
    key: Secret = setting(Secret(""), secret)


def test_hidden() -> None:
    """Nothing that prints settings prints a secret in them."""
    door = Door.parse({"key": "sesame"}, "door")
    assert door.key.reveal() == "sesame"
    assert (repr(door.key), str(door.key)) == ("Secret(***)", "***")
    assert repr(door) == "Door(key=Secret(***))"
    assert "sesame" not in str(dataclasses.asdict(door))


def test_none() -> None:
    """One that is not there says so."""
    assert (repr(Secret("")), str(Secret("")), bool(Secret(""))) == ("Secret()", "", False)


def test_compared() -> None:
    """Two of the same text are equal; text is not."""
    assert Secret("a") == Secret("a")
    assert Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a")}) == 1


def test_mistakes_do_not_tell_it() -> None:
    """The message of a value that cannot be one does not show it."""
    with pytest.raises(ConfigError, match=r"^door\.key must be text$"):
        Door.parse({"key": 4711}, "door")


def test_copied() -> None:
    """Settings are copied with it."""
    assert Secret("a") == copy.copy(Secret("a")) == copy.deepcopy(Secret("a"))
