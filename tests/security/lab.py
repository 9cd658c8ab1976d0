"""An issuer of tokens, services that say who called them, and what it takes to put them on a network in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from google.protobuf.wrappers_pb2 import StringValue

from framework import Context, Method, Service, Settings
from framework.access import AccessSettings, AuthSettings, InternalSettings, JwtSettings
from framework.parsing import Secret
from framework.server.servicer import Servicer

ISSUER = "https://login.test/"
AUDIENCE = "shop"
SECRET = "0123456789abcdef0123456789abcdef"

ED25519 = ed25519.Ed25519PrivateKey.generate()
OTHER = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
P256 = ec.generate_private_key(ec.SECP256R1())


def private_pem(key: Any) -> bytes:
    """A private key as PEM."""
    raw: bytes = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return raw


def public_pem(key: Any) -> bytes:
    """The public half of a key as PEM."""
    raw: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return raw


def claims(now: float | None = None, **changes: Any) -> dict[str, Any]:
    """What a token says; a change to None leaves it out."""
    moment = int(time.time() if now is None else now)
    said = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "iat": moment, "exp": moment + 600, "roles": ["buyer"]}
    return {name: value for name, value in {**said, **changes}.items() if value is not None}


def token(
    key: Any = ED25519, algorithm: str = "EdDSA", now: float | None = None, kid: str | None = None, **changes: Any
) -> str:
    """A token of the issuer."""
    return jwt.encode(claims(now, **changes), key, algorithm, {} if kid is None else {"kid": kid})


def bearer(text: str) -> tuple[tuple[str, str], ...]:
    """Metadata with a token."""
    return (("authorization", f"Bearer {text}"),)


def settings_of(path: Path, *, secret: str = SECRET, **access: Any) -> Settings:
    """Settings of a service that knows the tokens of the issuer, and of the other services."""
    key = path / "issuer.pem"
    key.write_bytes(public_pem(ED25519))
    auth = AuthSettings(
        jwt=JwtSettings(issuer=ISSUER, audience=(AUDIENCE,), algorithms=("EdDSA",), key=str(key)),
        internal=InternalSettings(secret=Secret(secret)),
    )
    return Settings(auth=auth, access=AccessSettings.parse(access, "access"))


ARITIES = {"One": (False, False), "Each": (False, True), "All": (True, False), "Talk": (True, True)}
"""Whether requests and replies stream, by method."""


class Who(Servicer):
    """Says who has called; with another behind it, who has called that."""

    def __init__(
        self, service: str = "lab.Who", declared: Mapping[str, tuple[Mapping[str, Any], ...]] | None = None
    ) -> None:
        access = declared or {}
        vars(self)["__methods__"] = tuple(
            Method(service, name, StringValue, StringValue, *arity, access=access.get(name, ()))
            for name, arity in ARITIES.items()
        )
        self.next: Any = None
        self.seen: list[Context] = []

    async def _answer(self, context: Context) -> StringValue:
        self.seen.append(context)
        if self.next is not None:
            return StringValue(value=f"{shown(context)} > {(await self.next(StringValue())).value}")
        return StringValue(value=shown(context))

    async def One(self, request: StringValue, context: Context) -> StringValue:
        return await self._answer(context)

    async def Each(self, request: StringValue, context: Context) -> AsyncIterator[StringValue]:
        yield await self._answer(context)

    async def All(self, requests: AsyncIterator[StringValue], context: Context) -> StringValue:
        return await self._answer(context)

    async def Talk(self, requests: AsyncIterator[StringValue], context: Context) -> AsyncIterator[StringValue]:
        yield await self._answer(context)


def shown(context: Context) -> str:
    """Who the caller of a call is, and from where."""
    identity = context.identity
    if identity is None:
        return "nobody"
    return f"{identity.subject or '-'} by {identity.kind} from {identity.service or '-'}"


def method(name: str = "One", service: str = "lab.Who") -> Any:
    """A method of such a service."""
    return next(one for one in Who(service).__methods__ if one.name == name)


async def ask(channel: Any, name: str = "One", metadata: Any = (), service: str = "lab.Who") -> str:
    """Call one, of whatever arity; returns what it says."""
    from framework.client.stub import StreamReply, UnaryReply

    found = method(name, service)
    request: Any = [StringValue()] if found.client_streaming else StringValue()
    handler = channel.bind(found)
    if found.server_streaming:
        replies = [reply.value async for reply in StreamReply(handler, found, request, None, metadata)]
        return str(replies[0])
    reply: Any = await UnaryReply(handler, found, request, None, metadata)
    return str(reply.value)


def service(name: str, servicer: Who, settings: Settings, **more: Any) -> Service:
    """A service of one servicer."""
    return Service(name, servicers=[servicer], settings=settings, **more)
