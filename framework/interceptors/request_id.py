"""One id along the whole chain of calls that one request causes, in the metadata `x-request-id`."""

from __future__ import annotations

import random

from framework.call import Call, Handler, Method, Reply, current

KEY = "x-request-id"


def new_request_id() -> str:
    """16 hex digits; for finding lines in logs, not for secrets."""
    return f"{random.getrandbits(64):016x}"


def request_id(method: Method[object, object], next: Handler) -> Handler:
    """Send the id of the call being served along, or a new one."""

    def handler(call: Call) -> Reply:
        parent = current.get()
        call.request_id = parent.request_id if parent is not None else new_request_id()
        call.metadata = (*call.metadata, (KEY, call.request_id))
        return next(call)

    return handler
