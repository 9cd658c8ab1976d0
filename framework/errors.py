"""Codes and errors: what a call can end with, and the one family of exceptions that says so.

A handler raises `NotFound("no product p9")`; the client's `await` raises the same class. The fields tell where the
failure was made and whether the request can have reached a server, which is what a retry must know.

Codes: https://grpc.io/docs/guides/status-codes/
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

Pairs = tuple[tuple[str, str | bytes], ...]


class Code(enum.IntEnum):
    """The status codes of gRPC, by their number on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class FrameworkError(Exception):
    """A mistake of the person who sets things up; the command line prints it as one line, without a traceback."""


class ConfigError(FrameworkError):
    """A setting, target or file that cannot be used; the message names it and says what to do."""


def mistakes(error: BaseException) -> list[FrameworkError]:
    """The mistakes in the setup that an exception stands for, a group of nothing else included; empty if it is none."""
    if isinstance(error, FrameworkError):
        return [error]
    if not isinstance(error, BaseExceptionGroup):
        return []
    found = [mistakes(inner) for inner in error.exceptions]
    return [mistake for inner in found for mistake in inner] if all(found) else []


class RpcError(Exception):
    """A call that did not end with OK. Raise a subclass in a handler; catch a subclass around a call.

    Attributes:
        code: the gRPC status code of the class.
        message: text for the developer on the other side.
        details: protobuf messages, usually of `google.rpc` (`BadRequest`, `RetryInfo`, ...), sent along both ways.
        metadata: trailing metadata: what the peer sent with the failure, or what a handler wants sent.
        remote: True when the peer sent this status, False when it was made in this process.
        sent: False only when the request provably never left this process.
        attempts: how many endpoints or attempts were used before giving up.
        endpoints: addresses of the instances that the call was sent to, in order.
        note: why it was not tried again, and what else a person wants to know; empty when there is nothing to tell.
        method: `package.Service/Method` of the failed call; empty on an error that a handler made itself.
        request_id: the id of the failed request, for finding it in the logs of the servers; empty when none was given.
        inside: what the log is told, where `message` is for callers outside who are not to hear of addresses and
            registries; empty where it is the same.
    """

    code: ClassVar[Code] = Code.UNKNOWN
    inside = ""

    def __init__(
        self,
        message: str = "",
        *,
        details: Iterable[Any] = (),
        metadata: Pairs = (),
        remote: bool = False,
        sent: bool = True,
        attempts: int = 0,
        endpoints: tuple[str, ...] = (),
        note: str = "",
        method: str = "",
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details: Sequence[Any] = tuple(details)
        self.metadata = metadata
        self.remote = remote
        self.sent = sent
        self.attempts = attempts
        self.endpoints = endpoints
        self.note = note
        self.method = method
        self.request_id = request_id

    def __str__(self) -> str:
        where = f" [{self.method}]" if self.method else ""
        tried = f"{self.attempts} attempts: {', '.join(self.endpoints)}" if len(self.endpoints) > 1 else ""
        told = "; ".join(filter(None, (tried, self.note)))
        return f"{self.code.name}: {self.message}{where}{f' ({told})' if told else ''}"

    def __repr__(self) -> str:
        origin = "remote" if self.remote else "local"
        return f"<{type(self).__name__} {self.message!r} {origin} sent={self.sent} attempts={self.attempts}>"


class Cancelled(RpcError):
    """The caller gave the call up."""

    code = Code.CANCELLED


class Unknown(RpcError):
    """A failure that says nothing about itself."""

    code = Code.UNKNOWN


class InvalidArgument(RpcError):
    """The request is wrong whatever the state of the system is."""

    code = Code.INVALID_ARGUMENT


class DeadlineExceeded(RpcError):
    """The deadline passed before the call ended; its effect may have happened.

    Attributes:
        inherited: True when it was the deadline of the call that this process serves, and not one of its own.
    """

    code = Code.DEADLINE_EXCEEDED
    inherited = False


class NotFound(RpcError):
    """What the request names does not exist."""

    code = Code.NOT_FOUND


class AlreadyExists(RpcError):
    """What the request wants to create exists."""

    code = Code.ALREADY_EXISTS


class PermissionDenied(RpcError):
    """The caller is known and may not do this."""

    code = Code.PERMISSION_DENIED


class ResourceExhausted(RpcError):
    """A quota, a size limit or the capacity of the server is used up."""

    code = Code.RESOURCE_EXHAUSTED


class MessageTooLarge(ResourceExhausted):
    """A request or a reply is larger than a limit: sending it again does not help, and the endpoint is well."""

    PREFIX = "message too large: "
    """What the text begins with; so it is known again on the other side."""


class FailedPrecondition(RpcError):
    """The state of the system forbids this; do not retry before the state has been changed."""

    code = Code.FAILED_PRECONDITION


class Aborted(RpcError):
    """A concurrency conflict; retry the whole transaction."""

    code = Code.ABORTED


class OutOfRange(RpcError):
    """Past the valid range, which may grow."""

    code = Code.OUT_OF_RANGE


class Unimplemented(RpcError):
    """The server does not have this method."""

    code = Code.UNIMPLEMENTED


class Internal(RpcError):
    """An invariant is broken; what happened stands in the server's log under the error's id."""

    code = Code.INTERNAL


class Unavailable(RpcError):
    """Nobody can answer now; another attempt may succeed."""

    code = Code.UNAVAILABLE


class DataLoss(RpcError):
    """Data is lost or corrupt beyond recovery."""

    code = Code.DATA_LOSS


class Unauthenticated(RpcError):
    """The caller is not known."""

    code = Code.UNAUTHENTICATED


BY_CODE: dict[int, type[RpcError]] = {cls.code.value: cls for cls in RpcError.__subclasses__()}


def error_for(code: int, message: str, **fields: Any) -> RpcError:
    """The error of the family for a code; a number that gRPC does not define becomes `Unknown`.

    Args:
        code: a status code other than OK.
        message: the status message.
        fields: the keyword arguments of `RpcError`.
    """
    return BY_CODE.get(int(code), Unknown)(message, **fields)
