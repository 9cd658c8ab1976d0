"""Asking an instance what it serves."""

from __future__ import annotations

from framework.client.connect import connect_to
from framework.config import Settings
from framework.discovery import Instance
from framework.errors import ConfigError
from framework.gateway.description import NOT_SERVED, Description
from framework.reflection import NoReflection, Reflection


async def learn(instance: Instance, settings: Settings) -> Description:
    """What an instance says that it serves.

    Raises:
        ConfigError: it does not offer reflection, or what it tells is no description.
        RpcError: it cannot be reached.
    """
    async with connect_to(instance, settings) as channel:
        reflection = Reflection(channel)
        try:
            names = [name for name in await reflection.services() if not name.startswith(NOT_SERVED)]
            return Description.of(names, (await reflection.files(names)).values())
        except NoReflection:
            raise ConfigError(
                "it offers no reflection; say which descriptor set is its own with `descriptors` in [gateway]"
            ) from None
