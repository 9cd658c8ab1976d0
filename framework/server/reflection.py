"""Server reflection, v1 and v1alpha: grpcio-reflection's servicer on our pipeline, under both names.

The two protocols have the same messages under different packages; grpcio-reflection generates the older.
Source: https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

from framework.call import Method
from framework.server.pipeline import Pipeline

Request = reflection_pb2.ServerReflectionRequest

METHODS: tuple[Method[Any, Any], ...] = tuple(
    Method(
        f"grpc.reflection.{version}.ServerReflection",
        "ServerReflectionInfo",
        Request,
        reflection_pb2.ServerReflectionResponse,
        client_streaming=True,
        server_streaming=True,
    )
    for version in ("v1", "v1alpha")
)
"""The same method under the newer and the older name."""


class _Descriptors:
    """The default pool, and the v1 protocol that it lacks. Kept apart, since users may import v1's own module."""

    def __init__(self) -> None:
        self._default = descriptor_pool.Default()
        self._own = descriptor_pool.DescriptorPool()
        older = descriptor_pb2.FileDescriptorProto()
        reflection_pb2.DESCRIPTOR.CopyToProto(older)
        renamed = text_format.MessageToString(older).replace("reflection.v1alpha", "reflection.v1")
        newer = text_format.Parse(renamed, descriptor_pb2.FileDescriptorProto())
        newer.name = "grpc/reflection/v1/reflection.proto"
        newer.ClearField("options")
        self._own.AddSerializedFile(newer.SerializeToString())

    def FindFileContainingSymbol(self, symbol: str) -> Any:
        try:
            return self._default.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._own.FindFileContainingSymbol(symbol)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._default, name)


def add_reflection(pipeline: Pipeline) -> None:
    """Describe every service that the pipeline serves by now, and reflection itself."""
    names = (*pipeline.services, *(method.service for method in METHODS))
    servicer = reflection.aio.ReflectionServicer(names, pool=_Descriptors())
    for method in METHODS:
        if pipeline.find(method.path) is None:  # the service may have brought its own
            pipeline.add_method(method, servicer.ServerReflectionInfo)
