"""pytest: the fixture `network`, and the marker `virtual_time` for tests in which time does not have to pass.

Async tests are run by pytest-asyncio. pytest loads this module wherever the framework is installed, so it imports
nothing that a project without such tests does not have, and nothing that is slow.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from framework.testing.network import Network

try:
    from pytest_asyncio import fixture as _fixture
except ImportError:

    @pytest.fixture(name="network")
    def _no_network() -> None:
        """Says what is missing."""
        raise pytest.UsageError("the fixture `network` needs pytest-asyncio: pip install 'framework-grpc[test]'")

else:

    @_fixture(name="network")
    async def _network() -> AsyncIterator[Network]:
        """A network in memory: `network.add(service)`, then `Client(network.connect(name))`."""
        from framework.testing.network import Network

        async with Network() as network:
            yield network


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers", "virtual_time: run this async test function on a loop whose clock jumps from timer to timer"
    )


@pytest.hookimpl(trylast=True, optionalhook=True)
def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Which loop a test function runs on."""
    if item.get_closest_marker("virtual_time") is not None:
        from framework.testing.virtual_time import VirtualTimeLoop

        return {"virtual": VirtualTimeLoop}
    return {"asyncio": asyncio.new_event_loop}
