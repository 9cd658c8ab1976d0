"""Requests that break the rules of their proto are refused, before a handler sees them.

    string customer_id = 2 [(buf.validate.field).string.min_len = 1];

    INVALID_ARGUMENT customer_id: must be at least 1 characters
    details: google.rpc.BadRequest with a violation for each field

`protovalidate` looks at the messages; what it needs is made ready when a method is bound. A method whose messages have
no rules is bound as it is. Every message of a stream is looked at, when it is read.

Rules: https://protovalidate.com/schemas/standard-rules/
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from google.rpc.error_details_pb2 import BadRequest

from framework.call import Call, Handler, Interceptor, Method, Reply
from framework.errors import ConfigError, InvalidArgument
from framework.security.rules import has_rules
from framework.security.sizes import Breach, measure

log = logging.getLogger("framework")

MOST_VIOLATIONS = 20
"""Violations that a caller is told of."""

WHOLE = 8 << 10
"""Bytes of a request up to which all its violations are collected. There may be one every other byte, and each takes
some 50 µs: of a larger request the first is told."""

SMALL = 1 << 10
"""Bytes of a request up to which it takes no time to speak of to look at all its rules, whatever they are."""

Check = Callable[[Any], None]
"""Raises InvalidArgument for a message that breaks the rules."""


def validating(*, required: bool = True) -> Interceptor:
    """An interceptor that refuses requests which break their rules; for servers, gateways and clients.

    Args:
        required: rules that cannot be checked are a mistake in the setup; else the log tells, and they are not checked.

    Raises (when a method is bound):
        ConfigError: protovalidate is not installed, or it cannot use the rules.
    """

    def interceptor(method: Method[Any, Any], handler: Handler) -> Handler:
        if not hasattr(method.request, "DESCRIPTOR") or not has_rules(method.request.DESCRIPTOR):
            return handler
        if not _installed():
            told = f"{method.request.DESCRIPTOR.full_name} has rules of buf.validate, and nothing here checks them"
            if required:
                raise ConfigError(f"{told}: pip install framework-grpc[security], or set validate = false")
            log.warning("%s: pip install framework-grpc[security]", told)
            return handler
        try:
            check = checker(method.request)
        except ConfigError as error:
            if required:
                raise
            log.warning("%s", error)
            return handler
        return _each(check, handler) if method.client_streaming else _one(check, handler)

    return interceptor


def _installed() -> bool:
    """The extra `security` is there."""
    try:
        import protovalidate  # noqa: F401
    except ImportError:
        return False
    return True


def checker(kind: Any) -> Check:
    """What checks messages of a class.

    Raises:
        ConfigError: its rules cannot be used.
    """
    import protovalidate  # by those who have rules only: it takes a while

    collect = protovalidate.Validator().collect_violations
    try:
        collect(kind())
    except protovalidate.CompilationError as error:
        raise ConfigError(f"the rules of {kind.DESCRIPTOR.full_name} cannot be used: {error}") from None
    except protovalidate.EvaluationError:
        pass  # of an empty message, which nobody sent

    too_much = measure(kind.DESCRIPTOR)

    def check(message: Any) -> None:
        if too_much is not None and message.ByteSize() > SMALL and (breach := too_much(message)) is not None:
            raise _refusal([breach], 1)
        found = collect(message, fail_fast=True)
        if found:
            raise _invalid(collect(message) if message.ByteSize() <= WHOLE else found)

    return check


def _one(check: Check, handler: Handler) -> Handler:
    async def handle(call: Call) -> Reply:
        check(call.request)
        return await handler(call)

    return handle


def _each(check: Check, handler: Handler) -> Handler:
    async def handle(call: Call) -> Reply:
        call.request = _Checked(call.request, check)
        return await handler(call)

    return handle


class _Checked:
    """The requests of a stream, each looked at when it is read."""

    __slots__ = ("_check", "_next", "_requests")

    def __init__(self, requests: Any, check: Check) -> None:
        self._requests = requests
        self._next = aiter(requests).__anext__ if hasattr(requests, "__aiter__") else _each_of(requests).__anext__
        self._check = check

    def __aiter__(self) -> _Checked:
        return self

    async def __anext__(self) -> Any:
        message = await self._next()
        self._check(message)
        return message

    def __getattr__(self, name: str) -> Any:
        return getattr(self._requests, name)


async def _each_of(requests: Iterable[Any]) -> Any:
    for request in requests:
        yield request


def _invalid(violations: list[Any]) -> InvalidArgument:
    """What the library has found, as what the caller is told."""
    told = [violation.proto for violation in violations[:MOST_VIOLATIONS]]
    return _refusal([Breach(_path(one.field), one.message, one.rule_id) for one in told], len(violations))


def _refusal(breaches: list[Breach], count: int) -> InvalidArgument:
    """What the caller is told: the first in the message, all of them as `google.rpc.BadRequest`."""
    details = BadRequest()
    for one in breaches:
        details.field_violations.add(
            field=one.field,
            description=one.description or f"breaks the rule {one.rule}",
            reason=one.rule.upper().replace(".", "_"),
        )
    first = details.field_violations[0]
    shown = f"{first.field}: {first.description}" if first.field else first.description
    more = f" (and {count - 1} more)" if count > 1 else ""
    return InvalidArgument(f"{shown}{more}", details=[details])


def _path(field: Any) -> str:
    """A field as it is written in violations, `items[2].quantity`, `labels["size"]`."""
    steps: list[str] = []
    for element in field.elements if field is not None else ():
        step = f".{element.field_name}" if steps else element.field_name
        if element.subscript is not None:
            key = element.subscript.value
            step += f'["{key}"]' if isinstance(key, str) else f"[{str(key).lower()}]"
        steps.append(step)
    return "".join(steps)
