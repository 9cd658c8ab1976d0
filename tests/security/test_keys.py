"""API keys: made once, kept as a hash."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from framework.errors import ConfigError
from framework.identity import Identity
from framework.security.authentication import Refused
from framework.security.keys import ApiKeys, line, new, read
from tests.security.test_jwt import Clock

DAY = datetime.datetime(2027, 1, 15, tzinfo=datetime.UTC).timestamp()


def keys_in(path: Path, text: str, clock: Clock | None = None) -> ApiKeys:
    """The keys that a file with this text holds."""
    file = path / "keys.toml"
    file.write_text(text)
    return ApiKeys(read(file), clock or Clock())


def test_made_and_used(tmp_path: Path) -> None:
    """The line that is printed for a key makes it count, with its roles and scopes; the key itself is not in it."""
    key = new("ci")
    text = line("ci", key, ("deployer", "reader"), ("write",))
    assert key not in text
    assert key[-64:] not in text
    found = keys_in(tmp_path, text).verify(key)
    assert found == Identity("ci", "key", roles=frozenset({"deployer", "reader"}), scopes=frozenset({"write"}))
    assert new("ci") != key


def test_refused(tmp_path: Path) -> None:
    """Another key of the same name, one of a name that nobody has and what is no key are refused."""
    keys = keys_in(tmp_path, line("ci", new("ci")))
    for bad, reason in (
        (new("ci"), "is not known"),
        (new("other"), "is not known"),
        ("fwk_ci_", "is malformed"),
        ("", "is malformed"),
        ("fwk_ci_" + "g" * 64, "is malformed"),
    ):
        with pytest.raises(Refused, match=reason):
            keys.verify(bad)


@pytest.mark.parametrize("said", ["2027-01-16", "2027-01-16T00:00:00Z", "2027-01-16T02:00:00+02:00"])
def test_expiry(tmp_path: Path, said: str) -> None:
    """A key counts until the day, or the moment, that the file says."""
    clock = Clock()
    key = new("ci")
    keys = keys_in(tmp_path, line("ci", key).replace(" }", f", expires = {said} }}"), clock)
    clock.now = DAY + 86399
    assert keys.verify(key).subject == "ci"
    clock.now = DAY + 86400
    with pytest.raises(Refused, match="has expired"):
        keys.verify(key)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ci = 5", "ci must be a table; `framework access key new ci` prints it"),
        ("ci = {}", "ci.hash is no hash of a key; `framework access key new ci` prints one"),
        ('ci = { hash = "fwk_ci_secret" }', "ci.hash is no hash of a key"),
        ('ci = { hash = "sha256:' + "a" * 64 + '", role = "a" }', "ci.role is not a setting. Did you mean roles?"),
        ('ci = { hash = "sha256:' + "a" * 64 + '", expires = "soon" }', "ci.expires is 'soon'; write a day"),
        ('"a b" = {}', "a b cannot name a key"),
        ("ci = {", "Expected"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, expected: str) -> None:
    """One line names the file, the key and what is wrong, and shows nothing that could be a key."""
    with pytest.raises(ConfigError) as caught:
        keys_in(tmp_path, text)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "keys.toml"))
    assert expected in message or "invalid" in message.lower() or expected == "Expected"
    assert "fwk_ci_secret" not in message


def test_names() -> None:
    """What would not be a name in the file is refused when the key is made."""
    with pytest.raises(ConfigError, match=r"^'a_b' cannot name a key: up to 64 letters, digits and -$"):
        new("a_b")
