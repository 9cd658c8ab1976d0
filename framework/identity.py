"""Who calls: what the transport proved of the other side, and whom a request is made for.

    Peer        the other end of the connection, as its certificate says
    Identity    the caller, as a verified token, key or certificate says; inside a handler `context.identity`

Both are made by who has verified them, and by nobody else: nothing here is read from what a caller claims.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NO_CLAIMS: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection, by the certificate that it has shown.

    Attributes:
        names: its subject alternative names: `orders.internal`, `spiffe://shop/orders`.
        spiffe: the one of them that is a SPIFFE id, or empty.
        subject: the common name of the certificate, or empty.
    """

    names: tuple[str, ...] = ()
    spiffe: str = ""
    subject: str = ""

    def __str__(self) -> str:
        return self.spiffe or (self.names[0] if self.names else self.subject)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request is made for; the same along the whole chain of calls that it causes.

    Attributes:
        subject: who it is, `ann`; unique for its issuer.
        kind: how that was proved where it came in: `jwt`, `key`, `mtls`, or a word of an authenticator of your own.
        issuer: who vouches for it; empty when it is this system.
        roles: what it is, as rules of access name it.
        scopes: what it may do, as rules of access name it.
        service: the service that makes the call, `orders`; empty when nobody has proved to be one.
        claims: everything else that was said of it, and signed.
    """

    subject: str
    kind: str = ""
    issuer: str = ""
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    service: str = ""
    # Not compared, since they cannot be hashed, and not shown, since they may be personal.
    claims: Mapping[str, Any] = field(default_factory=lambda: NO_CLAIMS, compare=False, repr=False)

    def __str__(self) -> str:
        return self.subject or self.service
