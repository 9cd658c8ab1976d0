"""Rules of how much a message may hold, looked at first: `max_items`, `max_pairs`, `max_len`, `max_bytes`.

The library looks at an expression in CEL before it looks at the size of what the expression is about, and one that
compares each with each takes a second for 15 kB. The caller is told what the library would say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from google.protobuf.descriptor import Descriptor

from framework.security.rules import field_rules

IGNORE_ALWAYS = 3


class Breach(NamedTuple):
    """A field that holds too much."""

    field: str
    description: str
    rule: str


Measure: TypeAlias = Callable[[Any], Breach | None]


class _Limit(NamedTuple):
    """The most that one field may hold."""

    name: str
    most: int
    size: Callable[[Any], int]
    description: str
    rule: str


class _Inside(NamedTuple):
    """A field with messages that have limits themselves."""

    name: str
    kind: str  # one, list or map
    plan: _Plan


class _Plan:
    """What of a message is measured; complete once all that it may hold is known."""

    __slots__ = ("inside", "limits")

    def __init__(self) -> None:
        self.limits: list[_Limit] = []
        self.inside: list[_Inside] = []


def measure(kind: Descriptor) -> Measure | None:
    """What measures messages of a type; None when nothing in it has a limit."""
    plans: dict[str, _Plan] = {}
    plan = _plan(kind, plans)
    if not any(one.limits for one in plans.values()):
        return None
    return lambda message: _breach(message, plan, "")


def _plan(kind: Descriptor, plans: dict[str, _Plan]) -> _Plan:
    if (found := plans.get(kind.full_name)) is not None:
        return found
    plan = plans[kind.full_name] = _Plan()
    for field in kind.fields:
        rules = field_rules(field)
        if rules is not None:
            if rules.ignore == IGNORE_ALWAYS:
                continue
            plan.limits += _limits(field.name, rules)
        inner, shape = field.message_type, "list" if field.is_repeated else "one"
        if inner is not None and inner.GetOptions().map_entry:
            inner, shape = inner.fields_by_name["value"].message_type, "map"
        if inner is not None and _limited(inner, set()):
            plan.inside.append(_Inside(field.name, shape, _plan(inner, plans)))
    return plan


def _limited(kind: Descriptor, seen: set[str]) -> bool:
    """Whether a message, or one that it may hold, has a limit."""
    seen.add(kind.full_name)
    for field in kind.fields:
        rules = field_rules(field)
        if rules is not None and rules.ignore != IGNORE_ALWAYS and _limits(field.name, rules):
            return True
        inner: Descriptor | None = field.message_type
        if inner is not None and inner.full_name not in seen and _limited(inner, seen):
            return True
    return False


def _limits(name: str, rules: Any) -> list[_Limit]:
    kind = rules.WhichOneof("type")
    given: Any = getattr(rules, kind) if kind in ("string", "bytes", "repeated", "map") else None
    return [
        _Limit(name, getattr(given, rule), size, words.format(getattr(given, rule)), f"{kind}.{rule}")
        for of, rule, size, words in _RULES
        if of == kind and given.HasField(rule)
    ]


_RULES: tuple[tuple[str, str, Callable[[Any], int], str], ...] = (
    ("repeated", "max_items", len, "must contain no more than {} item(s)"),
    ("map", "max_pairs", len, "map must be at most {} entries"),
    ("string", "max_len", len, "must be at most {} characters"),
    ("string", "max_bytes", lambda text: len(text.encode()), "must be at most {} bytes"),
    ("bytes", "max_len", len, "must be at most {} bytes"),
)


def _breach(message: Any, plan: _Plan, path: str) -> Breach | None:
    for limit in plan.limits:
        if limit.size(getattr(message, limit.name)) > limit.most:
            return Breach(f"{path}{limit.name}", limit.description, limit.rule)
    for name, kind, inner in plan.inside:
        if kind == "one":
            found = _breach(getattr(message, name), inner, f"{path}{name}.") if message.HasField(name) else None
            if found is not None:
                return found
            continue
        held = getattr(message, name)
        for key, one in enumerate(held) if kind == "list" else held.items():
            if (found := _breach(one, inner, "")) is not None:
                shown = f'"{key}"' if isinstance(key, str) else str(key).lower()
                return found._replace(field=f"{path}{name}[{shown}].{found.field}")
    return None
