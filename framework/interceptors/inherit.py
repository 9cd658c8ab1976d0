"""What a call inherits from the one being served: deadline, request id and criticality, without a word of the handler.

    deadline      the earlier of its own and what is left of that being served, less a margin for the answer to arrive;
                  its own is the call's `timeout`, or the policy's
    request id    what the caller says, else that of the call being served
    criticality   what the caller says, else that of the call being served, else the policy's; nothing is sent of a call
                  of which nobody said anything

One interceptor for all three, since every call goes through it and each look at the context costs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from framework.call import Call, Criticality, Handler, Interceptor, Method, Reply, current
from framework.errors import DeadlineExceeded
from framework.interceptors.criticality import BY_NAME
from framework.interceptors.criticality import KEY as CRITICALITY
from framework.interceptors.request_id import KEY as REQUEST_ID

MARGIN = 0.005
MARGIN_SHARE = 0.05


def inherit(timeout: float | None, idle: float | None, criticality: str | None) -> Interceptor:
    """Give every call its deadline, id and criticality, and every stream its idle timeout.

    Args:
        timeout: seconds of a call that names none; None is no deadline but the inherited one.
        idle: seconds a stream of replies may be silent; None is for ever.
        criticality: what calls say that are made for themselves, or while a call is served that says nothing.
    """
    default = timeout
    own = None if criticality is None else Criticality[criticality]

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
            if parent is not None or own is not None or call.metadata:
                _say(call, parent, own)
            return next(call)

        return handler

    return interceptor


def _say(call: Call, parent: Call | None, own: Criticality | None) -> None:
    """Say with the call to which request it belongs, and how much it matters."""
    request_id = said = None
    for key, value in call.metadata:
        if key == REQUEST_ID:
            request_id = request_id or value
        elif key == CRITICALITY:
            said = said or value
    if request_id is not None:
        call.request_id = str(request_id)
    elif parent is not None and parent.request_id:
        call.request_id = parent.request_id
        call.metadata = (*call.metadata, (REQUEST_ID, call.request_id))
    if said is not None:
        call.criticality = BY_NAME.get(str(said))
        return
    level = own if parent is None or parent.criticality is None else parent.criticality
    if level is not None:
        call.criticality = level
        call.metadata = (*call.metadata, (CRITICALITY, level.name))
