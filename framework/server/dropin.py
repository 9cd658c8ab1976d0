"""Servicers of grpc's own plugin on our server: `add_CatalogServicer_to_server(servicer, server)`.

A nominal `grpc.aio.Server`, so that generated code and its stubs accept it; all it does is collect methods.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import descriptor_pool

from framework.call import Method
from framework.errors import Unimplemented
from framework.options import access_of
from framework.server.context import Context
from framework.server.pipeline import Pipeline


class DropInServer(grpc.aio.Server):
    """Takes registrations for a pipeline. It is started, drained and stopped by the framework, not here."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        for generic in generic_rpc_handlers:
            # What `method_handlers_generic_handler` makes; newer generated code registers the same methods below too.
            for path, handler in getattr(generic, "_method_handlers", {}).items():
                self._add(path, handler)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        for name, handler in method_handlers.items():
            self._add(f"/{service_name}/{name}", handler)

    def _add(self, path: str, handler: Any) -> None:
        if self._pipeline.find(path) is not None:
            return
        service, _, name = path.removeprefix("/").rpartition("/")
        function = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        if not _is_asynchronous(function) and getattr(function, "__module__", "").endswith("_pb2_grpc"):
            function = _unimplemented(function)
        method: Method[Any, Any] = Method(
            service,
            name,
            _message_of(handler.request_deserializer),
            Any,  # the handler's own serializer is all that grpc tells of the reply
            client_streaming=handler.request_streaming,
            server_streaming=handler.response_streaming,
            access=_access_of(service, name),
        )
        self._pipeline.add_method(method, function, handler.request_deserializer, handler.response_serializer)

    def add_insecure_port(self, address: str) -> NoReturn:
        _not_here("add_insecure_port")

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> NoReturn:
        _not_here("add_secure_port")

    async def start(self) -> NoReturn:
        _not_here("start")

    async def stop(self, grace: float | None) -> NoReturn:
        _not_here("stop")

    async def wait_for_termination(self, timeout: float | None = None) -> NoReturn:
        _not_here("wait_for_termination")


def _is_asynchronous(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _unimplemented(function: Any) -> Any:
    """For a method that the servicer inherits from generated code, which is synchronous: what it means to say."""

    async def unimplemented(request: Any, context: Context) -> None:
        raise Unimplemented(f"{function.__qualname__} is not implemented")

    return unimplemented


def _access_of(service: str, name: str) -> tuple[dict[str, Any], ...]:
    """Who may call a method, as its proto says, which code of grpc's own plugin does not tell."""
    try:
        described: Any = descriptor_pool.Default().FindServiceByName(service)
        return access_of(described.methods_by_name[name])
    except KeyError:
        return ()


def _message_of(deserializer: Any) -> Any:
    """The class of the message that `Message.FromString` parses, for reprs and error texts."""
    return getattr(deserializer, "__self__", Any)


def _not_here(name: str) -> NoReturn:
    raise RuntimeError(f"{name}() is the service's own work: pass this object only to add_XServicer_to_server()")
