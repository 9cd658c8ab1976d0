"""pytest: the fixture `network`, and the marker `virtual_time` for tests in which time does not have to pass.

Async tests and fixtures are run by pytest-asyncio.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import pytest
import pytest_asyncio

from framework.testing.network import Network
from framework.testing.virtual_time import VirtualTimeLoop


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "virtual_time: run this async test on a loop whose clock jumps from timer to timer"
    )


@pytest.hookimpl(trylast=True, optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Which loop a test runs on."""
    if item.get_closest_marker("virtual_time") is not None:
        return {"virtual": VirtualTimeLoop}
    return {"asyncio": asyncio.new_event_loop}


@pytest_asyncio.fixture
async def network() -> AsyncIterator[Network]:
    """A network in memory: `network.add(service)`, then `Client(network.connect(name))`."""
    async with Network() as network:
        yield network
