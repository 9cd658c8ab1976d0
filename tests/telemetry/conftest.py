"""Every test records what it makes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from framework.telemetry.telemetry import active
from tests.telemetry.lab import MAKERS, Recorder


@pytest.fixture(params=MAKERS)
def maker(request: pytest.FixtureRequest) -> str:
    """Who makes the spans of clients."""
    return str(request.param)


@pytest.fixture
def recorder(maker: str) -> Iterator[Recorder]:
    """What watches all that is made in this test."""
    found = Recorder(maker=maker)
    yield found
    found.provider.shutdown()


@pytest.fixture(autouse=True)
def nobody_else() -> Iterator[None]:
    """What one test watches with is not seen by the next."""
    before = active.get()
    yield
    active.set(before)
