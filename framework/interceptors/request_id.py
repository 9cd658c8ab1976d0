"""One id along the whole chain of calls that one request causes, in the metadata `x-request-id`."""

from __future__ import annotations

import itertools
import secrets

from framework.call import Call, Handler, Method, Reply, current

KEY = "x-request-id"


_prefix = secrets.token_hex(6)
_numbers = itertools.count(1)


def new_request_id() -> str:
    """Unique among all processes: 12 random hex digits of this one, and a number. For finding lines in logs."""
    return f"{_prefix}-{next(_numbers):x}"


def request_id(method: Method[object, object], next: Handler) -> Handler:
    """Send the id of the call being served along, or a new one."""

    def handler(call: Call) -> Reply:
        parent = current.get()
        given = call.get(KEY) if call.metadata else None
        if given is not None:
            call.request_id = str(given)
        else:
            call.request_id = parent.request_id if parent is not None else new_request_id()
            call.metadata = (*call.metadata, (KEY, call.request_id))
        return next(call)

    return handler
