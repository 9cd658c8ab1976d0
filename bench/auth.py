"""What it costs to know who calls: a token that was seen before, one that is new, and a call between two services."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.utils import base64url_decode

from bench.calls import REQUEST, Ours, process, repeat
from bench.echo import UNARY, Echo
from bench.harness import Row, paired, single
from framework import Identity, Service, Settings, UnaryReply, bearer, connect
from framework.access import AccessSettings, AuthSettings, InternalSettings, JwtSettings
from framework.call import Call, Reply
from framework.interceptors.identity import tell
from framework.parsing import Secret
from framework.security.authentication import Authentication
from framework.security.jwks import OneKey
from framework.security.jwt import Jwt
from framework.security.tokens import Tokens
from framework.server.context import incoming_call
from framework.testing import Network

CHECKS = 400
KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
SETTINGS = JwtSettings(issuer="https://login.test/", audience=("shop",), algorithms=tuple(KEYS), key="-")


def tokens(algorithm: str, count: int) -> list[str]:
    """Different ones."""
    now = int(time.time())
    said = {
        "iss": "https://login.test/",
        "aud": "shop",
        "sub": "ann",
        "iat": now,
        "exp": now + 3600,
        "roles": ["buyer"],
    }
    return [jwt.encode({**said, "jti": str(number)}, KEYS[algorithm], algorithm) for number in range(count)]


async def auth() -> AsyncIterator[Row]:
    """The rows."""
    yield await seen("auth.jwt", tokens("RS256", 1)[0])
    for algorithm in KEYS:
        yield await new(algorithm)
    yield await told()
    yield await between()


async def handled(call: Call) -> Reply:
    """Answers nothing."""


async def seen(name: str, token: str) -> Row:
    """A whole pass through the interceptor with a token that was checked before."""
    check = Jwt(SETTINGS, OneKey(KEYS["RS256"].public_key()))
    handler = Authentication(jwt=check).interceptor("echo")(UNARY, handled)
    metadata = (("user-agent", "grpc-python/1.85"), ("authorization", f"Bearer {token}"), ("x-request-id", "a"))
    samples = []
    for _ in range(CHECKS):
        call = incoming_call(UNARY, metadata, deadline=None, peer="ipv4:127.0.0.1:1")
        start = time.perf_counter_ns()
        await handler(call)
        samples.append((time.perf_counter_ns() - start) / 1000)
    return single(name, "us", samples, "<= 60")


async def new(algorithm: str) -> Row:
    """A token that was not seen before, beside a unary call of grpc's: paid once for each token, not for each call.

    The signatures of other kinds than RSA alone take longer than that allows, whoever checks them; there it is beside
    these.
    """
    texts = tokens(algorithm, 100)
    made = itertools.cycle(texts)
    key = KEYS[algorithm].public_key()

    async def check() -> float:
        checker = Jwt(SETTINGS, OneKey(key))
        start = time.perf_counter()
        for _ in range(100):
            await checker.verify(next(made))
        return (time.perf_counter() - start) / 100 * 1e6

    signs = jwt.PyJWS().get_algorithm_by_name(algorithm)
    signed = [(text.rpartition(".")[0].encode(), base64url_decode(text.rpartition(".")[2])) for text in texts]

    async def alone() -> float:
        start = time.perf_counter()
        for text, signature in signed:
            assert signs.verify(text, key, signature)
        return (time.perf_counter() - start) / len(signed) * 1e6

    if algorithm != "RS256":
        return await paired(f"auth.jwt.new.{algorithm}", "us", check, "its signature alone", alone, "<= 1.5")
    async with process("ours") as address, connect(address, settings=Settings()) as channel:
        ours = Ours(channel)

        async def call() -> float:
            start = time.perf_counter()
            for _ in range(50):
                await ours.call()
            return (time.perf_counter() - start) / 50 * 1e6

        return await paired(f"auth.jwt.new.{algorithm}", "us", check, "a unary call", call, "<= 0.15")


async def told() -> Row:
    """What a service tells with each call, and the other one checks: both sides."""
    settings = InternalSettings(secret=Secret("0" * 32))
    ours, theirs = Tokens("orders", settings), Tokens("payments", settings)
    sending = tell(ours, "payments")(UNARY, handled)
    receiving = Authentication(tokens=theirs).interceptor("payments")(UNARY, handled)
    ann = Identity("ann", "jwt", "https://login.test/", frozenset({"buyer"}))
    samples = []
    for _ in range(CHECKS):
        call = Call(UNARY, REQUEST)
        call.identity = ann
        start = time.perf_counter_ns()
        await sending(call)
        arrived = incoming_call(UNARY, call.metadata, deadline=None, peer="")
        await receiving(arrived)
        samples.append((time.perf_counter_ns() - start) / 1000)
    return single("auth.told", "us", samples, "<= 30")


async def between() -> Row:
    """A call on the network in memory with a token and a rule, beside one without."""
    with TemporaryDirectory() as folder:
        key = _written(Path(folder, "key.pem"), KEYS["RS256"])
        said = JwtSettings(issuer="https://login.test/", audience=("shop",), algorithms=("RS256",), key=str(key))
        access = AccessSettings.parse({"rules": {"bench.Echo/*": {"roles": ["buyer"]}}}, "access")
        async with Network() as network:
            network.add(Service("open", servicers=[Echo()], settings=Settings()))
            network.add(
                Service("asks", servicers=[Echo()], settings=Settings(auth=AuthSettings(jwt=said), access=access))
            )
            shown = bearer(tokens("RS256", 1)[0])

            async def asks() -> float:
                return await _timed(network.connect("asks", interceptors=[shown]))

            async def open() -> float:
                return await _timed(network.connect("open"))

            return await paired("auth.call", "us", asks, "without", open, "<= 1.5")


async def _timed(channel: Any) -> float:
    handler = channel.bind(UNARY)
    start = time.perf_counter()
    await repeat(lambda: _call(handler))
    await asyncio.sleep(0)
    return (time.perf_counter() - start) / CHECKS * 1e6


async def _call(handler: Any) -> Any:
    return await UnaryReply(handler, UNARY, REQUEST)


def _written(file: Path, key: Any) -> Path:
    """A file with the public half of a key."""
    pem, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    file.write_bytes(key.public_key().public_bytes(pem, form))
    return file
