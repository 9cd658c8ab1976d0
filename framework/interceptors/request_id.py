"""One id along the whole chain of calls that one request causes, in the metadata `x-request-id`.

The first server gives a request its id, unless its caller did; every call that is made while it is served sends it
along. A caller that did not give one learns it from the error, when a call fails: `error.request_id`.
"""

from __future__ import annotations

import itertools
import secrets

KEY = "x-request-id"

LONGEST = 128
"""Letters that an id may have. It stands in every line of every log of the chain; a longer one is not taken over."""


_prefix = secrets.token_hex(6)
_numbers = itertools.count(1)


def new_request_id() -> str:
    """Unique among all processes: 12 random hex digits of this one, and a number. For finding lines in logs."""
    return f"{_prefix}-{next(_numbers):x}"
