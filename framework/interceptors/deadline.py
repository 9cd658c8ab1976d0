"""How long a call may take: what the caller says, what the policy says, and what is left of the call being served.

The deadline is data: it is computed here, sent by the wire and enforced there. A call made while serving another one
never outlives it: it gets what is left less a margin, so that the answer, or the failure, still arrives in time.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from framework.call import Call, Handler, Interceptor, Method, Reply, current
from framework.errors import DeadlineExceeded

MARGIN = 0.005
MARGIN_SHARE = 0.05


def deadline(timeout: float | None, idle: float | None) -> Interceptor:
    """Give every call its deadline, and every stream its idle timeout.

    Args:
        timeout: seconds of a call that names none; None is no deadline but the inherited one.
        idle: seconds a stream of replies may be silent; None is for ever.

    The deadline of the call being served always holds beside the call's own.
    """
    default = timeout

    def interceptor(method: Method[object, object], next: Handler) -> Handler:
        time: Callable[[], float] | None = None

        def handler(call: Call) -> Reply:
            nonlocal time
            if time is None:  # once: asking for the running loop is a system call on some versions of Python
                time = asyncio.get_running_loop().time
            now = time()
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
