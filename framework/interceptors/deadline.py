"""How long a call may take: what the caller says, what the policy says, and what is left of the call being served.

The deadline is data: it is computed here, sent by the wire and enforced there. A call made while serving another one
never outlives it: it gets what is left less a margin, so that the answer, or the failure, still arrives in time.
"""

from __future__ import annotations

import asyncio
import math

from framework.call import Call, Handler, Interceptor, Method, Reply, current
from framework.errors import DeadlineExceeded
from framework.policy import ClientSettings

MARGIN = 0.005
MARGIN_SHARE = 0.05


def deadline(settings: ClientSettings) -> Interceptor:
    """Give every call its deadline, and every stream its idle timeout.

    Order of say: the call's own `timeout`, the settings of the method, the proto's `timeout` option, the settings of
    the service. Streams of replies have no default deadline. A deadline inherited from the call being served always
    holds beside it.
    """

    def interceptor(method: Method[object, object], next: Handler) -> Handler:
        own = settings.methods.get(method.name)
        default: float | None = None
        idle: float | None = None
        if own is not None and own.timeout is not None:
            default = own.timeout
        elif method.timeout is not None:
            default = method.timeout
        elif not method.server_streaming:
            default = settings.timeout
        if method.server_streaming:
            idle = own.idle if own is not None and own.idle is not None else settings.idle
            idle = None if idle == math.inf else idle

        def handler(call: Call) -> Reply:
            now = asyncio.get_running_loop().time()
            call.idle = idle
            timeout = default if call.timeout is None else call.timeout
            mine = None if timeout is None or timeout == math.inf else now + timeout
            parent = current.get()
            # A task that a handler left behind goes on after its call, and not by its deadline.
            if parent is not None and parent.deadline is not None and parent.outcome is None:
                left = parent.deadline - now
                inherited = parent.deadline - max(MARGIN, MARGIN_SHARE * left)
                if mine is None or inherited < mine:
                    mine = inherited
                    call.inherited = True
            call.deadline = mine
            if mine is not None and mine <= now:
                error = DeadlineExceeded(
                    "the deadline had passed before the call was made", sent=False, method=method.full_name
                )
                error.inherited = call.inherited
                raise error
            return next(call)

        return handler

    return interceptor
