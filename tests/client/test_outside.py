"""What somebody outside hears of a call that is passed on for him, and what the log is told."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest

from framework.call import Call, Method
from framework.client.attempts import Attempts, Tries
from framework.client.budget import RetryBudget
from framework.client.ending import status
from framework.client.pool import Pool
from framework.errors import Code, Unavailable
from framework.percentile import Latencies
from framework.policy import ClientSettings, policy_of

METHOD: Method[Any, Any] = Method("lab.Shop", "Buy", object, object)

REFUSED = "failed to connect to all addresses; last error: UNKNOWN: ipv4:10.0.0.1:80: Connection refused"
TOO_LARGE = "SERVER: Received message larger than max (9 vs. 4)"
LIMITED = "up to 4 (`max_message` in its settings)"


def call_for(caller: str | None) -> Call:
    """A call that has reached an instance."""
    call = Call(METHOD, None, peer="shop.internal:80")
    call.caller = caller
    return call


@pytest.mark.parametrize(
    ("code", "message", "outside"),
    [
        (Code.UNAVAILABLE, REFUSED, "lab.Shop cannot be reached now"),
        (Code.UNAVAILABLE, "shop.internal:80: Connection reset", "lab.Shop cannot be reached now"),
        (Code.UNKNOWN, "unix:/run/shop.sock has failed", "lab.Shop has failed"),
        (Code.DEADLINE_EXCEEDED, "Deadline Exceeded", "no answer from lab.Shop before the deadline"),
    ],
)
def test_addresses(code: Code, message: str, outside: str) -> None:
    """They stand in the log only; a caller in this process is told what it always was."""
    here = status(call_for(None), code, message, ())
    there = status(call_for(""), code, message, ())
    assert (here.inside, there.message, there.inside) == ("", outside, here.message)
    assert "80" in here.message or "unix:" in here.message
    assert outside in str(there)


@pytest.mark.parametrize(
    ("message", "trailer"),
    [("no stock before 12:30", ()), ("Socket closed", ()), (REFUSED, (("framework-origin", "handler"),))],
)
def test_what_the_service_says_itself(message: str, trailer: Any) -> None:
    """It is passed on as it is, and so is what names nobody."""
    error = status(call_for("ipv4:127.0.0.1:1"), Code.UNAVAILABLE, message, trailer)
    assert (error.message, error.inside) == (message, "")


def test_a_message_that_is_too_large() -> None:
    """It is told for which service, and not at which address."""
    told = [status(call_for(caller), Code.RESOURCE_EXHAUSTED, TOO_LARGE, ()).message for caller in (None, "somebody")]
    beginning = "message too large: the request has 9 bytes,"
    assert told == [f"{beginning} shop.internal:80 takes {LIMITED}", f"{beginning} lab.Shop takes {LIMITED}"]


@pytest.mark.parametrize(
    ("caller", "told"), [(None, "the connection to shop.internal:80 is gone"), ("x", "shop cannot be reached now")]
)
def test_a_call_that_never_left(caller: str | None, told: str) -> None:
    """After the last attempt, whatever stood in its way."""
    pool: Pool = SimpleNamespace(service="shop", suspects=lambda now: "")  # type: ignore[assignment]  # what is asked
    settings, rng = ClientSettings(), random.Random(1)
    budget = RetryBudget(settings.retry_budget)
    attempts = Attempts(pool, METHOD, policy_of(METHOD, settings), budget, Latencies(), rng)
    attempts.time = lambda: 0.0
    call = call_for(caller)
    error = Unavailable("the connection to shop.internal:80 is gone", sent=False)
    assert attempts.explained(call, Tries(call), error, "").message == told
