"""Settings: a file, the environment over it, and one clear message for each mistake."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from framework import ClientSettings, ConfigError, Drain, MethodSettings, ServerSettings, Settings
from framework.parsing import duration

EVERYTHING = """
registry = "consul://127.0.0.1:8500"

[server]
host = "0.0.0.0"
port = 8080
advertise = "node7:80"
max_message = 1048576
drain = { delay = "500ms", grace = "1m", streams = 7 }
workers = "auto"
connection_age = "1m"

[client]
timeout = "5s"

[client.catalog]
timeout = "1s"
idle = "none"
balancer = "round_robin"
connect_timeout = "100ms"

[client.catalog.methods.GetProduct]
timeout = "200ms"
idle = "2s"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "framework.toml"


def load(file: Path, content: str = "", **environ: str) -> Settings:
    """The settings of a file and an environment."""
    file.write_text(content, encoding="utf-8")
    return Settings.load(file, environ)


def message(file: Path, content: str = "", **environ: str) -> str:
    """What is said of a mistake, without the name of the file."""
    with pytest.raises(ConfigError) as caught:
        load(file, content, **environ)
    return str(caught.value).replace(f"{file}: ", "FILE ")


def test_defaults(file: Path) -> None:
    """Nothing has to be set."""
    settings = load(file)
    assert (settings.registry, settings.server.host, settings.server.port) == ("local", "127.0.0.1", 0)
    assert settings.server.drain == Drain(delay=1.0, grace=30.0, streams=5.0)
    assert (settings.client.timeout, settings.client.idle, settings.client.balancer) == (10.0, 30.0, "peak_ewma")


def test_whole_file(file: Path) -> None:
    """Everything that can be set, once."""
    settings = load(file, EVERYTHING)
    assert settings.registry == "consul://127.0.0.1:8500"
    drain = Drain(delay=0.5, grace=60.0, streams=7.0)
    assert settings.server == ServerSettings(
        host="0.0.0.0",
        port=8080,
        advertise="node7:80",
        max_message=1 << 20,
        drain=drain,
        workers="auto",
        connection_age=60.0,
    )
    catalog = settings.client_for("catalog")
    assert (catalog.timeout, catalog.idle, catalog.balancer, catalog.connect_timeout) == (1.0, None, "round_robin", 0.1)
    assert dict(catalog.methods) == {"GetProduct": MethodSettings(timeout=0.2, idle=2.0)}
    assert (settings.client_for("other").timeout, settings.client_for("other").balancer) == (5.0, "peak_ewma")


def test_service_inherits_from_every_client(file: Path) -> None:
    """What a service's own table does not say is that of `[client]`."""
    settings = load(file, '[client]\ntimeout = "5s"\nidle = "7s"\n[client.catalog]\ntimeout = "1s"')
    assert (settings.client_for("catalog").timeout, settings.client_for("catalog").idle) == (1.0, 7.0)


def test_environment_over_the_file(file: Path) -> None:
    """The environment names a setting by its path, and stands above the file, for services too."""
    settings = load(
        file,
        EVERYTHING,
        FRAMEWORK_REGISTRY="static://127.0.0.1:1",
        FRAMEWORK_SERVER_PORT="9090",
        FRAMEWORK_SERVER_WORKERS="3",
        FRAMEWORK_SERVER_DRAIN_GRACE="5s",
        FRAMEWORK_CLIENT_TIMEOUT="9s",
    )
    assert (settings.registry, settings.server.port, settings.server.host) == ("static://127.0.0.1:1", 9090, "0.0.0.0")
    assert settings.server.drain == Drain(delay=0.5, grace=5.0, streams=7.0)
    assert settings.server.workers == 3
    assert (settings.client.timeout, settings.client_for("catalog").timeout) == (9.0, 9.0)
    assert settings.client_for("catalog").balancer == "round_robin"


def test_file_named_by_the_environment(file: Path) -> None:
    """FRAMEWORK_CONFIG names the file."""
    file.write_text('registry = "static://127.0.0.1:1"', encoding="utf-8")
    assert Settings.load(environ={"FRAMEWORK_CONFIG": str(file)}).registry == "static://127.0.0.1:1"


def test_file_of_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it is framework.toml in the working directory, which need not be there."""
    monkeypatch.chdir(file.parent)
    assert Settings.load(environ={}) == Settings()
    file.write_text('registry = "static://127.0.0.1:1"', encoding="utf-8")
    assert Settings.load(environ={}).registry == "static://127.0.0.1:1"


def test_named_file_that_is_missing(file: Path) -> None:
    """A file that somebody named must be there."""
    with pytest.raises(ConfigError) as caught:
        Settings.load(environ={"FRAMEWORK_CONFIG": str(file)})
    assert str(caught.value) == f"there is no settings file {file}"


def test_file_that_is_no_toml(file: Path) -> None:
    """The message has the file and the place."""
    assert message(file, "registry = ?").startswith("FILE Invalid value (at line 1, column 12)")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a = " + "1" * 5000, "FILE Exceeds the limit (4300 digits)"),
        ("[server]\nport = 0x" + "f" * 5000, "FILE Exceeds the limit (4300 digits)"),
        ("[client]\ntimeout = " + "1" * 400, "FILE client.timeout is 111"),
        ("[client]\nhedge.extra_load = " + "1" * 400, "FILE client.hedge.extra_load is 111"),
        ("a = " + "[" * 100_000, "FILE maximum recursion depth exceeded"),
    ],
    ids=["decimal", "hexadecimal", "duration", "share", "nested"],
)
def test_more_than_python_reads(file: Path, content: str, expected: str) -> None:
    """A number of too many digits, or too many brackets, are mistakes of the file like others."""
    assert message(file, content).startswith(expected)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A directory, or bytes that are no text, are named."""
    with pytest.raises(ConfigError, match="Is a directory"):
        Settings.load(tmp_path, {})
    (tmp_path / "latin.toml").write_bytes(b'registry = "\xff"')
    with pytest.raises(ConfigError, match=r"latin\.toml: .*utf-8"):
        Settings.load(tmp_path / "latin.toml", {})


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('registri = "x"', "FILE registri is not a setting. Did you mean registry?"),
        ("[servers]", "FILE servers is not a setting. Did you mean server?"),
        ("[server]\nprt = 1", "FILE server.prt is not a setting. Did you mean port?"),
        ('[server]\ndrain = { dely = "1s" }', "FILE server.drain.dely is not a setting. Did you mean delay?"),
        ('[client]\ntimeuot = "1s"', "FILE client.timeuot is not a setting. Did you mean timeout?"),
        ('[client.catalog]\nbalance = "x"', "FILE client.catalog.balance is not a setting. Did you mean balancer?"),
        (
            '[client.catalog.methods.Get]\ntimout = "1s"',
            "FILE client.catalog.methods.Get.timout is not a setting. Did you mean timeout?",
        ),
    ],
)
def test_misspelt_settings(file: Path, content: str, expected: str) -> None:
    """A name that is not a setting is named by its path, with the nearest that is."""
    assert message(file, content) == expected


def test_setting_like_no_other(file: Path) -> None:
    """Where nothing is near, all are listed."""
    known = "access, admin, auth, client, gateway, registry, server, telemetry"
    assert message(file, "xyzzy = 1") == f"FILE xyzzy is not a setting. There are: {known}"


NO_DURATION = 'which is no duration; write for example "500ms", "30s" or "5m"'


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("registry = 7", "FILE registry is 7; it must be text"),
        ("server = 7", "FILE server is 7; it must be a table"),
        ("client = 7", "FILE client is 7; it must be a table"),
        ("[server]\nhost = 7", "FILE server.host is 7; it must be text"),
        ("[server]\nport = 65536", "FILE server.port is 65536; it must be a whole number from 0 to 65535"),
        ("[server]\nport = -1", "FILE server.port is -1; it must be a whole number from 0 to 65535"),
        ("[server]\nport = true", "FILE server.port is True; it must be a whole number from 0 to 65535"),
        ("[server]\nport = 1.5", "FILE server.port is 1.5; it must be a whole number from 0 to 65535"),
        (
            "[server]\nmax_message = 1",
            "FILE server.max_message is 1; it must be a whole number from 1024 to 2147483647",
        ),
        (
            "[server]\nworkers = 0",
            'FILE server.workers is 0; it must be a whole number from 1 to 1024, or "auto" for one per CPU',
        ),
        ('[server]\nconnection_age = "1ms"', "FILE server.connection_age is '1ms'; it must be at least 100ms"),
        ("[server]\ndrain = 7", "FILE server.drain is 7; it must be a table"),
        ('[server]\ndrain = { grace = "long" }', f"FILE server.drain.grace is 'long', {NO_DURATION}"),
        ("[client]\ntimeout = -1", f"FILE client.timeout is -1, {NO_DURATION}"),
        ('[client]\ntimeout = "none"', f"FILE client.timeout is 'none', {NO_DURATION}"),
        ("[client]\ntimeout = inf", f"FILE client.timeout is inf, {NO_DURATION}"),
        ("[client]\ntimeout = nan", f"FILE client.timeout is nan, {NO_DURATION}"),
        ("[client]\ntimeout = true", f"FILE client.timeout is True, {NO_DURATION}"),
        (
            '[client]\nbalancer = "random"',
            "FILE client.balancer is 'random'; choose one of peak_ewma, least_loaded, round_robin, weighted",
        ),
        ("[client]\nkeepalive.interval = '2d'", f"FILE client.keepalive.interval is '2d', {NO_DURATION}"),
        ("[client]\nkeepalive.interval = '1ms'", "FILE client.keepalive.interval is '1ms'; it must be from 1s to 24h"),
        ("[client]\nmethods = 7", "FILE client.methods is 7; it must be a table"),
        ("[client.catalog]\nmethods = 7", "FILE client.catalog.methods is 7; it must be a table"),
        ("[client.catalog.methods]\nGet = 7", "FILE client.catalog.methods.Get is 7; it must be a table"),
    ],
)
def test_values_that_cannot_be_used(file: Path, content: str, expected: str) -> None:
    """A value that cannot be used is named by its path, with what can."""
    assert message(file, content) == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "FRAMEWORK_SERVER_PORT",
            "http",
            "FRAMEWORK_SERVER_PORT is 'http'; it must be a whole number from 0 to 65535",
        ),
        ("FRAMEWORK_CLIENT_TIMEOUT", "soon", f"FRAMEWORK_CLIENT_TIMEOUT is 'soon', {NO_DURATION}"),
        ("FRAMEWORK_SERVER_DRAIN_DELAY", "-1s", f"FRAMEWORK_SERVER_DRAIN_DELAY is '-1s', {NO_DURATION}"),
        (
            "FRAMEWORK_SERVER_PROT",
            "1",
            "FRAMEWORK_SERVER_PROT in the environment is not a setting. Did you mean FRAMEWORK_SERVER_PORT?",
        ),
        (
            "FRAMEWORK_WORKERS",
            "2",
            "FRAMEWORK_WORKERS in the environment is not a setting. Did you mean FRAMEWORK_SERVER_WORKERS or"
            " FRAMEWORK_GATEWAY_WORKERS?",
        ),
        ("FRAMEWORK_CLIENT_HEDGE", "on", "FRAMEWORK_CLIENT_HEDGE is 'on'; it must be a table, or \"off\""),
    ],
)
def test_mistakes_in_the_environment(file: Path, name: str, value: str, expected: str) -> None:
    """A variable that cannot be used is named as it is written there."""
    assert message(file, **{name: value}) == expected


def test_what_the_environment_turns_off(file: Path) -> None:
    """What a file can turn off with a word, the environment can too."""
    client = load(file, FRAMEWORK_CLIENT_HEDGE="off", FRAMEWORK_CLIENT_HEDGE_ATTEMPTS="3").client
    assert (client.hedge.extra_load, client.hedge.attempts) == (0.0, 3)
    assert load(file, FRAMEWORK_SERVER_LIMITER="off").server.limiter.maximum == 0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("500ms", 0.5),
        ("30s", 30.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("1h", 3600.0),
        ("7", 7.0),
        (" 2 s ", 2.0),
        (0, 0.0),
        (0.25, 0.25),
    ],
)
def test_durations(value: Any, expected: float) -> None:
    """A number with its unit, or seconds."""
    assert duration(value) == pytest.approx(expected)


@pytest.mark.parametrize("value", ["", "s", "1 day", "1,5s", "-1s", "1s 2s", None, [], True, -0.1])
def test_no_durations(value: Any) -> None:
    """Anything else is none, and the message says what it was and where."""
    with pytest.raises(ConfigError) as caught:
        duration(value, "client.timeout")
    assert str(caught.value) == f"client.timeout is {value!r}, {NO_DURATION}"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ServerSettings(port=70_000),
        lambda: ServerSettings(max_message=1),
        lambda: Drain(grace=-1.0),
        lambda: ClientSettings(timeout=-1.0),
        lambda: ClientSettings(balancer="random"),  # type: ignore[arg-type]  # the mistake
        lambda: MethodSettings(timeout=-1.0),
    ],
    ids=["port", "max_message", "grace", "timeout", "balancer", "method"],
)
def test_settings_made_in_code(make: Any) -> None:
    """Settings are checked when they are made, in code as in a file."""
    with pytest.raises(ConfigError):
        make()


@pytest.mark.parametrize("settings", [Settings(), ServerSettings(), ClientSettings(), Drain(), MethodSettings()])
def test_settings_cannot_be_changed(settings: Any) -> None:
    """Settings stay as they were made."""
    for field in dataclasses.fields(settings):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, None)
