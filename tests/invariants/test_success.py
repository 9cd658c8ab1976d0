"""Calls that end well."""

from __future__ import annotations

from framework import Code
from tests.invariants.conftest import World

OK = (Code.OK, True, True)


async def test_success(world: World) -> None:
    """Every request is answered, and both sides end with OK, once."""
    sent = ["a", "b", "c"] if world.arity.client_streaming else ["a"]
    expected = sent if world.arity.server_streaming else sent[-1:]
    assert await world.call(*sent) == expected
    assert await world.endings() == ([OK], [OK])
