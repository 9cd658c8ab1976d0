"""How much a call matters, carried along the whole chain of calls in the metadata `x-criticality`.

What the caller says goes first, then what the call being served said, then the policy of the method; a call of which
nobody said anything is CRITICAL, and nothing is sent.
"""

from __future__ import annotations

from framework.call import Call, Criticality, Handler, Interceptor, Method, Reply, current

KEY = "x-criticality"
"""The metadata key; its value is the name of a Criticality."""

BY_NAME = dict(Criticality.__members__)


def criticality(default: str | None) -> Interceptor:
    """Say with every call how much it matters.

    Args:
        default: what calls say that are made for themselves, or while a call is served that says nothing.
    """
    own = None if default is None else Criticality[default]

    def interceptor(method: Method[object, object], next: Handler) -> Handler:
        def handler(call: Call) -> Reply:
            given = call.get(KEY) if call.metadata else None
            if given is not None:
                call.criticality = BY_NAME.get(str(given))
                return next(call)
            parent = current.get()
            said = own if parent is None or parent.criticality is None else parent.criticality
            if said is not None:
                call.criticality = said
                call.metadata = (*call.metadata, (KEY, said.name))
            return next(call)

        return handler

    return interceptor
