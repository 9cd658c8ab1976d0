"""Settings that check themselves: frozen dataclasses whose fields know how to read what a file or a variable says.

    @dataclass(frozen=True, slots=True)
    class Limits(Table):
        calls: int = setting(100, integer(1, 1000))
        wait: float = setting(1.0, duration)

    Limits.parse({"calls": 5}, "limits")        # a table of a file; `base` gives what it leaves out
    Limits(calls=0)                             # ConfigError: settings made in code are held to the same rules

A parser takes the value and the place where it stands, for messages, and raises ConfigError. A table keeps the place of
every value that was said, so that it can be told where each came from: `origin`.
"""

from __future__ import annotations

import dataclasses
import hmac
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, Self, TypeAlias

from framework.errors import Code, ConfigError

Parse: TypeAlias = Callable[[Any, str], Any]

NONE = "none"
OFF = "off"

DEFAULT = "default"
CODE = "code"
"""Origins of what no file and no variable has said."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def duration(value: Any, where: str = "duration") -> float:
    """Seconds of `"500ms"`, `"30s"`, `"5m"`, `"1h"` or a plain number of seconds.

    Raises:
        ConfigError: it is none of these, or negative.
    """
    if isinstance(value, str) and (match := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h)?\s*", value)):
        return float(match[1]) * _UNITS[match[2] or "s"]
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max:
        return float(value)
    raise ConfigError(f'{where} is {value!r}, which is no duration; write for example "500ms", "30s" or "5m"')


def period(value: Any, where: str) -> float:
    """Seconds, of a duration that may not be nothing."""
    seconds = duration(value, where)
    if seconds == 0:
        raise ConfigError(f"{where} is {value!r}; it must be more than 0")
    return seconds


def span(low: float, high: float) -> Callable[[Any, str], float]:
    """A parser of durations from `low` to `high` seconds."""

    def parse(value: Any, where: str) -> float:
        parsed = duration(value, where)
        if not low <= parsed <= high:
            raise ConfigError(f"{where} is {value!r}; it must be from {seconds(low)} to {seconds(high)}")
        return parsed

    return parse


def optional(parse: Parse) -> Parse:
    """A parser that takes `"none"` too, which is None."""
    return lambda value, where: None if value in (None, NONE) else parse(value, where)


def duration_or_ever(value: Any, where: str) -> float:
    """Seconds, more than 0; `"none"` is for ever."""
    return math.inf if value in (math.inf, NONE) else period(value, where)


def integer(low: int, high: int) -> Callable[[Any, str], int]:
    """A parser of whole numbers from `low` to `high`."""

    def parse(value: Any, where: str) -> int:
        try:
            parsed = int(value) if not isinstance(value, bool | float) else None
        except (TypeError, ValueError):
            parsed = None
        if parsed is None or not low <= parsed <= high:
            raise ConfigError(f"{where} is {value!r}; it must be a whole number from {low} to {high}")
        return parsed

    return parse


def workers(value: Any, where: str) -> int | Literal["auto"]:
    """How many processes: a number, or `"auto"`."""
    if value == "auto":
        return "auto"
    try:
        return integer(1, 1024)(value, where)
    except ConfigError as error:
        raise ConfigError(f'{error}, or "auto" for one per CPU') from None


def number(low: float, high: float) -> Callable[[Any, str], float]:
    """A parser of numbers from `low` to `high`."""

    def parse(value: Any, where: str) -> float:
        try:
            parsed = None if isinstance(value, bool) else float(value)
        except (TypeError, ValueError, OverflowError):
            parsed = None
        if parsed is None or not low <= parsed <= high:
            raise ConfigError(f"{where} is {value!r}; it must be a number from {low:g} to {high:g}")
        return parsed

    return parse


def boolean(value: Any, where: str) -> bool:
    """True or false, as TOML or the environment says it."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ConfigError(f"{where} is {value!r}; it must be true or false")
    return value


def text(value: Any, where: str) -> str:
    """Text."""
    if not isinstance(value, str):
        raise ConfigError(f"{where} is {value!r}; it must be text")
    return value


class Secret:
    """Text that nobody is to read by chance: in a log, a traceback or a list of settings it is hidden."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The text itself."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret()"

    def __str__(self) -> str:
        return "***" if self._value else ""


def secret(value: Any, where: str) -> Secret:
    """Text that is hidden from now on. Raises ConfigError, which does not show it either."""
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be text")
    return Secret(value)


def choice(*choices: str) -> Callable[[Any, str], str]:
    """A parser of one of these words."""

    def parse(value: Any, where: str) -> str:
        if value not in choices:
            raise ConfigError(f"{where} is {value!r}; choose one of {', '.join(choices)}")
        return str(value)

    return parse


def codes(value: Any, where: str) -> frozenset[Code]:
    """Status codes, by their names: a list, or one text with commas."""
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple | set | frozenset):
        raise ConfigError(f'{where} is {value!r}; it must be a list of codes, for example ["UNAVAILABLE"]')
    found = set()
    for name in names:
        code = name if isinstance(name, Code) else Code.__members__.get(str(name).strip().upper())
        if code is None or code is Code.OK:
            known = {each.name: each for each in Code if each is not Code.OK}
            raise ConfigError(f"{where} has {name!r}, which is no code of a failure.{suggest(str(name), known)}")
        found.add(code)
    return frozenset(found)


def suggest(name: str, known: Mapping[str, Any]) -> str:
    """The end of a message about a name that does not exist."""
    close = get_close_matches(name, known, 1)
    return f" Did you mean {close[0]}?" if close else f" There are: {', '.join(sorted(known))}"


def setting(default: Any, parse: Parse) -> Any:
    """A field of a Table."""
    return field(default=default, metadata={"parse": parse})


def table(default: Any, kind: type[Table], *, off: Mapping[str, Any] | None = None) -> Any:
    """A field of a Table that is a Table itself; in a file `"off"` stands for the settings `off`, if there are any."""
    return field(default=default, metadata={"table": kind, "off": off})


@dataclass(frozen=True, slots=True)
class Table:
    """A frozen dataclass whose fields know how to parse themselves.

    Attributes:
        said: what a file or a variable said, by the field's name: where it stands there, and its value.
    """

    # Any: of a type of its own, `BackoffSettings(**changes)` would not pass type checks.
    said: Any = field(default_factory=dict, kw_only=True, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Settings made in code are held to the same rules. Raises ConfigError."""
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if "parse" in f.metadata and value != f.default:
                f.metadata["parse"](value, f"{type(self).__name__}.{f.name}")

    @classmethod
    def parse(cls, given: Any, where: str, base: Self | None = None) -> Self:
        """Settings from a table of a file over `base`, field by field.

        Raises:
            ConfigError: a name that does not exist, or a value that cannot be used.
        """
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where} is {given!r}; it must be a table")
        fields = {f.name: f for f in dataclasses.fields(cls) if f.metadata}
        values: dict[str, Any] = {}
        said = dict(base.said) if base is not None else {}
        for name, value in given.items():
            path = f"{where}.{name}" if where else name
            if name not in fields:
                raise ConfigError(f"{path} is not a setting.{suggest(name, fields)}")
            f = fields[name]
            inner = getattr(base, name, None) if base is not None else f.default
            values[name] = parse_field(f, value, path, inner)
            said[name] = (path, values[name])
        return dataclasses.replace(base, **values, said=said) if base is not None else cls(**values, said=said)

    def origin(self, name: str) -> str:
        """Where the value of a field comes from: its place in a file, a variable's name, DEFAULT or CODE."""
        value = getattr(self, name)
        where, said = self.said.get(name, (DEFAULT, type(self).__dataclass_fields__[name].default))
        return where if said == value else CODE


def split_methods(given: Any, where: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """What a table says itself, and the tables of single methods in it."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{where} is {given!r}; it must be a table")
    methods = given.get("methods", {})
    if not isinstance(methods, Mapping):
        raise ConfigError(f"{where}.methods is {methods!r}; it must be a table")
    return {name: value for name, value in given.items() if name != "methods"}, methods


def parse_field(f: dataclasses.Field[Any], value: Any, where: str, base: Any = None) -> Any:
    """The value of one field; of a nested table over `base`."""
    kind = f.metadata.get("table")
    if kind is None:
        return f.metadata["parse"](value, where)
    if f.metadata["off"] is not None:
        if value == OFF:
            value = f.metadata["off"]
        elif not isinstance(value, Mapping):
            raise ConfigError(f'{where} is {value!r}; it must be a table, or "off"')
    return kind.parse(value, where, base)


def leaves(
    kind: type[Table], prefix: tuple[str, ...] = (), *, switches: bool = False
) -> Iterator[tuple[tuple[str, ...], dataclasses.Field[Any]]]:
    """Every setting that is one value, nested ones too: its path and its field.

    Args:
        switches: the tables that can be "off" as well, before what is in them.
    """
    for f in dataclasses.fields(kind):
        if "parse" in f.metadata:
            yield (*prefix, f.name), f
        elif "table" in f.metadata:
            if switches and f.metadata["off"] is not None:
                yield (*prefix, f.name), f
            yield from leaves(f.metadata["table"], (*prefix, f.name), switches=switches)


def replaced(settings: Any, path: tuple[str, ...], value: Any, where: str) -> Any:
    """Settings with another value at a path; `where` is who says so."""
    name, *rest = path
    new = replaced(getattr(settings, name), tuple(rest), value, where) if rest else value
    return dataclasses.replace(settings, **{name: new}, said={**settings.said, name: (where, new)})


def shown(f: dataclasses.Field[Any], value: Any) -> str:
    """The value of a setting as a file would say it."""
    if value is None or value == math.inf:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, frozenset):
        return ", ".join(code.name for code in sorted(value)) or NONE
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or NONE
    if isinstance(value, float):
        return seconds(value) if _is_time(f.metadata["parse"]) else f"{value:g}"
    return str(value) or '""'


def seconds(value: float) -> str:
    """A length of time as a file would say it: `500ms`, `1.5s`, `5m`."""
    for unit, size in (("h", 3600), ("m", 60)):
        if value and value % size == 0:
            return f"{value / size:g}{unit}"
    return f"{value * 1000:g}ms" if 0 < value < 1 else f"{value:g}s"


def _is_time(parse: Parse) -> bool:
    try:
        return bool(parse("1s", "") == 1.0)
    except ConfigError:
        return False


def check(settings: Table, name: str) -> None:
    """Raise ConfigError when a field of settings made in code has a value that its parser would refuse."""
    for f in dataclasses.fields(settings):
        if "parse" in f.metadata:
            f.metadata["parse"](getattr(settings, f.name), f"{name}.{f.name}")
