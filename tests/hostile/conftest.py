"""What each of these tests is given, and what none may leave."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.hostile.hall import SECRET, Attacked, attacked


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served() -> AsyncIterator[Attacked]:
    """The service with its default limits, one for all the tests of a module."""
    async with attacked() as one:
        yield one


@pytest_asyncio.fixture(loop_scope="module")
async def hall(served: Attacked) -> AsyncIterator[Attacked]:
    """The same, which after each test is idle, well and no larger."""
    async with served.unharmed():
        yield served


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """No secret is logged, and nothing that a caller sent ends a line of the log."""
    yield caplog
    for record in caplog.get_records("call"):
        text = record.getMessage()
        assert SECRET not in text
        assert "\n" not in text, text
        assert "\r" not in text, text
