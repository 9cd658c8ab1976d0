"""A fixed list of addresses."""

from __future__ import annotations

import pytest

from framework.discovery import Instance
from framework.discovery.static import StaticRegistry
from framework.errors import ConfigError


async def test_list_is_said_for_every_service() -> None:
    """Each address is an instance of whatever is asked for, once, in the order of the list."""
    registry = StaticRegistry(["b:1", "dns:///a:1", "b:1"])
    assert await anext(registry.watch("catalog")) == {
        "b:1": Instance("b:1", "catalog", "b:1"),
        "dns:///a:1": Instance("dns:///a:1", "catalog", "dns:///a:1"),
    }
    assert await registry.services() == {}
    await registry.aclose()


async def test_who_is_not_on_the_list_cannot_register() -> None:
    """A server whose address is on the list may start; any other is told why nobody would find it."""
    registry = StaticRegistry(["127.0.0.1:7001"])
    lease = await registry.register(Instance("a", "catalog", "127.0.0.1:7001"))
    await lease.close()
    with pytest.raises(
        ConfigError, match=r"catalog at 127.0.0.1:7002 is not on the fixed list static://127.0.0.1:7001"
    ):
        await registry.register(Instance("b", "catalog", "127.0.0.1:7002"))
