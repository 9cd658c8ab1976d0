"""What a running server says that it serves, by server reflection.

Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.message import DecodeError

from framework.client.stub import Channel, StreamReply
from framework.errors import ConfigError, Unimplemented
from framework.server.reflection import METHODS, Request

TIMEOUT = 10.0
"""Seconds that a server has for one answer."""

File = descriptor_pb2.FileDescriptorProto


class NoReflection(ConfigError):
    """The server does not offer it."""


class Reflection:
    """Asks one server.

    Args:
        channel: to it.
        timeout: seconds that it has for one answer.
    """

    def __init__(self, channel: Channel, timeout: float = TIMEOUT) -> None:
        self._channel = channel
        self._timeout = timeout
        self._methods = list(METHODS)

    async def services(self) -> list[str]:
        """Full names of its services.

        Raises:
            ConfigError: it does not tell.
            RpcError: it cannot be asked.
        """
        reply = await self._ask(list_services="*")
        return [one.name for one in reply.list_services_response.service]

    async def files(self, symbols: Iterable[str]) -> dict[str, File]:
        """The proto files that declare these, and all that those import, by name. Raises as `services` does."""
        files: dict[str, File] = {}

        async def keep(about: str, **question: str) -> None:
            reply = await self._ask(**question)
            if reply.HasField("error_response"):
                raise ConfigError(f"it does not tell of {about}: {reply.error_response.error_message}")
            for raw in reply.file_descriptor_response.file_descriptor_proto:
                try:
                    file = File.FromString(raw)
                except DecodeError:
                    raise ConfigError(f"what it tells of {about} is no descriptor") from None
                files.setdefault(file.name, file)

        for symbol in symbols:
            await keep(symbol, file_containing_symbol=symbol)
        while missing := {one for file in files.values() for one in file.dependency} - set(files):
            for name in missing:
                await keep(name, file_by_filename=name)
                if name not in files:
                    raise ConfigError(f"it does not tell of {name}")
        return files

    async def _ask(self, **question: Any) -> Any:
        while self._methods:
            method = self._methods[0]
            requests = [Request(**question)]
            try:
                async with StreamReply(self._channel.bind(method), method, requests, self._timeout) as replies:
                    async for reply in replies:
                        return reply
            except Unimplemented:
                del self._methods[0]  # it does not know this version, and will not
                continue
            raise ConfigError("it ended its reflection without an answer")
        raise NoReflection("it does not offer reflection, so its messages cannot be learnt")
