"""API keys: `fwk_NAME_` and 64 hex digits, of which only the hash is kept.

    ci = { hash = "sha256:...", roles = ["deployer"], expires = 2027-01-01 }

A key is 256 random bits, so a plain SHA-256 of it says nothing about it; what is slow on purpose is for passwords.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
import secrets
import time
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from framework.access import names
from framework.errors import ConfigError
from framework.identity import Identity
from framework.parsing import suggest
from framework.security.authentication import Refused
from framework.security.files import text_of

_KEY = re.compile(r"fwk_([A-Za-z0-9-]{1,64})_([0-9a-f]{64})")
_NAME = re.compile(r"[A-Za-z0-9-]{1,64}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_FIELDS = ("hash", "roles", "scopes", "expires")
_words = names(re.compile(r"[^\s,]+"), "name")


@dataclass(frozen=True, slots=True)
class Entry:
    """One key that counts.

    Attributes:
        digest: the hash of the key.
        identity: whom it stands for.
        until: when it stops counting, in seconds since the epoch; None is never.
    """

    digest: bytes
    identity: Identity
    until: float | None = None


class ApiKeys:
    """The keys that count.

    Args:
        entries: by name.
        now: seconds since the epoch.
    """

    def __init__(self, entries: Mapping[str, Entry], now: Callable[[], float] = time.time) -> None:
        self.entries = entries
        self._now = now

    def verify(self, key: str) -> Identity:
        """Whom a key stands for. Raises Refused when it does not count."""
        match = _KEY.fullmatch(key)
        if match is None:
            raise Refused("the API key is malformed")
        entry = self.entries.get(match[1])
        # As much work for a name that nobody has, or one could tell which names there are.
        same = hmac.compare_digest(hash_of(key), bytes(32) if entry is None else entry.digest)
        if entry is None or not same:
            raise Refused("the API key is not known")
        if entry.until is not None and self._now() >= entry.until:
            raise Refused(f"the API key {match[1]} has expired")
        return entry.identity


def new(name: str) -> str:
    """A key that nobody has had. Raises ConfigError for a name that cannot be one."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot name a key: up to 64 letters, digits and -")
    return f"fwk_{name}_{secrets.token_hex(32)}"


def hash_of(key: str) -> bytes:
    """What is kept of a key."""
    return hashlib.sha256(key.encode()).digest()


def line(name: str, key: str, roles: tuple[str, ...] = (), scopes: tuple[str, ...] = ()) -> str:
    """The line for the file of keys."""
    said = [f'hash = "sha256:{hash_of(key).hex()}"']
    for field, given in (("roles", roles), ("scopes", scopes)):
        if found := _words(given, field):
            said.append(_list(field, found))
    return f"{name} = {{ {', '.join(said)} }}"


def _list(field: str, found: tuple[str, ...]) -> str:
    inner = ", ".join(f'"{one}"' for one in found)
    return f"{field} = [{inner}]"


def read(path: Path) -> dict[str, Entry]:
    """The keys in a file. Raises ConfigError."""
    try:
        tables = tomllib.loads(text_of(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    return {name: _entry(name, value, f"{path}: {name}") for name, value in tables.items()}


def _entry(name: str, value: Any, where: str) -> Entry:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where} cannot name a key: up to 64 letters, digits and -")
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} must be a table; `framework access key new {name}` prints it")
    for field in value:
        if field not in _FIELDS:
            raise ConfigError(f"{where}.{field} is not a setting.{suggest(field, dict.fromkeys(_FIELDS))}")
    match = _HASH.fullmatch(str(value.get("hash", "")))
    if match is None:
        raise ConfigError(f"{where}.hash is no hash of a key; `framework access key new {name}` prints one")
    roles, scopes = (frozenset(_words(value.get(field, ()), f"{where}.{field}")) for field in ("roles", "scopes"))
    until = value.get("expires")
    if until is not None:
        if not isinstance(until, datetime.date):
            raise ConfigError(f"{where}.expires is {until!r}; write a day, 2027-01-31, or a moment of TOML")
        if not isinstance(until, datetime.datetime):
            until = datetime.datetime.combine(until, datetime.time())
        until = (until if until.tzinfo else until.replace(tzinfo=datetime.UTC)).timestamp()
    return Entry(bytes.fromhex(match[1]), Identity(name, "key", roles=roles, scopes=scopes), until)
