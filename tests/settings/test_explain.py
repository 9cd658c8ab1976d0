"""How calls are made, and who says so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from framework import ClientSettings, Code, HedgeSettings, Method, RetrySettings, Settings
from framework.call import Idempotency
from framework.explain import OWN, SHARED, Explanation, Row, explain
from framework.parsing import Table, leaves
from framework.policy import policy_of

Say = Mapping[str, Any]
"""What a layer says: values by their paths."""

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "timeout": st.integers(1, 9),
    "attempt_timeout": st.integers(1, 9),
    "retry.attempts": st.integers(1, 9),
    "retry.backoff.factor": st.integers(1, 9),
    "hedge.delay": st.integers(1, 9),
    "hedge.attempts": st.integers(2, 9),
    "bulkhead.calls": st.integers(1, 9),
    "bulkhead.queue": st.integers(1, 9),
}
"""Of every client, and of a method."""

ENDPOINTS: dict[str, st.SearchStrategy[Any]] = {
    "retry_budget.per_second": st.integers(1, 9),
    "breaker.consecutive": st.integers(1, 9),
    "subset": st.integers(1, 9),
}
"""Of every client, and not of a method."""

OF_A_METHOD: dict[str, st.SearchStrategy[Any]] = {
    "breaker": st.booleans(),
    "criticality": st.sampled_from(["CRITICAL", "SHEDDABLE"]),
    "idempotent": st.booleans(),
}


def layer(*groups: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Say]:
    """Some settings out of these."""
    return st.fixed_dictionaries({}, optional={name: one for group in groups for name, one in group.items()})


LAYERS = st.fixed_dictionaries(
    {
        "framework.toml [client]": layer(VALUES, ENDPOINTS),
        "framework.toml [client.methods.Get]": layer(VALUES, OF_A_METHOD),
        "framework.toml [client.catalog]": layer(VALUES, ENDPOINTS),
        "environment": layer(VALUES, ENDPOINTS),
        "proto option": layer(VALUES, OF_A_METHOD),
        "framework.toml [client.catalog.methods.Get]": layer(VALUES, OF_A_METHOD),
    }
)


def toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def explained(folder: Path, layers: Mapping[str, Say], level: Idempotency = Idempotency.IDEMPOTENT) -> Explanation:
    """What is explained of a method when the layers say this."""
    lines = []
    for name, said in layers.items():
        if name.startswith("framework.toml "):
            lines += [name.partition(" ")[2], *(f"{path} = {toml(value)}" for path, value in said.items())]
    file = folder / "framework.toml"
    file.write_text("\n".join(lines), encoding="utf-8")
    environ = {
        f"FRAMEWORK_CLIENT_{path.replace('.', '_').upper()}": str(v) for path, v in layers["environment"].items()
    }
    options: dict[str, Any] = {}
    for path, value in layers["proto option"].items():
        *outer, last = path.split(".")
        table = options
        for step in outer:
            table = table.setdefault(step, {})
        table[last] = value
    method: Method[Any, Any] = Method("shop.Catalog", "Get", object, object, idempotency=level, options=options)
    return explain(method, Settings.load(file, environ).client_for("catalog"), "framework.toml")


def value_of(explanation: Explanation, path: str) -> Any:
    return next((row.value for row in explanation.rows if row.name == path), None)


def another(value: Any) -> Any:
    """A value that a setting may have as well."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "SHEDDABLE" if value == "CRITICAL" else "CRITICAL"
    return value + 1 if value < 9 else 8


@given(LAYERS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_who_is_named_is_who_decides(tmp_path: Path, layers: dict[str, Say]) -> None:
    """Whatever is said where: when the one that is named says something else, so does the policy; when another does,
    nothing changes."""
    before = explained(tmp_path, layers)
    for row in before.rows:
        for name, said in layers.items():
            # Only whether a call may be made twice, and not hedging: that depends on it.
            if row.name in said and (row.name != "idempotent" or name == "proto option"):
                after = explained(tmp_path, {**layers, name: {**said, row.name: another(said[row.name])}})
                named = row.origin.startswith(name) if name == "environment" else row.origin == name
                assert (row.name, name, named) == (row.name, name, value_of(after, row.name) != row.value)


@given(LAYERS)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_explained_is_the_policy(tmp_path: Path, layers: dict[str, Say]) -> None:
    """Every value of the policy has a row, and no row says anything else."""
    explanation = explained(tmp_path, layers)
    policy = explanation.policy
    expected: dict[str, Any] = {}
    for name in OWN:
        value = getattr(policy, name)
        if isinstance(value, Table):
            expected |= {".".join((name, *path)): get(value, path) for path, _ in leaves(type(value))}
        elif name != "idle":
            expected[name] = value
    assert {row.name: row.value for row in explanation.rows if not row.shared} == expected


def get(value: Any, path: tuple[str, ...]) -> Any:
    for step in path:
        value = getattr(value, step)
    return value


def test_every_setting_has_its_row() -> None:
    """What a service can be set to is shown for its methods, all of it."""
    method: Method[Any, Any] = Method("a.A", "B", object, object, idempotency=Idempotency.IDEMPOTENT)
    shown = {row.name for row in explain(method, ClientSettings()).rows}
    assert {".".join(path) for path, _ in leaves(ClientSettings)} - {"idle"} - shown == set()
    assert set(SHARED) & set(OWN) == {"breaker"}


UNARY: Method[Any, Any] = Method("a.A", "Get", object, object)
SAFE: Method[Any, Any] = Method("a.A", "Get", object, object, idempotency=Idempotency.NO_SIDE_EFFECTS)
WATCH: Method[Any, Any] = Method(
    "a.A", "Watch", object, object, server_streaming=True, idempotency=Idempotency.NO_SIDE_EFFECTS
)
UPLOAD: Method[Any, Any] = Method("a.A", "Upload", object, object, client_streaming=True)

NO_MORE = ClientSettings(retry=RetrySettings(attempts=1), hedge=HedgeSettings(extra_load=0.0))
QUICK = ClientSettings(
    attempt_timeout=0.2,
    retry=RetrySettings(attempts=2, codes=frozenset({Code.UNAVAILABLE})),
    hedge=HedgeSettings(delay=0.05, attempts=3),
)


NO_NAME = "A call that names no timeout has"
ELSE = "Else a failed call is"
WORDS: list[tuple[Method[Any, Any], ClientSettings, tuple[str, ...]]] = [
    (UNARY, ClientSettings(), (f"{NO_NAME} 10s.",)),
    (UNARY, QUICK, (f"{NO_NAME} 10s; one attempt has 200ms of it.",)),
    (WATCH, ClientSettings(), (f"{NO_NAME} no deadline; its replies may be silent for 30s.",)),
    (WATCH, ClientSettings(idle=None), (f"{NO_NAME} no deadline; its replies may be silent for ever.",)),
    (UNARY, NO_MORE, (f"{ELSE} not made again: retry.attempts is 1 (code).",)),
    (UPLOAD, QUICK, (f"{ELSE} not made again, because its requests are a stream and have been sent.",)),
    (
        UNARY,
        QUICK,
        (
            f"{ELSE} made again only when the server says when, once more, because nobody says that it is idempotent.",
            "If it is: `option idempotency_level = IDEMPOTENT;` in the proto,",
            "or `idempotent = true` in the settings of the method.",
        ),
    ),
    (
        SAFE,
        QUICK,
        (
            "If it fails with UNAVAILABLE or takes longer than an attempt may, it is made again once more on another",
            "endpoint, because the proto says NO_SIDE_EFFECTS.",
        ),
    ),
    (
        WATCH,
        QUICK,
        (
            "If it fails with UNAVAILABLE, it is made again once more on another endpoint, as long as no reply has",
            "begun, because the proto says NO_SIDE_EFFECTS.",
        ),
    ),
    (
        SAFE,
        ClientSettings(),
        (
            "If it has no answer when 98% of calls would have theirs, it is made a second time on another endpoint,",
            "and the first answer counts.",
        ),
    ),
    (
        SAFE,
        QUICK,
        (
            "If it has no answer after 50ms, it is made again, 3 times in all, on another endpoint,",
            "and the first answer counts.",
        ),
    ),
    (SAFE, NO_MORE, ("It is not hedged: hedge.extra_load is 0 (code).",)),
    (UNARY, ClientSettings(), ("It is not hedged: not idempotent.",)),
    (WATCH, ClientSettings(), ("It is not hedged: a stream is never made twice.",)),
    (
        UNARY,
        ClientSettings(),
        ("At most 1000 calls of this method are out at a time, and 1000 wait; more fail at once.",),
    ),
    (
        UNARY,
        ClientSettings(),
        (
            "An endpoint is taken out of use for a while after 5 failures in a row",
            "or 50% failures within 10s.",
        ),
    ),
]


@pytest.mark.parametrize(("method", "own", "expected"), WORDS)
def test_sentences(method: Method[Any, Any], own: ClientSettings, expected: tuple[str, ...]) -> None:
    """What the values mean, in words."""
    assert " ".join(expected) in explain(method, own).sentences


def test_order_of_say(tmp_path: Path) -> None:
    """The method's own settings, the proto, the environment, the service, every client; then the default."""
    order = [
        "framework.toml [client.catalog.methods.Get]",
        "proto option",
        "environment",
        "framework.toml [client.catalog]",
        "framework.toml [client]",
    ]
    layers: dict[str, Say] = {name: {"attempt_timeout": number} for number, name in enumerate(order, 1)}
    seen = []
    for name in [*order, "default"]:
        row = next(row for row in explained(tmp_path, layers).rows if row.name == "attempt_timeout")
        seen.append((row.value, row.origin.startswith(name)))
        layers[name] = {}
    assert seen == [(1, True), (2, True), (3, True), (4, True), (5, True), (None, True)]


def test_rows() -> None:
    """A value as the file would say it, and its origin."""
    row = next(row for row in explain(SAFE, QUICK).rows if row.name == "hedge.delay")
    assert row == Row("hedge.delay", 0.05, "50ms", "code")


def test_off_is_off_whatever_stood_below(tmp_path: Path) -> None:
    """`"off"` leaves nothing of what the service says."""
    file = tmp_path / "framework.toml"
    file.write_text('[client]\nhedge.delay = "1s"\n[client.catalog.methods.Get]\nhedge = "off"', encoding="utf-8")
    assert policy_of(SAFE, Settings.load(file, {}).client_for("catalog")).hedge is None


def test_the_environment_is_below_the_method(tmp_path: Path) -> None:
    """What a method's table leaves out is as it is for the service, the environment included."""
    file = tmp_path / "framework.toml"
    file.write_text(
        "[client.catalog]\nretry.attempts = 2\n[client.catalog.methods.Get]\nretry.backoff.factor = 3", encoding="utf-8"
    )
    own = Settings.load(file, {"FRAMEWORK_CLIENT_RETRY_ATTEMPTS": "7"}).client_for("catalog")
    retry = policy_of(SAFE, own).retry
    assert (retry.attempts, retry.backoff.factor) == (7, 3.0)


def test_none_is_for_ever(tmp_path: Path) -> None:
    """A method may be without an end that its service has."""
    file = tmp_path / "framework.toml"
    file.write_text('[client.catalog.methods.Watch]\nidle = "none"', encoding="utf-8")
    own = Settings.load(file, {}).client_for("catalog")
    assert own.methods["Watch"].idle == math.inf
    row = next(row for row in explain(WATCH, own, "F").rows if row.name == "idle")
    assert row == Row("idle", None, "none", "F [client.catalog.methods.Watch]")
