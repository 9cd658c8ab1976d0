"""What answers instead of a service that does not: a function of the user's, after the final failure.

    async def bestsellers(request: SearchRequest, error: RpcError) -> SearchReply: ...

    connect("catalog", fallbacks={"Search": bestsellers})

Only for failures that say that the service cannot answer: never for what the request itself is to blame for, never when
the caller has gone. It is no way to call the same service again: what it calls there fails.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

from framework.call import Call, Handler, Interceptor, Method, Reply
from framework.errors import Code, ConfigError, FailedPrecondition, RpcError
from framework.policy import FAILURES

log = logging.getLogger("framework.client")

Fallback: TypeAlias = Callable[[Any, RpcError], Awaitable[Any]]
"""The reply to a request whose call failed with this error."""

CANNOT_ANSWER = FAILURES | {Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED}

_answering: ContextVar[frozenset[str]] = ContextVar("framework.answering", default=frozenset())
"""The services that are being answered for in this task."""


def fallback(answer: Fallback) -> Interceptor:
    """Let `answer` reply where a call has failed for good.

    Raises:
        ConfigError: the method's replies are a stream.
    """

    def interceptor(method: Method[Any, Any], next: Handler) -> Handler:
        if method.server_streaming:
            raise ConfigError(f"a fallback for {method.full_name}: only methods with one reply can have one")

        async def handler(call: Call) -> Reply:
            _refuse_own(method)
            try:
                return await next(call)
            except RpcError as error:
                if error.code not in CANNOT_ANSWER:
                    raise
                failure = error
            log.info("%s is answered by its fallback: %s", method.full_name, failure)
            token = _answering.set(_answering.get() | {method.service})
            try:
                return await answer(call.request, failure)
            finally:
                _answering.reset(token)
                del failure  # it knows this frame, and this frame would know it

        return handler

    return interceptor


def without_fallback(method: Method[Any, Any], next: Handler) -> Handler:
    """What stands there for the other methods of a service that has fallbacks: they must not be called from one."""

    def handler(call: Call) -> Awaitable[Reply]:
        _refuse_own(method)
        return next(call)

    return handler


def _refuse_own(method: Method[Any, Any]) -> None:
    if method.service in _answering.get():
        raise FailedPrecondition(
            f"a fallback of {method.service} calls {method.full_name} of the same service",
            sent=False,
            method=method.full_name,
        )
