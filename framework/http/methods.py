"""What is served: methods and their HTTP rules from descriptors, generated ones and those of reflection alike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor

from framework import options_pb2
from framework.call import Idempotency, Method
from framework.errors import ConfigError


def pool_of(files: descriptor_pb2.FileDescriptorSet) -> descriptor_pool.DescriptorPool:
    """A pool with the files of a set, which may come in any order.

    Raises:
        ConfigError: an import is missing, or a file contradicts another.
    """
    pool = descriptor_pool.DescriptorPool()
    waiting = {file.name: file for file in files.file}

    def add(file: descriptor_pb2.FileDescriptorProto) -> None:
        for name in file.dependency:
            if name in waiting:
                add(waiting.pop(name))
        try:
            pool.Add(file)
        except TypeError as error:
            raise ConfigError(f"{file.name} cannot be used: {' '.join(str(error).split())}") from None

    while waiting:
        add(waiting.pop(next(iter(waiting))))
    return pool


def services_in(pool: descriptor_pool.DescriptorPool, names: Iterable[str]) -> tuple[ServiceDescriptor, ...]:
    """The services of these full names.

    Raises:
        ConfigError: one is not in the pool.
    """
    found = []
    for name in names:
        try:
            found.append(pool.FindServiceByName(name))
        except KeyError:
            raise ConfigError(f"there is no service {name} in these descriptors") from None
    return tuple(found)


def options_of(descriptor: MethodDescriptor) -> descriptor_pb2.MethodOptions:
    """The options of a method, extensions parsed whichever pool it is from."""
    return descriptor_pb2.MethodOptions.FromString(descriptor.GetOptions().SerializeToString())


def method_of(descriptor: MethodDescriptor, options: descriptor_pb2.MethodOptions | None = None) -> Method[Any, Any]:
    """The method that a descriptor describes, with the message classes of its pool."""
    options = options or options_of(descriptor)
    own = options.Extensions[options_pb2.method]
    service: Any = descriptor.containing_service
    return Method(
        service.full_name,
        descriptor.name,
        message_factory.GetMessageClass(descriptor.input_type),
        message_factory.GetMessageClass(descriptor.output_type),
        client_streaming=descriptor.client_streaming,
        server_streaming=descriptor.server_streaming,
        idempotency=Idempotency(options.idempotency_level),
        timeout=own.timeout.ToTimedelta().total_seconds() if own.HasField("timeout") else None,
    )


def http_rule_of(options: descriptor_pb2.MethodOptions) -> http_pb2.HttpRule | None:
    """The `google.api.http` annotation of a method, or None."""
    extension: Any = annotations_pb2.http
    return options.Extensions[extension] if options.HasExtension(extension) else None


def files_of(services: Iterable[ServiceDescriptor]) -> tuple[FileDescriptor, ...]:
    """The files that services are declared in, each once, and those of their messages."""
    found: dict[str, Any] = {}
    for service in services:
        for file in (
            service.file,
            *(kind.file for method in service.methods for kind in (method.input_type, method.output_type)),
        ):
            found.setdefault(file.name, file)
    return tuple(found.values())
