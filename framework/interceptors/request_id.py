"""One id along the whole chain of calls that one request causes, in the metadata `x-request-id`.

The first server gives a request its id, unless its caller did; every call that is made while it is served sends it
along. A caller that did not give one learns it from the error, when a call fails: `error.request_id`.
"""

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
    """Send the id of the call being served along."""

    def handler(call: Call) -> Reply:
        parent = current.get()
        given = call.get(KEY) if call.metadata else None
        if given is not None:
            call.request_id = str(given)
        elif parent is not None:
            call.request_id = parent.request_id
            call.metadata = (*call.metadata, (KEY, call.request_id))
        return next(call)

    return handler
