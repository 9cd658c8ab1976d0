"""The settings file while the process runs."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from framework import (
    Call,
    ClientSettings,
    ConfigError,
    DeadlineExceeded,
    Handler,
    Method,
    Reply,
    ResourceExhausted,
    RpcError,
    ServerSettings,
    Service,
    Settings,
)
from framework.policy import BulkheadSettings, MethodSettings
from framework.reload import SettingsFile, changes, follow, watch
from framework.testing import Network, run_virtual
from tests.cli.lab import serving, write
from tests.invariants.echo import EchoClient, EchoMethods, text

LOOKS = 2.5
"""Seconds in which a change is seen and has settled."""


class Follower:
    """Something made with client settings."""

    def __init__(self) -> None:
        self.applied: list[ClientSettings] = []
        self.refuses = False

    def apply(self, settings: ClientSettings) -> None:
        if self.refuses:
            raise ConfigError("not with me")
        self.applied.append(settings)

    def __repr__(self) -> str:
        return "<Follower>"


class Heard(logging.Handler):
    """Tells when something is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.something = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.something.set()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "framework.toml"


def replace(file: Path, content: str) -> None:
    """Write a file as editors do: beside it, then over it."""
    new = file.with_suffix(".new")
    new.write_text(content, encoding="utf-8")
    new.replace(file)


def remove(file: Path) -> None:
    """Leave nothing there."""
    file.unlink()


def load(file: Path, content: str = "", **environ: str) -> Settings:
    """The settings of a file and an environment."""
    replace(file, content)
    return Settings.load(file, environ)


def lines(caplog: pytest.LogCaptureFixture, file: Path) -> list[str]:
    """What was logged of the settings, in short."""
    said = [record.getMessage() for record in caplog.records if record.name == "framework.settings"]
    return [line.replace(str(file), "FILE") for line in said]


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "framework.settings")


def differences(file: Path, old: str, new: str) -> str:
    """The changes between two files, those that need a restart with an exclamation mark."""
    found = changes(load(file, old), load(file, new))
    return " ".join(f"{change}{'!' if change.restart else ''}" for change in found)


CATALOG, GET = "[client.catalog]\n", "[client.catalog.methods.Get]\n"
FAILURES = "UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("", "", ""),
        ("", '[client]\ntimeout = "10s"', ""),
        ("", '[client]\ntimeout = "500ms"', "client.timeout 10s -> 500ms"),
        ("", '[client]\nidle = "none"', "client.idle 30s -> none"),
        ("", '[client]\nbalancer = "round_robin"', "client.balancer peak_ewma -> round_robin"),
        ("", "[client]\nretry.attempts = 5", "client.retry.attempts 3 -> 5"),
        ("", "[client]\nretry.backoff.factor = 3", "client.retry.backoff.factor 2 -> 3"),
        ("", '[client]\nretry.codes = ["ABORTED"]', f"client.retry.codes {FAILURES} -> ABORTED"),
        ("", '[client]\nhedge = "off"', "client.hedge.extra_load 0.02 -> 0"),
        ("", f'{CATALOG}timeout = "1s"', "client.catalog.timeout 10s -> 1s"),
        (f'{CATALOG}timeout = "1s"', f'{CATALOG}timeout = "5m"', "client.catalog.timeout 1s -> 5m"),
        (f'{CATALOG}timeout = "1s"', "", "client.catalog.timeout 1s -> 10s"),
        (CATALOG, f'[client]\ntimeout = "2s"\n{CATALOG}', "client.timeout 10s -> 2s"),
        ("", f'{GET}timeout = "1s"', "client.catalog.methods.Get.timeout unset -> 1s"),
        (f'{GET}idle = "none"', "", "client.catalog.methods.Get.idle none -> unset"),
        ("", f"{GET}retry.attempts = 5", "client.catalog.methods.Get.retry.attempts 3 -> 5"),
        (GET, f"[client]\nretry.attempts = 5\n{GET}", "client.retry.attempts 3 -> 5"),
        ("", f"{GET}breaker = false", "client.catalog.methods.Get.breaker unset -> false"),
        (CATALOG, f'[client.methods.Get]\ntimeout = "1s"\n{CATALOG}', "client.methods.Get.timeout unset -> 1s"),
        ("", '[client]\nkeepalive.timeout = "1s"', "client.keepalive.timeout 5s -> 1s!"),
        ("", 'registry = "static://a:1"', "registry local -> static://a:1!"),
        ("", "[server]\nport = 1\ndrain.grace = 5", "server.port 0 -> 1! server.drain.grace 30s -> 5s!"),
    ],
)
def test_changes(file: Path, old: str, new: str, expected: str) -> None:
    """Each setting that differs is named where it is said, with its values as the file would say them."""
    assert differences(file, old, new) == expected


@pytest.mark.virtual_time
async def test_a_change_is_applied(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever follows a service whose settings change is given them, and one line says what is new."""
    settings = load(file, '[client.catalog]\ntimeout = "1s"')
    catalog, orders = Follower(), Follower()
    follow(settings, "catalog", catalog)
    follow(settings, "orders", orders)
    replace(file, '[client.catalog]\ntimeout = "500ms"')
    await asyncio.sleep(LOOKS)
    assert ([one.timeout for one in catalog.applied], orders.applied) == ([0.5], [])
    assert lines(caplog, file) == ["FILE has changed: client.catalog.timeout 1s -> 500ms"]


@pytest.mark.virtual_time
async def test_the_environment_stays_above_the_file(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a variable says does not change with the file."""
    settings = load(file, FRAMEWORK_CLIENT_TIMEOUT="7s")
    catalog = Follower()
    follow(settings, "catalog", catalog)
    replace(file, '[client]\ntimeout = "1s"\nidle = "2s"')
    await asyncio.sleep(LOOKS)
    assert [(one.timeout, one.idle) for one in catalog.applied] == [(7.0, 2.0)]
    assert lines(caplog, file) == ["FILE has changed: client.idle 30s -> 2s"]


@pytest.mark.virtual_time
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[client]\ntimeout = -1", "client.timeout is -1, which is no duration"),
        ("[client", "Expected ']' at the end of a table declaration"),
        ("[client]\ntimeuot = 1", "client.timeuot is not a setting. Did you mean timeout?"),
    ],
)
async def test_a_file_that_cannot_be_used(
    file: Path, content: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is refused with one line, however long it stays; the settings stay, and the next valid file counts."""
    settings = load(file)
    catalog = Follower()
    follow(settings, "catalog", catalog)
    replace(file, content)
    await asyncio.sleep(60)
    (line,) = lines(caplog, file)
    assert (line.startswith(f"FILE: {reason}"), line.endswith("; the settings stay as they were")) == (True, True)
    assert catalog.applied == []
    replace(file, '[client]\ntimeout = "2s"')
    await asyncio.sleep(LOOKS)
    assert [one.timeout for one in catalog.applied] == [2.0]


@pytest.mark.virtual_time
async def test_a_mistake_that_is_taken_back(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has mended the file sees that it counts again."""
    settings = load(file, "")
    follow(settings, "catalog", catalog := Follower())
    for content in ("[client", "", "# only a comment"):
        replace(file, content)
        await asyncio.sleep(LOOKS)
    assert catalog.applied == []
    assert lines(caplog, file)[1:] == ["FILE can be used again; the settings stay as they were"]


@pytest.mark.virtual_time
async def test_a_missing_file(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that goes changes nothing; when it is there again, what it says counts."""
    settings = load(file, '[client]\ntimeout = "1s"')
    follow(settings, "catalog", catalog := Follower())
    remove(file)
    await asyncio.sleep(60)
    assert catalog.applied == []
    replace(file, '[client]\ntimeout = "2s"')
    await asyncio.sleep(LOOKS)
    assert [one.timeout for one in catalog.applied] == [2.0]
    expected = ["FILE is gone; the settings stay as they were", "FILE has changed: client.timeout 1s -> 2s"]
    assert lines(caplog, file) == expected


@pytest.mark.virtual_time
async def test_a_file_that_was_away(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has read that it is gone is told that it is back, unchanged."""
    settings = load(file, '[client]\ntimeout = "1s"')
    follow(settings, "catalog", catalog := Follower())
    remove(file)
    await asyncio.sleep(LOOKS)
    replace(file, '[client]\ntimeout = "1s"')
    await asyncio.sleep(LOOKS)
    expected = [
        "FILE is gone; the settings stay as they were",
        "FILE can be used again; the settings stay as they were",
    ]
    assert (catalog.applied, lines(caplog, file)) == ([], expected)


@pytest.mark.virtual_time
async def test_a_file_that_is_not_there_yet(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file of the working directory counts from when it is written, and wherever the process has gone since."""
    monkeypatch.chdir(file.parent)
    settings = Settings.load(environ={})
    follow(settings, "catalog", catalog := Follower())
    monkeypatch.chdir("/")
    await asyncio.sleep(60)
    replace(file, '[client]\ntimeout = "2s"')
    await asyncio.sleep(LOOKS)
    assert [one.timeout for one in catalog.applied] == [2.0]
    assert lines(caplog, file) == ["FILE has changed: client.timeout 10s -> 2s"]


@pytest.mark.virtual_time
async def test_half_a_file_is_not_read(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While a file is being written, what is there of it says nothing."""
    settings = load(file, '[client]\ntimeout = "1s"\nidle = "1s"')
    follow(settings, "catalog", catalog := Follower())
    with file.open("w") as writing:
        for line in ("[client]", 'timeout = "1s"', 'idle = "2s"'):
            print(line, file=writing, flush=True)
            await asyncio.sleep(1)
    await asyncio.sleep(LOOKS)
    assert [(one.timeout, one.idle) for one in catalog.applied] == [(1.0, 2.0)]
    assert lines(caplog, file) == ["FILE has changed: client.idle 1s -> 2s"]


@pytest.mark.virtual_time
async def test_what_needs_a_restart(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Server and registry are logged as such, and beside them the rest takes effect."""
    settings = load(file)
    follow(settings, "catalog", catalog := Follower())
    replace(file, 'registry = "static://a:1"\n[server]\nport = 1\n[client]\ntimeout = "1s"')
    await asyncio.sleep(LOOKS)
    assert [one.timeout for one in catalog.applied] == [1.0]
    assert lines(caplog, file) == [
        "FILE has changed: client.timeout 10s -> 1s",
        "FILE has changed: registry local -> static://a:1, server.port 0 -> 1; this takes effect after a restart",
    ]


@pytest.mark.virtual_time
async def test_what_the_command_line_says_is_no_change(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A registry or port that stands above the file is not compared with it."""
    settings = load(file)
    settings = dataclasses.replace(settings, registry="static://a:1", server=ServerSettings(port=7))
    follow(settings, "catalog", Follower())
    replace(file, '[client]\ntimeout = "1s"')
    stop = watch(settings)
    await asyncio.sleep(LOOKS)
    stop()
    assert lines(caplog, file) == ["FILE has changed: client.timeout 10s -> 1s"]


@pytest.mark.virtual_time
async def test_settings_of_code_stay(file: Path) -> None:
    """Settings from no file, or changed since, are not what the file speaks of."""
    read = load(file)
    changed = dataclasses.replace(read, client=ClientSettings(timeout=7.0))
    follow(Settings(), "catalog", made := Follower())
    follow(changed, "catalog", mixed := Follower())
    follow(read, "catalog", plain := Follower())
    replace(file, '[client]\nidle = "1s"')
    await asyncio.sleep(LOOKS)
    assert (made.applied, mixed.applied, len(plain.applied)) == ([], [], 1)


@pytest.mark.virtual_time
async def test_a_late_follower(file: Path) -> None:
    """One made with settings that are out of date is given the present ones at once; one with newer ones is not set
    back."""
    old = load(file, '[client]\ntimeout = "1s"')
    follow(old, "catalog", first := Follower())
    new = load(file, '[client]\ntimeout = "2s"')
    follow(new, "catalog", ahead := Follower())
    assert ahead.applied == []
    await asyncio.sleep(LOOKS)
    follow(old, "catalog", late := Follower())
    assert [[one.timeout for one in each.applied] for each in (first, ahead, late)] == [[2.0], [2.0], [2.0]]


@pytest.mark.virtual_time
async def test_one_that_refuses(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Settings that do not go with what one channel's protos say do not keep the others from them."""
    settings = load(file)
    bad, good = Follower(), Follower()
    bad.refuses = True
    follow(settings, "catalog", bad)
    follow(settings, "catalog", good)
    replace(file, '[client]\ntimeout = "1s"')
    await asyncio.sleep(LOOKS)
    assert len(good.applied) == 1
    assert lines(caplog, file)[1:] == ["<Follower> keeps its settings: not with me"]


@pytest.mark.virtual_time
async def test_one_file_is_looked_at_once(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Many channels and a service follow the same file, and a change is logged once."""
    settings = load(file)
    followers = [Follower() for _ in range(10)]
    for follower in followers:
        follow(settings, "catalog", follower)
    told: list[Settings] = []
    stop = watch(settings, told.append)
    for seconds in (1, 2):
        replace(file, f"[client]\ntimeout = {seconds}")
        await asyncio.sleep(LOOKS)
        stop()
    assert [len(follower.applied) for follower in followers] == [2] * 10
    assert [one.client.timeout for one in told] == [1.0]
    assert len(lines(caplog, file)) == 2


@pytest.mark.virtual_time
async def test_those_who_leave(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A channel that was closed is not told any more, one that is dropped is not kept, and with the last the looking
    ends."""
    settings = load(file)
    closed, dropped = Follower(), Follower()
    leave = follow(settings, "catalog", closed)
    follow(settings, "catalog", dropped)
    leave()
    leave()
    del dropped
    gc.collect()
    replace(file, '[client]\ntimeout = "1s"')
    await asyncio.sleep(LOOKS)
    assert (closed.applied, lines(caplog, file)) == ([], [])
    follow(Settings.load(file, {}), "catalog", again := Follower())  # and begins again
    replace(file, '[client]\ntimeout = "2s"')
    await asyncio.sleep(LOOKS)
    assert [one.timeout for one in again.applied] == [2.0]


@pytest.mark.virtual_time
async def test_a_channel_follows(file: Path, network: Network) -> None:
    """A client that is in use goes by the new settings from its next call on."""
    settings = load(file, '[client.echo]\ntimeout = "1s"')
    network.script("echo").on(EchoMethods.UnaryUnary).hang()
    channel = network.connect("echo", settings=settings)
    client = EchoClient(channel)
    follow(settings, "echo", channel)
    took = []
    for timeout in (1, 0.5, 3):
        replace(file, f"[client.echo]\ntimeout = {timeout}")
        await asyncio.sleep(LOOKS)
        start = asyncio.get_running_loop().time()
        with pytest.raises(DeadlineExceeded):
            await client.UnaryUnary(text("x"))
        took.append(asyncio.get_running_loop().time() - start)
    assert took == pytest.approx([1, 0.5, 3])


async def test_calls_in_flight_still_count(network: Network) -> None:
    """Where only so many calls may be out, a change of the settings lets in no more."""
    network.script("echo").on(EchoMethods.UnaryUnary).hang()
    channel = network.connect("echo", settings=Settings(client=ClientSettings(bulkhead=BulkheadSettings(2, 0))))
    client = EchoClient(channel)
    first = asyncio.ensure_future(client.UnaryUnary(text("x"), timeout=60))
    await asyncio.sleep(0)
    channel.apply(ClientSettings(bulkhead=BulkheadSettings(1, 0)))
    with pytest.raises(ResourceExhausted, match="1 calls are out"):
        await client.UnaryUnary(text("x"))
    first.cancel()


async def test_misspelt_methods(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    """Settings and fallbacks of a method that nobody calls, with a name like one that is, are not passed over."""

    async def answer(request: Any, error: RpcError) -> Any:
        return request

    settings = ClientSettings(methods={"UnaryUnry": MethodSettings(timeout=1), "Other": MethodSettings(timeout=1)})
    network.script("echo").on(EchoMethods.UnaryUnary).reply(text("y"))
    channel = network.connect("echo", settings=Settings(client=settings), fallbacks={"UnaryUnarry": answer})
    await EchoClient(channel).UnaryUnary(text("x"))
    channel.apply(settings)
    doubts = [record.message for record in caplog.records if "Did you mean" in record.message]
    assert doubts == [
        "echo: no method UnaryUnarry is called here, but there is a fallback for it. Did you mean UnaryUnary?",
        "echo: no method UnaryUnry is called here, but there are settings of it. Did you mean UnaryUnary?",
    ]


async def test_interceptors_are_bound_once(network: Network) -> None:
    """What an interceptor keeps of a method outlives a change of the settings."""
    bound: list[str] = []
    calls: list[int] = []

    def count(method: Method[Any, Any], next: Handler) -> Handler:
        bound.append(method.name)
        of_this_method: list[Call] = []

        async def handler(call: Call) -> Reply:
            of_this_method.append(call)
            calls.append(len(of_this_method))
            return await next(call)

        return handler

    network.script("echo").on(EchoMethods.UnaryUnary).reply(text("y"))
    channel = network.connect("echo", interceptors=[count])
    client = EchoClient(channel)
    for timeout in (1, 2, 3):
        channel.apply(ClientSettings(timeout=timeout))
        await client.UnaryUnary(text("x"))
    assert (bound.count("UnaryUnary"), calls) == (1, [1, 2, 3])


def test_no_loop(file: Path) -> None:
    """What is made before there is an event loop is made all the same."""
    leave = follow(load(file), "catalog", Follower())
    leave()


def test_another_loop(file: Path) -> None:
    """A file is followed on the loop that runs."""
    settings = load(file)
    kept = Follower()

    async def main(follower: Follower, seconds: int) -> list[float]:
        follow(settings, "catalog", follower)
        replace(file, f"[client]\ntimeout = {seconds}")
        await asyncio.sleep(LOOKS)
        return [one.timeout for one in follower.applied]

    assert run_virtual(main(kept, 1)) == [1.0]
    assert run_virtual(main(Follower(), 2))[-1] == 2.0


async def test_a_look_reads_nothing_that_has_not_changed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While nothing changes, a look is one stat."""
    source = load(file).source
    assert source is not None
    followed = SettingsFile(source)
    monkeypatch.setattr(Settings, "load", None)
    followed.look()
    os.utime(file, ns=(1, 1))
    followed.look()  # changed, and not settled
    with pytest.raises(TypeError):
        followed.look()


def test_repr(file: Path) -> None:
    """The file, and how many follow it."""
    source = load(file).source
    assert source is not None
    assert repr(SettingsFile(source)) == f"<SettingsFile {file} followed by 0>"


async def test_a_service_follows_its_file(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While it runs, changes of its file are read; on a real clock."""
    monkeypatch.setattr("framework.reload.INTERVAL", 0.01)
    settings = load(file, 'registry = "none"')
    service = Service("empty", settings=settings)
    service.may_be_empty = True
    async with service.running():
        logging.getLogger("framework.settings").addHandler(heard := Heard())
        replace(file, 'registry = "none"\n[server]\nport = 1')
        await asyncio.wait_for(heard.something.wait(), 10)
        logging.getLogger("framework.settings").removeHandler(heard)
    assert lines(caplog, file) == ["FILE has changed: server.port 0 -> 1; this takes effect after a restart"]


def test_framework_run_follows_its_file(tmp_path: Path) -> None:
    """A person who edits framework.toml sees in the log what it did."""
    folder = write(tmp_path)
    file = folder / "framework.toml"
    file.write_text('registry = "sqlite:///registry.db"\n')
    with serving(folder) as server:
        replace(file, 'registry = "sqlite:///registry.db"\n[client.catalog]\ntimeout = "1s"\n')
        line = server.line("client.catalog.timeout 10s -> 1s")
        assert line.endswith(f"[info     ] {file} has changed: client.catalog.timeout 10s -> 1s\n")
        replace(file, "registry = 7\n")
        assert server.line("registry is 7; it must be text").endswith("; the settings stay as they were\n")
        assert server.end()[0] == 0
