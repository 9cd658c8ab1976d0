"""Calls that end well."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from framework import Call, Code, Handler, Method, Reply
from tests.invariants.conftest import Arity, World, open_world, until

OK = (Code.OK, True, True)


async def test_success(world: World) -> None:
    """Every request is answered, and both sides end with OK, once."""
    sent = ["a", "b", "c"] if world.arity.client_streaming else ["a"]
    expected = sent if world.arity.server_streaming else sent[-1:]
    assert await world.call(*sent) == expected
    assert await world.endings() == ([OK], [OK])


@pytest.mark.parametrize("wire", ["grpc"], indirect=True)
async def test_nothing_waits_for_the_collector(wire: str, arity: Arity) -> None:
    """A call that has ended is in no cycle: it is gone before anybody collects garbage."""
    calls: list[weakref.ref[Call]] = []

    def watching(method: Method[Any, Any], next: Handler) -> Handler:
        async def handler(call: Call) -> Reply:
            calls.append(weakref.ref(call))
            return await next(call)

        return handler

    async with open_world(wire, arity, interceptors=(watching,)) as world:
        gc.disable()
        try:
            for _ in range(5):
                await world.call()
            await world.endings(5)
            await until(lambda: not any(call() for call in calls))
        finally:
            gc.enable()
    assert len(calls) == 5
