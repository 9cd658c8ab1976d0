"""One format for logging, structlog and ours; nothing secret in it."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from framework.call import Call, current
from framework.logs import configure_logging
from framework.logs.output import Output
from framework.observation import LogSettings
from framework.parsing import Secret
from tests.observation.test_redaction import CARD


class Terminal(io.StringIO):
    """A stream that a person looks at."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Logging as a program finds it that has set up nothing; pytest would add its own handlers when the test begins."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers.clear()
    monkeypatch.setattr(root, "addHandler", lambda handler: None)
    structlog.reset_defaults()
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """The lines without their times."""
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    for line in found:
        assert line.pop("time").endswith("Z")
    return found


def test_logging_and_structlog_write_the_same(unset: None) -> None:
    """Standard logging flows into the format of structlog, extras and all."""
    stream = io.StringIO()
    configure_logging(fields={"service": "catalog"}, stream=stream)
    logging.getLogger("shop").warning("%d left of %s", 3, "p1", extra={"product": "p1"})
    structlog.get_logger("shop").warning("3 left of p1", product="p1")
    line = {"level": "warning", "logger": "shop", "event": "3 left of p1", "product": "p1", "service": "catalog"}
    assert [line, line] == lines(stream)


def test_text_on_a_terminal_and_json_elsewhere(unset: None) -> None:
    """Unless the settings say which."""
    shown = {}
    for stream in (Terminal(), io.StringIO()):
        for form in ("auto", "text", "json"):
            stream.truncate(0)
            stream.seek(0)
            configure_logging(LogSettings(format=form), stream=stream)
            logging.getLogger("framework").info("serves")
            shown[type(stream).__name__, form] = stream.getvalue().startswith("{")
    assert shown == {
        ("Terminal", "auto"): False,
        ("Terminal", "text"): False,
        ("Terminal", "json"): True,
        ("StringIO", "auto"): True,
        ("StringIO", "text"): False,
        ("StringIO", "json"): True,
    }


def test_nothing_secret_is_written(unset: None) -> None:
    """Marked fields, secrets of settings, credentials in metadata, arguments, extras, fields and exceptions."""
    for form in ("text", "json"):
        stream = io.StringIO()
        configure_logging(LogSettings(format=form), stream=stream)
        metadata = (("authorization", "Bearer topsecret1"), ("x-api-key", "topsecret2"))
        log = logging.getLogger("shop")
        log.info("got %s from %s", CARD, metadata)
        log.info(CARD)
        log.info("%(card)s %(password)s", {"card": CARD, "password": "topsecret3"})
        log.info("signed with %s", Secret("topsecret4"), extra={"api_key": "topsecret5", "request": CARD})
        structlog.get_logger().info("got", request=CARD, metadata=metadata, token="topsecret6")
        try:
            raise ValueError("consul://me:topsecret7@127.0.0.1 said Bearer topsecret8")
        except ValueError:
            log.exception("it failed")
        said = stream.getvalue()
        assert len(said.splitlines()) >= 6
        for hidden in ("topsecret", "4111", "4000"):
            assert hidden not in said, said
        assert "Ada" in said


def test_line_names_the_call_that_is_served(unset: None) -> None:
    """A handler's own lines have its request id."""
    stream = io.StringIO()
    configure_logging(stream=stream)
    token = current.set(Call(None, None, request_id="abc-1"))  # type: ignore[arg-type]
    try:
        logging.getLogger("shop").info("hello")
    finally:
        current.reset(token)
    assert [line["request_id"] for line in lines(stream)] == ["abc-1"]


def test_logging_of_the_application_stays(unset: None) -> None:
    """Whoever has set up logging keeps what it has."""
    own = logging.NullHandler()
    logging.getLogger().handlers.append(own)
    logging.getLogger().setLevel(logging.ERROR)
    configure_logging(LogSettings(level="debug"))
    assert [own] == logging.getLogger().handlers
    assert logging.getLogger().level == logging.ERROR


def test_set_up_again_replaces_ours(unset: None) -> None:
    """The settings that hold are the last ones, and no line stands twice."""
    first, second = io.StringIO(), io.StringIO()
    configure_logging(stream=first)
    configure_logging(LogSettings(level="warning"), stream=second)
    logging.getLogger("shop").info("no")
    logging.getLogger("shop").warning("yes")
    assert first.getvalue() == ""
    assert [line["event"] for line in lines(second)] == ["yes"]


def test_what_cannot_be_written_as_json_is_written_otherwise(unset: None) -> None:
    """A line is never lost to what stands in it."""
    stream = io.StringIO()
    configure_logging(stream=stream)
    logging.getLogger("shop").info("odd", extra={"given": {(1, 2): object}, "more": {"\ud800"}})
    (line,) = lines(stream)
    assert line["event"] == "odd"


def test_repr() -> None:
    """Where it writes."""
    assert repr(Output(io.StringIO(), str, {})).startswith("<Output to <_io.StringIO")


def shown_as_text(unset: None, write: Any) -> list[str]:
    """The lines that a person sees, without their times."""
    stream = io.StringIO()
    configure_logging(LogSettings(format="text"), stream=stream)
    write(logging.getLogger("shop"))
    return [line[13:] if line[:1].isdigit() else line for line in stream.getvalue().splitlines()]


def test_text_of_callers_makes_no_lines(unset: None) -> None:
    """In text nothing that a caller has sent begins a line, or speaks to the terminal."""
    forged = "x\n12:00:00.000 [info     ] all is well\r\x1b[2J\x85\u2028\x9b"

    def write(log: logging.Logger) -> None:
        log.warning("no product %s", forged, extra={"id": "\x1b[2J", "ids": [forged]})

    (line,) = shown_as_text(unset, write)
    assert line.isprintable()
    assert line.startswith(r"[warning  ] no product x\n12:00:00.000 [info     ] all is well\r\x1b[2J\x85\u2028\x9b ")


def test_text_of_callers_in_tracebacks(unset: None) -> None:
    """A traceback keeps its lines, none of which begins where a line of the log does."""

    def write(log: logging.Logger) -> None:
        try:
            raise KeyError("x") from ValueError("x\n12:00:00.000 [info     ] all is well \x1b[2J")
        except KeyError as error:
            error.add_note("a\nb")
            log.exception("failed")

    _, *below = shown_as_text(unset, write)
    assert r"    12:00:00.000 [info     ] all is well \x1b[2J" in below
    assert [line for line in below if line and not (line.startswith("    ") and line.isprintable())] == []
    assert below[-3:] == ["    KeyError: 'x'", "    a", "    b"]


@pytest.mark.parametrize("form", ["text", "json"])
def test_credentials_in_objects(unset: None, form: Any) -> None:
    """What is no text is made text, and looked at as such."""
    stream = io.StringIO()
    configure_logging(LogSettings(format=form), stream=stream)
    error = ValueError("Authorization: Bearer abcdefgh12345")
    logging.getLogger("shop").error("failed", extra={"err": error, "all": [error]})
    assert "ValueError" in stream.getvalue() or form == "json"
    assert "abcdefgh" not in stream.getvalue()
