"""What is served: services and their HTTP rules from descriptors, generated ones and those of reflection alike."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor

from framework import options_pb2
from framework.call import Method
from framework.errors import ConfigError
from framework.http.rules import Rule, RuleError, rules_of
from framework.http.success import Success
from framework.options import method_of


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


def http_rule_of(method: MethodDescriptor) -> http_pb2.HttpRule | None:
    """The `google.api.http` annotation of a method, or None."""
    found: http_pb2.HttpRule | None = _option(method, annotations_pb2.http)
    return found


def declared_rules(descriptor: MethodDescriptor, method: Method[Any, Any]) -> tuple[Rule, ...]:
    """The rules that a method's options declare; none without an annotation.

    Raises:
        RuleError: one cannot be served.
    """
    annotation, said = http_rule_of(descriptor), _option(descriptor, options_pb2.http)
    if annotation is None and said is not None:
        raise RuleError(
            f"{method.full_name}: (framework.http) is of use with a google.api.http rule only",
            (options_pb2.HTTP_FIELD_NUMBER,),
        )
    rules = () if annotation is None else rules_of(method, annotation)
    if said is None:
        return rules
    success = Success.of(method, said)
    return tuple(dataclasses.replace(rule, success=success) for rule in rules)


def mistakes_in(services: Iterable[ServiceDescriptor]) -> Iterator[tuple[MethodDescriptor, RuleError]]:
    """The methods whose options declare rules that cannot be served, each with the first reason."""
    for service in services:
        for descriptor in service.methods:
            try:
                declared_rules(descriptor, method_of(descriptor))
            except RuleError as error:
                yield descriptor, error


def _option(method: MethodDescriptor, extension: Any) -> Any:
    """What an option of a method says, or None."""
    # Over the wire once: the descriptor may be of a pool that does not know the extension.
    options = descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())
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
