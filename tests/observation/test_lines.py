"""One line for a call: which calls have one, at which level, and what stands in it."""

from __future__ import annotations

import io
import json
import logging
import random
import time
from typing import Any

import pytest

from framework.call import OK, Call, Method, Outcome
from framework.errors import Code, Internal, NotFound, Unavailable
from framework.identity import Identity
from framework.logs import CallLines, configure_logging
from framework.logs.lines import level_of
from framework.observation import Allowance, LogSettings
from framework.server.context import incoming_call
from framework.server.pipeline import status_of
from tests.observation.test_output import unset

__all__ = ["unset"]

METHOD = Method("shop.v1.Shop", "Buy", object, object)
HEALTH = Method("grpc.health.v1.Health", "Check", object, object)


class Now:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def __call__(self) -> float:
        return self.time


def written(
    settings: LogSettings, *outcomes: Outcome, side: Any = "server", method: Method[Any, Any] = METHOD, now: Any = None
) -> list[dict[str, Any]]:
    """The lines that calls which ended so have, without time and logger."""
    stream = io.StringIO()
    configure_logging(settings, stream=stream)
    line = CallLines(settings, clock=now or Now(), rng=random.Random(1))(side, method, "")
    if line is None:
        return []
    for outcome in outcomes:
        call = Call(method, None, request_id="r-1", peer="ipv4:10.0.0.9:1")
        line(call, outcome, 0.0123456)
    found = [json.loads(one) for one in stream.getvalue().splitlines()]
    for one in found:
        assert one.pop("logger") == "framework.calls"
        assert one.pop("time").startswith("2023-11-14T22:13:2")
    return found


def test_what_stands_in_it(unset: None) -> None:
    """Method, code, duration, peer, ids; of a failure why."""
    same = {"event": "served", "method": "shop.v1.Shop/Buy", "ms": 12.346, "peer": "ipv4:10.0.0.9:1"}
    assert written(LogSettings(), OK, Outcome.of(NotFound("no product p9"))) == [
        {"level": "info", **same, "code": "OK", "request_id": "r-1"},
        {"level": "info", **same, "code": "NOT_FOUND", "request_id": "r-1", "error": "no product p9"},
    ]


def test_what_else_stands_in_it(unset: None) -> None:
    """Attempts, endpoints, identity and trace, when there are some; and no credentials."""
    stream = io.StringIO()
    configure_logging(LogSettings(), stream=stream)
    line = CallLines(LogSettings())("client", METHOD, "shop")
    assert line is not None
    call = Call(METHOD, None, (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),))
    call.attempt = 3
    call.identity = Identity("ann")
    error = Unavailable("Bearer abcdefgh was refused", endpoints=("10.0.0.1:1", "10.0.0.2:1"))
    line(call, Outcome.of(error), 1.0)
    (found,) = [json.loads(one) for one in stream.getvalue().splitlines()]
    assert (found["event"], found["target"], found["attempts"], found["identity"]) == ("called", "shop", 3, "ann")
    assert found["endpoints"] == ["10.0.0.1:1", "10.0.0.2:1"]
    assert found["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert "span_id" not in found
    assert found["error"] == "Bearer [REDACTED] was refused"


@pytest.mark.parametrize(
    ("code", "served", "made"),
    [
        (Code.OK, "INFO", "DEBUG"),
        (Code.NOT_FOUND, "INFO", "DEBUG"),
        (Code.CANCELLED, "INFO", "DEBUG"),
        (Code.DEADLINE_EXCEEDED, "WARNING", "WARNING"),
        (Code.UNAUTHENTICATED, "WARNING", "WARNING"),
        (Code.INTERNAL, "ERROR", "WARNING"),
    ],
)
def test_levels(code: Code, served: str, made: str) -> None:
    """By what it means for those who run the server, or the client."""
    assert (served, made) == tuple(logging.getLevelName(level_of(code, side)) for side in ("server", "client"))


@pytest.mark.parametrize(
    ("code", "level"),
    [(Code.OK, "DEBUG"), (Code.CANCELLED, "DEBUG"), (Code.INTERNAL, "ERROR"), (Code.NOT_FOUND, "INFO")],
)
def test_what_everybody_asks_all_the_time(code: Code, level: str) -> None:
    """Health and reflection are of no interest while they answer."""
    assert logging.getLevelName(level_of(code, "server", "grpc.health.v1.Health")) == level


def test_health_checks_have_lines_only_when_they_fail(unset: None) -> None:
    """A check every second would bury all else."""
    found = written(LogSettings(), OK, Outcome.of(Internal("x")), method=HEALTH)
    assert [line["code"] for line in found] == ["INTERNAL"]


@pytest.mark.parametrize(
    ("settings", "codes"),
    [
        (LogSettings(), ["OK", "INTERNAL"]),
        (LogSettings(server="failures"), ["INTERNAL"]),
        (LogSettings(server="none"), []),
        (LogSettings(level="error"), ["INTERNAL"]),
        (LogSettings(successes=0.0), ["INTERNAL"]),
    ],
)
def test_which_calls_have_one(unset: None, settings: LogSettings, codes: list[str]) -> None:
    """As the settings say."""
    assert codes == [line["code"] for line in written(settings, OK, Outcome.of(Internal("x")))]


def test_client_calls_that_went_well_are_debug(unset: None) -> None:
    """Those that failed are warnings."""
    outcomes = (OK, Outcome.of(Internal("x")))
    assert [one["code"] for one in written(LogSettings(), *outcomes, side="client")] == ["INTERNAL"]
    assert [one["code"] for one in written(LogSettings(level="debug"), *outcomes, side="client")] == ["OK", "INTERNAL"]


def test_more_than_so_many_a_second_have_none(unset: None) -> None:
    """Calls that go well do not use up the lines of those that fail, and the next line tells how many had none."""
    now = Now()
    stream = io.StringIO()
    configure_logging(LogSettings(), stream=stream)
    line = CallLines(LogSettings(per_second=2), clock=now)("server", METHOD, "")
    assert line is not None
    for outcome in (*[OK] * 5, Outcome.of(Internal("x"))):
        line(Call(METHOD, None), outcome, 0.1)
    now.time += 1
    line(Call(METHOD, None), OK, 0.1)
    found = [json.loads(one) for one in stream.getvalue().splitlines()]
    assert [one["code"] for one in found] == ["OK", "OK", "INTERNAL", "OK"]
    assert [one.get("without_line") for one in found] == [None, None, None, 3]


def test_share_of_those_that_went_well() -> None:
    """About so many of them."""
    allowance = Allowance(1_000_000, 0.25, random.Random(3))
    taken = sum(allowance.take(1.0) for _ in range(4000))
    assert 900 < taken < 1100
    assert allowance.without == 4000 - taken


def test_logging_of_the_application_gets_them(unset: None, caplog: pytest.LogCaptureFixture) -> None:
    """As records like others, with the fields in them."""
    logging.getLogger().handlers.append(caplog.handler)
    caplog.set_level(logging.INFO)
    line = CallLines(LogSettings())("server", METHOD, "")
    assert line is not None
    line(Call(METHOD, None, request_id="r-1"), OK, 0.5)
    (record,) = caplog.records
    assert record.getMessage() == "served shop.v1.Shop/Buy OK in 500.0 ms"
    assert vars(record)["fields"]["request_id"] == "r-1"


def test_stream_that_cannot_be_written_to_fails_no_call(unset: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A line that cannot be written is lost; who called knows nothing of it."""
    stream = io.StringIO()
    configure_logging(LogSettings(), stream=stream)
    stream.close()
    line = CallLines(LogSettings())("server", METHOD, "")
    assert line is not None
    line(Call(METHOD, None), OK, 0.5)
    assert "closed file" in capsys.readouterr().err


def test_a_call_without_a_line_costs_nearly_nothing(unset: None) -> None:
    """Far less than one with a line: it is found out before anything is put together."""
    configure_logging(LogSettings(), stream=io.StringIO())
    call = Call(METHOD, None, request_id="r-1", peer="p")

    def fastest(settings: LogSettings) -> float:
        line = CallLines(settings)("server", METHOD, "")
        assert line is not None
        times = []
        for _ in range(20):
            start = time.thread_time()
            for _ in range(200):
                line(call, OK, 0.5)
            times.append(time.thread_time() - start)
        return min(times)

    with_line = fastest(LogSettings(per_second=1_000_000))
    assert fastest(LogSettings(successes=0.0)) < with_line / 8
    assert fastest(LogSettings(server="failures")) < with_line / 20


async def test_a_flood_of_failures_that_do_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    """The log tells of a few each second, in short."""
    call = incoming_call(Method("a.b.C", "M", object, object), (), deadline=None, peer="test")
    for _ in range(1000):
        status_of(call, NotFound("x" * 8000))
    assert 1 <= len(caplog.records) <= 20
    assert all(len(record.getMessage()) < 300 for record in caplog.records)
