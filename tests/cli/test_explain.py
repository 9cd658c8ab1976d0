"""`framework explain`: how calls of a method are made, and who says so."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from framework.cli import main
from tests.cli.lab import PROTO, Serving, framework, serving, write

OPTIONS = """rpc Greet(Text) returns (Text) {
    option idempotency_level = NO_SIDE_EFFECTS;
    option (framework.method) = { retry: { attempts: 2 } criticality: SHEDDABLE };
  }"""
GREET = "rpc Greet(Text) returns (Text);"

SETTINGS = """
registry = "sqlite:///registry.db"
[client]
timeout = "5s"
[client.lab]
retry.backoff.initial = "50ms"
[client.lab.methods.Greet]
attempt_timeout = "300ms"
"""

EXPECTED = """\
lab.v1.Lab/Greet (Text) returns (Text)
called by clients of lab; proto from WHERE, settings from framework.toml

- A call that names no timeout has 5s; one attempt has 300ms of it.
- If it provably was not sent, it goes to another endpoint at once.
- If it fails with UNKNOWN, INTERNAL, UNAVAILABLE or DATA_LOSS or takes longer than an attempt may, it is made again
  once more on another endpoint, because the proto says NO_SIDE_EFFECTS.
- It waits 50ms before that, then 2 times as long each time, 1s at most, all +-20%.
- If it has no answer when 98% of calls would have theirs, it is made a second time on another endpoint, and the first
  answer counts.
- At most 1000 calls of this method are out at a time, and 1000 wait; more fail at once.
- Where not all calls can be served, it is SHEDDABLE, unless the caller says otherwise.
- An endpoint is taken out of use for a while after 5 failures in a row or 50% failures within 10s.

setting                 value                                       from
timeout                 5s                                          framework.toml [client]
attempt_timeout         300ms                                       framework.toml [client.lab.methods.Greet]
idempotent              true                                        proto idempotency_level
retry.attempts          2                                           proto option
retry.codes             UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS   default
retry.backoff.initial   50ms                                        framework.toml [client.lab]
retry.backoff.factor    2                                           default
retry.backoff.maximum   1s                                          default
hedge.extra_load        0.02                                        default
hedge.delay             none                                        default
hedge.attempts          2                                           default
bulkhead.calls          1000                                        default
bulkhead.queue          1000                                        default
breaker                 true                                        default
criticality             SHEDDABLE                                   proto option

35 more settings, of lab as a whole, are at their defaults: --all shows them
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the module `lab_service`, its proto and settings."""
    proto = PROTO.replace("package lab.v1;", 'package lab.v1;\nimport "framework/options.proto";')
    folder = write(tmp_path_factory.mktemp("explain"), proto.replace(GREET, OPTIONS))
    (folder / "framework.toml").write_text(SETTINGS)
    return folder


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Serving]:
    """A service that runs, in the registry of that directory."""
    with serving(folder) as server:
        yield server


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """The command in this process, in that directory: its exit code and what it prints."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> tuple[int, str, str]:
        code, (printed, message) = main(["explain", *arguments]), capsys.readouterr()
        return code, "\n".join(line.rstrip() for line in printed.split("\n")), message

    return run


def test_a_running_service(lab: Serving, folder: Path) -> None:
    """What the instance says of its proto, what the settings say, and sentences that tell what it means."""
    ran = framework(folder, "explain", "lab.v1.Lab/Greet")
    printed = "\n".join(line.rstrip() for line in ran.stdout.split("\n"))
    assert (ran.returncode, ran.stderr) == (0, "")
    assert printed == EXPECTED.replace("WHERE", "the running lab")


def test_an_instance(lab: Serving, here: Here) -> None:
    """`--target` asks this one; the settings are those of the service nevertheless."""
    assert here("lab.v1.Lab/Greet", "--target", lab.address) == (
        0,
        EXPECTED.replace("WHERE", f"the running {lab.address}"),
        "",
    )


def test_nobody_serves_it(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files in ./protos say the same; but whoever has said where it runs is told that it does not."""
    url = f"sqlite:///{tmp_path}/none.db"
    expected = EXPECTED.replace("WHERE", "protos/lab/v1/lab.proto")
    assert here("lab.v1.Lab/Greet", "--protos", "protos") == (0, expected, "")
    code, printed, message = here("lab.v1.Lab/Greet", "--registry", url)
    assert (code, printed, f"nothing is registered in {url}" in message) == (2, "", True)
    monkeypatch.setenv("FRAMEWORK_REGISTRY", url)
    assert here("lab.v1.Lab/Greet") == (0, expected, "")


def test_the_environment(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable is named as it is written."""
    monkeypatch.setenv("FRAMEWORK_CLIENT_TIMEOUT", "7s")
    _, printed, _ = here("lab.v1.Lab/Greet", "--protos", "protos")
    row = next(line for line in printed.splitlines() if line.startswith("timeout "))
    assert row.split(maxsplit=2) == ["timeout", "7s", "environment FRAMEWORK_CLIENT_TIMEOUT"]


def test_json(here: Here) -> None:
    """One document for the machine: values as numbers, who says so, and the sentences."""
    code, printed, message = here("lab.v1.Lab/Greet", "--protos", "protos", "--json")
    document = json.loads(printed)
    settings = document.pop("settings")
    assert (code, message) == (0, "")
    assert len(document.pop("sentences")) == 8
    assert document == {
        "method": "lab.v1.Lab/Greet",
        "service": "lab",
        "file": "framework.toml",
        "idempotency_level": "NO_SIDE_EFFECTS",
    }
    assert settings["attempt_timeout"] == {"value": 0.3, "from": "framework.toml [client.lab.methods.Greet]"}
    assert settings["retry.codes"] == {"value": ["UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"], "from": "default"}
    assert settings["breaker.slow"] == {"value": None, "from": "default"}


def test_everything(here: Here) -> None:
    """With `--all` there is nothing that is not shown."""
    _, printed, _ = here("lab.v1.Lab/Greet", "--protos", "protos", "--all")
    assert [line.split() for line in printed.splitlines() if line.startswith(("max_message", "breaker.open "))] == [
        ["breaker.open", "5s", "default"],
        ["max_message", "4194304", "default"],
    ]
    assert "--all" not in printed


def test_another_file(here: Here, tmp_path: Path) -> None:
    """`--config` names it, and so does the table."""
    file = tmp_path / "other.toml"
    file.write_text("[client.lab]\nhedge = 'off'\n")
    _, printed, _ = here("lab.v1.Lab/Greet", "--protos", "protos", "--config", str(file))
    sentence = next(line for line in printed.splitlines() if "hedged" in line)
    row = next(line for line in printed.splitlines() if line.startswith("hedge "))
    assert sentence.startswith("- It is not hedged: hedge.extra_load is 0 (")
    assert row.split(maxsplit=2)[:2] == ["hedge", "off"]
    assert "other.toml" in printed


def test_settings_of_a_method_that_is_not_there(here: Here, tmp_path: Path) -> None:
    """What looks like a slip of the pen is said; a method of another service of the same name is none."""
    file = tmp_path / "slip.toml"
    file.write_text("[client.lab.methods]\nGret.timeout = 1\nRefund.timeout = 1\n")
    code, _, message = here("lab.v1.Lab/Greet", "--protos", "protos", "--config", str(file))
    expected = "framework: there are settings of a method Gret, which Lab does not have. Did you mean Greet?\n"
    assert (code, message) == (0, expected)


def test_a_name_that_is_a_guess(here: Here, tmp_path: Path) -> None:
    """Who is not registered may be called otherwise in the settings; it can be said."""
    file = tmp_path / "names.toml"
    file.write_text("[client.laboratory]\ntimeout = 1\n")
    arguments = ("--protos", "protos", "--config", str(file))
    _, printed, message = here("lab.v1.Lab/Greet", *arguments)
    expected = "lab is a guess, and the settings are of laboratory: say NAME/lab.v1.Lab/METHOD if it is one"
    assert (printed.splitlines()[1].startswith("called by clients of lab;"), message) == (
        True,
        f"framework: {expected}\n",
    )
    _, printed, message = here("laboratory/lab.v1.Lab/Greet", *arguments)
    assert (printed.splitlines()[1].startswith("called by clients of laboratory;"), message) == (True, "")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("Greet",),
            "'Greet' names no method; write package.Service/Method, for example grpc.health.v1.Health/Check",
        ),
        (
            ("lab.v1.Lab/Gret", "--protos", "protos"),
            "lab.v1.Lab has no method Gret. It has: Add, Count, Greet, Shout",
        ),
        (("lab.v1.Lob/Greet", "--protos", "protos"), "no proto in protos declares lab.v1.Lob. There are: lab.v1.Lab"),
        (
            ("lab.v1.Lab/Greet", "--protos", "nowhere"),
            "there is no directory nowhere. Name the one that holds your .proto files.",
        ),
        (
            ("lab.v1.Lab/Greet", "--target", "127.0.0.1:1"),
            "UNAVAILABLE: cannot connect to 127.0.0.1:1; does it listen there? "
            "[grpc.reflection.v1.ServerReflection/ServerReflectionInfo] (or read its proto: --protos DIR)",
        ),
        (("lab.v1.Lab/Greet", "--config", "nowhere.toml"), "there is no settings file nowhere.toml"),
    ],
)
def test_what_cannot_be_explained(here: Here, arguments: tuple[str, ...], expected: str) -> None:
    """One line that says what is wrong, and what there is."""
    assert here(*arguments) == (2, "", f"framework: {expected}\n")


def test_nobody_serves_it_and_there_is_no_proto(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said how else the proto could be found."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/none.db"
    expected = f"nothing is registered in {url}. Start a service, or say where with --target"
    code, printed, message = here("lab.v1.Lab/Greet", "--registry", url)
    assert (code, printed) == (2, "")
    assert message == f"framework: {expected} (or read its proto: --protos DIR)\n"
