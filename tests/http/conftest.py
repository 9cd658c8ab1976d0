"""The library behind an application: in the same process, and behind a channel, which is a gateway,
with messages and with bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from framework import Service
from framework.http.app import HttpApp
from framework.testing import Network
from tests.http.library import SERVICE, Library, application


@pytest.fixture
def library() -> Library:
    return Library()


@pytest_asyncio.fixture(params=["local", "channel", "relay"])
async def app(request: pytest.FixtureRequest, library: Library) -> AsyncIterator[HttpApp]:
    if request.param == "local":
        yield application(library)
        return
    async with Network() as network:
        network.add(Service("library", servicers=[library]))
        relays = request.param == "relay"
        yield HttpApp([SERVICE], network.connect("library").bind, relays=lambda method: relays)
