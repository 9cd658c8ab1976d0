"""What callers notice of Consul: nothing."""

from __future__ import annotations

import pytest

from bench.faults import registries
from tests.faults.conftest import Play

pytestmark = pytest.mark.timeout(180)


async def test_consul_goes_and_comes_back_without_its_memory(play: Play) -> None:
    """No call fails; afterwards every instance is registered again, and a new one gets calls within two seconds."""
    assert await play(registries.consul_down) == []


async def test_consul_flaps_and_says_that_nobody_is_there(play: Play) -> None:
    """No call fails, no connection is opened or closed, and the log tells of it."""
    assert await play(registries.consul_flaps) == []
