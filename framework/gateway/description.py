"""What a service says of itself: descriptors, and what follows from them. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from framework.errors import ConfigError
from framework.http.app import HttpApp
from framework.http.methods import pool_of, services_in
from framework.http.settings import HttpSettings

File = descriptor_pb2.FileDescriptorProto
Kind = descriptor_pb2.FieldDescriptorProto

NOT_SERVED = ("grpc.", "google.")
"""Beginnings of services that are not for the clients of a gateway: health, reflection."""


@dataclass(frozen=True, slots=True)
class Description:
    """The services that somebody serves.

    Attributes:
        services: their full names.
        files: the proto files that they are declared in, and all that those import.
        digest: the same for the same services and files.
    """

    services: tuple[str, ...]
    files: tuple[File, ...] = field(repr=False, compare=False)
    digest: str = ""

    @classmethod
    def of(cls, services: Iterable[str], files: Iterable[File]) -> Description:
        """The description that these make, without what is not for clients."""
        names = tuple(sorted({name for name in services if not name.startswith(NOT_SERVED)}))
        ordered = tuple(sorted(files, key=lambda file: file.name))
        digest = hashlib.sha256("\n".join(names).encode())
        for file in ordered:
            bare = File.FromString(file.SerializeToString())
            bare.ClearField("source_code_info")  # comments, which a set may have and reflection has not
            digest.update(bare.SerializeToString(deterministic=True))
        return cls(names, ordered, digest.hexdigest())

    @classmethod
    def read(cls, path: Path) -> Description:
        """The description in a file, as `protoc --include_imports --descriptor_set_out` writes it.

        Raises:
            ConfigError: it cannot be read, or is none.
        """
        try:
            found = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"descriptors in {path}: {error.strerror}") from None
        except DecodeError:
            raise ConfigError(f"{path} is no descriptor set; make it with protoc --include_imports") from None
        names = [f"{file.package}.{one.name}".lstrip(".") for file in found.file for one in file.service]
        return cls.of(names, found.file)


@dataclass(frozen=True, slots=True)
class Checked:
    """A description that can be served.

    Attributes:
        description: the description.
        services: their descriptors, all of one pool that nobody else has.
        routes: what its methods answer to, and the rule that says so.
    """

    description: Description
    services: tuple[ServiceDescriptor, ...]
    routes: Mapping[tuple[Any, ...], str] = field(repr=False)


def check(description: Description, settings: HttpSettings) -> Checked:
    """Find out whether a description can be served, by making an application of it alone.

    Raises:
        ConfigError: it cannot; the message says why.
    """
    try:
        pool = pool_of(descriptor_pb2.FileDescriptorSet(file=description.files))
        services = services_in(pool, description.services)
        app = HttpApp(services, _nobody, settings, report=False)
    except Exception as error:  # whatever a stranger's bytes bring about, here or in what reads them
        raise ConfigError(" ".join(str(error).split()) or type(error).__name__) from error
    routes = {(one.rule.http, one.rule.template.segments, one.rule.template.verb): str(one.rule) for one in app.routes}
    return Checked(description, services, routes)


def _nobody(method: object) -> Any:
    return None


def collision(one: Checked, other: Checked) -> str:
    """What two services that are served side by side both want to answer to; empty when there is nothing."""
    for key, rule in one.routes.items():
        if key in other.routes:
            return f"{rule} matches the same as {other.routes[key]}"
    return ""


# Contradictions: two descriptions of one service whose messages or methods cannot be mistaken for each other's.

_VARINT = (Kind.TYPE_INT32, Kind.TYPE_INT64, Kind.TYPE_UINT32, Kind.TYPE_UINT64, Kind.TYPE_BOOL, Kind.TYPE_ENUM)
_ALIKE: dict[int, str] = {
    **dict.fromkeys(_VARINT, "a number"),
    **dict.fromkeys((Kind.TYPE_SINT32, Kind.TYPE_SINT64), "a zigzag number"),
    **dict.fromkeys((Kind.TYPE_FIXED32, Kind.TYPE_SFIXED32), "a 32 bit number"),
    **dict.fromkeys((Kind.TYPE_FIXED64, Kind.TYPE_SFIXED64), "a 64 bit number"),
    **dict.fromkeys((Kind.TYPE_STRING, Kind.TYPE_BYTES), "text or bytes"),
    Kind.TYPE_FLOAT: "a float",
    Kind.TYPE_DOUBLE: "a double",
    Kind.TYPE_MESSAGE: "a message",
    Kind.TYPE_GROUP: "a group",
}
"""Types that are read as each other's without harm."""


def contradiction(one: Description, other: Description) -> str:
    """Why instances with these two descriptions cannot be called alike; empty when they can."""
    methods, others = _methods(one), _methods(other)
    for name, shape in methods.items():
        if name in others and others[name] != shape:
            return f"{name} is {shape}, and {others[name]} on another instance"
    fields, theirs = _fields(one), _fields(other)
    for key, kind in fields.items():
        if key in theirs and theirs[key] != kind:
            return f"field {key[1]} of {key[0]} is {kind}, and {theirs[key]} on another instance"
    return ""


def _methods(description: Description) -> dict[str, str]:
    found = {}
    for file in description.files:
        for service in file.service:
            for method in service.method:
                request = f"{'stream ' if method.client_streaming else ''}{method.input_type}"
                reply = f"{'stream ' if method.server_streaming else ''}{method.output_type}"
                found[f"{file.package}.{service.name}/{method.name}"] = f"({request}) returns ({reply})"
    return found


def _fields(description: Description) -> dict[tuple[str, int], str]:
    return {
        (name, one.number): f"{'repeated, ' if one.label == Kind.LABEL_REPEATED else ''}{_ALIKE[one.type]}"
        for file in description.files
        for name, message in _messages(file.package, file.message_type)
        for one in message.field
    }


def _messages(prefix: str, messages: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for message in messages:
        name = f"{prefix}.{message.name}"
        yield name, message
        yield from _messages(name, message.nested_type)
