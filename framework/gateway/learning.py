"""Asking an instance what it serves, by server reflection.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2

from framework.client.connect import connect
from framework.client.stub import Channel, StreamReply
from framework.config import Settings
from framework.errors import ConfigError, Unimplemented
from framework.gateway.description import NOT_SERVED, Description
from framework.server.reflection import METHODS, Request

TIMEOUT = 10.0
"""Seconds that an instance has to tell everything."""


async def learn(address: str) -> Description:
    """What the instance at an address says that it serves.

    Raises:
        ConfigError: it does not offer reflection, or what it tells is no description.
        RpcError: it cannot be reached.
    """
    async with connect(address, settings=Settings()) as channel:
        for method in METHODS:
            try:
                return await _learn(channel, method)
            except Unimplemented:
                continue
    raise ConfigError("it offers no reflection; say which descriptor set is its own with `descriptors` in [gateway]")


async def _learn(channel: Channel, method: Any) -> Description:
    files: dict[str, Any] = {}

    async def ask(**question: Any) -> Any:
        async with StreamReply(channel.bind(method), method, [Request(**question)], TIMEOUT) as replies:
            async for reply in replies:
                return reply
        raise ConfigError("it ended its reflection without an answer")

    def keep(reply: Any, about: str) -> None:
        if reply.HasField("error_response"):
            raise ConfigError(f"it does not tell of {about}: {reply.error_response.error_message}")
        for raw in reply.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(raw)
            files.setdefault(file.name, file)

    told = await ask(list_services="*")
    names = [one.name for one in told.list_services_response.service if not one.name.startswith(NOT_SERVED)]
    for name in names:
        keep(await ask(file_containing_symbol=name), name)
    while missing := {one for file in files.values() for one in file.dependency} - set(files):
        for name in missing:
            keep(await ask(file_by_filename=name), name)
            if name not in files:
                raise ConfigError(f"it does not tell of {name}")
    return Description.of(names, files.values())
