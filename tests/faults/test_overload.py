"""What becomes of calls for which there is no room."""

from __future__ import annotations

import pytest

from bench.faults import overloads
from tests.faults.conftest import Play

pytestmark = pytest.mark.timeout(180)


async def test_retry_storm(play: Play) -> None:
    """Twice the load does not multiply itself, leaves the servers useful, and is over when it is over.

    Six seconds of it spend what the budget has saved, so 1.2 attempts a call are allowed, and half of the capacity is
    asked for: two of them pass until the limit is found. Bare grpc.aio has a sixth.
    """
    assert await play(overloads.storm) == []


async def test_overload_with_criticality(play: Play) -> None:
    """Three times the load: what is critical is served, and nothing piles up. So short, 95% and
    half of the capacity are asked for; bare grpc.aio has 4% and a twentieth."""
    assert await play(overloads.overload) == []
