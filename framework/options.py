"""What a proto says of how its methods are called, in the words of `[client.NAME.methods.METHOD]`.

    option (framework.method) = { timeout: { seconds: 1 } retry: { attempts: 2 codes: "UNAVAILABLE" } };

    declared(options) == (1.0, {"retry": {"attempts": 2, "codes": ["UNAVAILABLE"]}})

Generated code has it written out; whoever has only descriptors, as by reflection, reads it here.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor, descriptor_pb2, duration_pb2, message_factory

from framework import options_pb2
from framework.access import rules_declared
from framework.call import Idempotency, Method
from framework.errors import ConfigError
from framework.parsing import NONE
from framework.policy import ClientSettings, MethodSettings

NAME = "(framework.method)"
"""What the option is called in a proto file."""

FOR_EVER = ("idle", "attempt_timeout")
"""Lengths of time of which 0 means that there is no end."""


class OptionError(ConfigError):
    """An option that cannot be used.

    Attributes:
        field: its number in framework.MethodOptions.
    """

    def __init__(self, message: str, field: int) -> None:
        super().__init__(message)
        self.field = field


def declared(options: descriptor_pb2.MethodOptions) -> tuple[float | None, dict[str, Any]]:
    """The timeout that the options of a method declare, and everything else.

    Raises:
        OptionError: a value that no settings may have either.
    """
    timeout: float | None = None
    said: dict[str, Any] = {}
    for field, value in options.Extensions[options_pb2.method].ListFields():
        name = field.name
        if name == "access":
            continue
        try:
            if name == "timeout":
                timeout = _plain(name, value)
                if timeout == 0:
                    raise ConfigError(f"{NAME}.timeout is 0; it must be more than that")
                continue
            plain = _plain(name, value)
            MethodSettings.over({name: plain}, NAME, ClientSettings())
        except ConfigError as error:
            raise OptionError(str(error), field.number) from None
        if plain != {}:
            said[name] = plain
    return timeout, said


def access_declared(
    service: descriptor_pb2.ServiceOptions, method: descriptor_pb2.MethodOptions
) -> tuple[dict[str, Any], ...]:
    """Who may call a method, as its options say, or those of its service.

    Raises:
        OptionError: something that no rule can say.
    """
    said = method.Extensions[options_pb2.method].access or service.Extensions[options_pb2.service].access
    found = tuple({field.name: _plain(field.name, value) for field, value in one.ListFields()} for one in said)
    try:
        rules_declared(found)
    except ConfigError as error:
        raise OptionError(str(error), options_pb2.MethodOptions.ACCESS_FIELD_NUMBER) from None
    return found


def access_of(described: descriptor.MethodDescriptor) -> tuple[dict[str, Any], ...]:
    """Who may call the method that a descriptor describes. Raises OptionError."""
    service: Any = described.containing_service
    return access_declared(
        descriptor_pb2.ServiceOptions.FromString(service.GetOptions().SerializeToString()),
        descriptor_pb2.MethodOptions.FromString(described.GetOptions().SerializeToString()),
    )


def method_of(described: descriptor.MethodDescriptor) -> Method[Any, Any]:
    """The method that a descriptor describes, as generated code would have it.

    Raises:
        OptionError: a value that no settings may have either.
    """
    # Over the wire once: the descriptor may be of a pool that does not know the framework's options.
    options = descriptor_pb2.MethodOptions.FromString(described.GetOptions().SerializeToString())
    timeout, said = declared(options)
    return Method(
        described.containing_service.full_name,
        described.name,
        message_factory.GetMessageClass(described.input_type),
        message_factory.GetMessageClass(described.output_type),
        client_streaming=described.client_streaming,
        server_streaming=described.server_streaming,
        idempotency=Idempotency(options.idempotency_level),
        timeout=timeout,
        options=said,
        access=access_of(described),
    )


def _plain(path: str, value: Any) -> Any:
    """A value of an option as TOML would give it."""
    if isinstance(value, duration_pb2.Duration):
        seconds = value.seconds + value.nanos / 1e9
        if seconds < 0:
            raise ConfigError(f"{NAME}.{path} is {seconds:g}s; it must not be negative")
        return NONE if seconds == 0 and path in FOR_EVER else seconds
    if path == "criticality":
        return options_pb2.Criticality.Name(value)
    if isinstance(value, bool | int | float):
        return value
    if not hasattr(value, "ListFields"):
        return list(value)
    nested = {field.name: _plain(f"{path}.{field.name}", inner) for field, inner in value.ListFields()}
    return {name: inner for name, inner in nested.items() if inner != {}}
