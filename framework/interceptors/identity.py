"""For whom a call is made, told along the whole chain of calls: signed, and never as a bare header.

A call that is made while another is served is made for the caller of that one; any other for the service itself. What
tells it is the metadata `framework-identity`: a token that is good for a minute, and for the service that is called.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Protocol

from framework.call import Call, Handler, Interceptor, Method, Reply, current
from framework.identity import Identity

KEY = "framework-identity"
"""The metadata key. No client beyond this system may send it: a gateway takes it out."""

NOBODY = Identity("", kind="anonymous")
"""The caller of whom nothing is known; services are told so, or a call for nobody would count as one of the service."""


class Signer(Protocol):
    """Makes the tokens that tell for whom a call is made."""

    def token(self, identity: Identity | None, audience: str, deadline: float | None) -> str | None:
        """A token for a call to `audience`; None when nothing can be said.

        Args:
            identity: for whom the call is made; None for the service itself.
            audience: the service that is called.
            deadline: of the call, on the loop's clock; None without one.
        """


signer: ContextVar[Signer | None] = ContextVar("framework.signer", default=None)
"""That of the service that runs in this context; what it connects to is told by it."""


def tell(signer: Signer, target: str) -> Interceptor:
    """Tell a service for whom calls are made.

    Args:
        target: the name of the service; empty when only its address is known, and what is called has to name it.
    """

    def interceptor(method: Method[object, object], next: Handler) -> Handler:
        audience = target or method.service

        def handler(call: Call) -> Reply:
            identity = call.identity
            if identity is None and (parent := current.get()) is not None:
                identity = parent.identity or NOBODY
            token = signer.token(identity, audience, call.deadline)
            if token is not None:
                call.metadata = (*call.metadata, (KEY, token))
            return next(call)

        return handler

    return interceptor


def bearer(token: str | Callable[[], str]) -> Interceptor:
    """Show a token with every call: `connect("orders", interceptors=[bearer(token)])`.

    Args:
        token: the token, or what gives the one that counts now.
    """

    def interceptor(method: Method[object, object], next: Handler) -> Handler:
        def handler(call: Call) -> Reply:
            shown = token if isinstance(token, str) else token()
            call.metadata = (*call.metadata, ("authorization", f"Bearer {shown}"))
            return next(call)

        return handler

    return interceptor
