"""What it means to the caller that a call ended: the error for a status, be it the peer's or made on this side."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

from framework.call import Call, Metadata
from framework.details import KEY as DETAILS
from framework.details import ORIGIN, from_metadata
from framework.errors import (
    BY_CODE,
    Cancelled,
    Code,
    DeadlineExceeded,
    MessageTooLarge,
    ResourceExhausted,
    RpcError,
    Unknown,
)
from framework.interceptors.request_id import KEY as REQUEST_ID

E = TypeVar("E", bound=RpcError)

_MADE_HERE = frozenset(
    {
        Code.UNAVAILABLE,
        Code.DEADLINE_EXCEEDED,
        Code.CANCELLED,
        Code.INTERNAL,
        Code.RESOURCE_EXHAUSTED,
        Code.UNKNOWN,
    }
)
"""Codes that grpc itself gives to calls; every other code was sent by the peer."""

_ADDRESS = re.compile(r"\b(ipv[46]|unix|dns):|\d\.\d{1,3}:\d|\]:\d")
"""What grpc says of its connections has addresses in it."""

_OURS = frozenset({ORIGIN, DETAILS, REQUEST_ID})
"""Trailers that are told in other ways."""


_OUTSIDE = {
    Code.UNAVAILABLE: "{} cannot be reached now",
    Code.DEADLINE_EXCEEDED: "no answer from {} before the deadline",
}
"""What callers outside hear instead."""


def local(call: Call, kind: type[RpcError], message: str) -> RpcError:
    """An error that was made on this side."""
    error = kind(message, method=call.method.full_name, attempts=call.attempt)
    if isinstance(error, DeadlineExceeded):
        error.inherited = call.inherited
    return error


def for_outside(call: Call, error: E, message: str) -> E:
    """The error, which says this where the call is passed on for somebody outside, and the rest in the log."""
    if call.caller is not None:
        error.inside, error.message = error.message, message
        error.args = (message,)
    return error


def given_up(call: Call, error: BaseException) -> BaseException:
    """What an exception means to the caller that ended the wait for a reply."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or not task.cancelling():  # not the caller: the channel was closed, or an interceptor gave up
            return local(call, Cancelled, "the call was cancelled in this process")
    return error


_TOO_LARGE = re.compile(r"(CLIENT|SERVER)\b.*?(Sent|Received) message larger than max \((\d+) vs\. (\d+)\)")
"""What grpc says of a message that it does not let through."""


def _exhausted(call: Call, message: str, remote: bool) -> tuple[type[RpcError], str, bool]:
    """A message that is too large is no lack of anything; told so that it names the limit."""
    if message.startswith(MessageTooLarge.PREFIX):
        return MessageTooLarge, message, remote
    if (match := _TOO_LARGE.search(message)) is None:
        return ResourceExhausted, message, remote
    here = match[1] == "CLIENT"
    what = "request" if here == (match[2] == "Sent") else "reply"
    who = (
        f"this client {'sends' if what == 'request' else 'takes'}"
        if here
        else f"{call.peer if call.caller is None else call.method.service} takes"
    )
    text = (
        f"{MessageTooLarge.PREFIX}the {what} has {match[3]} bytes, {who} up to {match[4]}"
        f" (`max_message` in {'the' if here else 'its'} settings)"
    )
    return MessageTooLarge, text, not here


def status(call: Call, code: Code, message: str, trailer: Metadata) -> RpcError:
    """The error for a status that is not OK; its trailers become those of the call."""
    ours = any(key == ORIGIN for key, _ in trailer)
    remote = ours or code not in _MADE_HERE or bool(trailer)
    late = call.deadline is not None and asyncio.get_running_loop().time() >= call.deadline - 0.001
    if not ours and late and code in (Code.INTERNAL, Code.CANCELLED, Code.UNKNOWN, Code.DEADLINE_EXCEEDED):
        code, remote = Code.DEADLINE_EXCEEDED, False
    if code is Code.DEADLINE_EXCEEDED and not remote:
        message = f"no answer from {call.peer} before the deadline"
    kind = BY_CODE.get(code, Unknown)
    if code is Code.RESOURCE_EXHAUSTED:
        kind, message, remote = _exhausted(call, message, remote)
    result = kind(
        message,
        details=from_metadata(trailer),
        metadata=tuple(pair for pair in trailer if pair[0] not in _OURS),
        remote=remote,
        method=call.method.full_name,
        attempts=call.attempt,
        request_id=call.request_id or next((str(value) for key, value in trailer if key == REQUEST_ID), ""),
    )
    if isinstance(result, DeadlineExceeded):
        result.inherited = call.inherited and not remote
    call.trailer = result.metadata
    if call.caller is not None and not ours and ((call.peer and call.peer in message) or _ADDRESS.search(message)):
        return for_outside(call, result, _OUTSIDE.get(code, "{} has failed").format(call.method.service))
    return result
