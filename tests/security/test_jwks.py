"""The keys of an issuer: fetched, kept through an outage, rotated."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt as library
import pytest
from aiohttp import web

from framework.access import JwtSettings
from framework.errors import ConfigError, Unavailable
from framework.security.authentication import Refused
from framework.security.jwks import COOLDOWN, LARGEST, Jwks, kind_of, parse, public_key
from framework.security.jwt import Jwt
from tests.security.lab import AUDIENCE, ED25519, ISSUER, OTHER, P256, RSA, private_pem, public_pem, token

EPOCH = 1_800_000_000.0
URL = "https://login.test/keys"


def jwk(key: Any, kid: str | None = "a", **more: Any) -> dict[str, Any]:
    """A public key as a key set has it."""
    algorithm: Any = (
        library.algorithms.RSAAlgorithm
        if key is RSA
        else library.algorithms.ECAlgorithm
        if key is P256
        else library.algorithms.OKPAlgorithm
    )
    said = json.loads(algorithm.to_jwk(key.public_key()))
    return {**said, **({} if kid is None else {"kid": kid}), **more}


def key_set(*keys: Mapping[str, Any]) -> bytes:
    """A key set."""
    return json.dumps({"keys": keys}).encode()


class Endpoint:
    """What is at the URL, and how often it was asked for."""

    def __init__(self, content: bytes | Exception) -> None:
        self.content = content
        self.asked: list[float] = []

    async def __call__(self, url: str) -> bytes:
        assert url == URL
        self.asked.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.05)
        if isinstance(self.content, Exception):
            raise self.content
        return self.content


def now() -> float:
    """Seconds since the epoch, in step with the loop."""
    return EPOCH + asyncio.get_running_loop().time()


def issuer(endpoint: Endpoint, refresh: float = 300.0) -> tuple[Jwks, Jwt]:
    """The keys at the endpoint, and what checks tokens with them."""
    keys = Jwks(URL, refresh, fetch=endpoint)
    said = JwtSettings(issuer=ISSUER, audience=(AUDIENCE,), algorithms=("EdDSA", "RS256"), jwks=URL)
    check = Jwt(said, keys, now)
    keys.changed = check.verified.clear
    return keys, check


@contextmanager
def running(keys: Jwks) -> Iterator[None]:
    """Keep the keys fresh while the block runs."""
    task = asyncio.get_running_loop().create_task(keys.run())
    try:
        yield
    finally:
        task.cancel()


@pytest.mark.virtual_time
async def test_an_hour_without_the_endpoint() -> None:
    """While it cannot be reached for an hour, no call fails whose token names a known key; and it is asked on."""
    endpoint = Endpoint(key_set(jwk(ED25519)))
    keys, check = issuer(endpoint)
    failed = 0
    with running(keys):
        await check.verify(token(now=now(), kid="a"))
        endpoint.content = OSError("connection refused")
        for _ in range(3600):
            await asyncio.sleep(1)
            try:
                await check.verify(token(now=now(), kid="a"))
            except (Refused, Unavailable):
                failed += 1
        assert failed == 0
        assert 300 < len(endpoint.asked) < 400
        endpoint.content = key_set(jwk(OTHER, "b"))
        await asyncio.sleep(COOLDOWN + 1)
        assert (await check.verify(token(OTHER, now=now(), kid="b"))).subject == "ann"


@pytest.mark.virtual_time
async def test_rotation() -> None:
    """A token that names a new key causes one fetch, and holds; one that names the old holds as long as it is there."""
    endpoint = Endpoint(key_set(jwk(ED25519, "old")))
    keys, check = issuer(endpoint)
    with running(keys):
        old = token(now=now(), kid="old")
        await check.verify(old)
        await asyncio.sleep(COOLDOWN)
        endpoint.content = key_set(jwk(ED25519, "old"), jwk(OTHER, "new"))
        await check.verify(token(OTHER, now=now(), kid="new"))
        assert len(endpoint.asked) == 2
        await check.verify(old)
        endpoint.content = key_set(jwk(OTHER, "new"))
        await asyncio.sleep(300)
        with pytest.raises(Refused, match="not known"):
            await check.verify(old)  # though it was checked before


@pytest.mark.virtual_time
async def test_unknown_keys_cause_few_fetches() -> None:
    """Whoever makes up names of keys causes one fetch in so many seconds, and none that is made at the same time."""
    endpoint = Endpoint(key_set(jwk(ED25519)))
    keys, check = issuer(endpoint, 86400)

    async def refused(number: int) -> None:
        with pytest.raises(Refused, match="not known"):
            await check.verify(token(OTHER, now=now(), kid=f"made-up-{number}"))

    with running(keys):
        await check.verify(token(now=now(), kid="a"))
        for second in range(60):
            await asyncio.gather(*(refused(second * 10 + one) for one in range(10)))
            await asyncio.sleep(1)
    assert 5 <= len(endpoint.asked) <= 7
    gaps = [later - sooner for sooner, later in zip(endpoint.asked, endpoint.asked[1:], strict=False)]
    assert min(gaps) >= COOLDOWN


@pytest.mark.virtual_time
async def test_nothing_is_known() -> None:
    """Before there is any key, calls fail with UNAVAILABLE: their tokens may be well."""
    endpoint = Endpoint(OSError("connection refused"))
    keys, check = issuer(endpoint)
    with running(keys):
        with pytest.raises(Unavailable, match="cannot be checked"):
            await check.verify(token(now=now(), kid="a"))
        endpoint.content = key_set(jwk(ED25519))
        await asyncio.sleep(COOLDOWN + 1)
        assert (await check.verify(token(now=now(), kid="a"))).subject == "ann"


@pytest.mark.virtual_time
async def test_an_endpoint_that_hangs() -> None:
    """Keys that are known are used while a fetch hangs."""

    async def hang(url: str) -> bytes:
        await asyncio.Event().wait()
        raise AssertionError

    endpoint = Endpoint(key_set(jwk(ED25519)))
    keys, check = issuer(endpoint, 60)
    with running(keys):
        await check.verify(token(now=now(), kid="a"))
        keys._fetch = hang
        await asyncio.sleep(61)
        start = asyncio.get_running_loop().time()
        assert (await check.verify(token(now=now(), kid="a", jti="2"))).subject == "ann"
        assert asyncio.get_running_loop().time() == start


@pytest.mark.virtual_time
async def test_a_token_without_the_name_of_a_key() -> None:
    """It is checked with the only key there is; of several, none is guessed."""
    endpoint = Endpoint(key_set(jwk(ED25519)))
    keys, check = issuer(endpoint)
    with running(keys):
        assert (await check.verify(token(now=now()))).subject == "ann"
        endpoint.content = key_set(jwk(ED25519), jwk(OTHER, "b"))
        await asyncio.sleep(300.1)
        with pytest.raises(Refused, match="not known"):
            await check.verify(token(now=now()))


@pytest.mark.virtual_time
async def test_keys_without_a_name() -> None:
    """A token that names none is checked with each of those that have none, and with no other."""
    endpoint = Endpoint(key_set(jwk(OTHER, None), jwk(RSA, None), jwk(ED25519, None), jwk(P256, "b")))
    keys, check = issuer(endpoint)
    with running(keys):
        for key, algorithm in ((OTHER, "EdDSA"), (ED25519, "EdDSA"), (RSA, "RS256")):
            assert (await check.verify(token(key, algorithm, now()))).subject == "ann"
        assert repr(keys) == f"<Jwks {URL} with 4 keys>"
        endpoint.content = key_set(jwk(OTHER, None), jwk(P256, "b"))
        await asyncio.sleep(300.1)
        with pytest.raises(Refused, match="the token's signature does not hold"):
            await check.verify(token(ED25519, now=now()))
        with pytest.raises(Refused, match="the token's algorithm is not that of its key"):
            await check.verify(token(RSA, "RS256", now()))
        with pytest.raises(Refused, match="signed with a key that is not known"):
            await check.verify(token(OTHER, now=now(), kid="c"))


@pytest.mark.virtual_time
async def test_a_key_for_one_algorithm() -> None:
    """A key that says what it is for checks nothing else, though its kind would do."""
    keys = Jwks(URL, fetch=Endpoint(key_set(jwk(RSA, alg="RS256"))))
    said = JwtSettings(issuer=ISSUER, audience=(AUDIENCE,), algorithms=("RS256", "PS256"), jwks=URL)
    check = Jwt(said, keys, now)
    assert (await check.verify(token(RSA, "RS256", now(), "a"))).subject == "ann"
    with pytest.raises(Refused, match="the token's algorithm is not that of its key"):
        await check.verify(token(RSA, "PS256", now(), "a"))


def test_keys_that_do_not_count() -> None:
    """Secrets, keys for encryption, short ones, ones for something else and broken ones are left out."""
    short = library.algorithms.RSAAlgorithm.to_jwk(_short_rsa().public_key())
    secret = {"kty": "oct", "kid": "secret", "k": base64.urlsafe_b64encode(b"x" * 32).decode(), "alg": "HS256"}
    found = parse(
        key_set(
            jwk(ED25519, "good"),
            jwk(RSA, "encrypts", use="enc"),
            jwk(RSA, "other", alg="ES256"),
            jwk(RSA, "hmac", alg="HS256"),
            {**json.loads(short), "kid": "short"},
            secret,
            {"kty": "RSA", "kid": "broken"},
            {"kty": "?"},
            jwk(RSA, "listed", alg=["RS256"]),
            jwk(RSA, "numbered", alg=5),
            {"kty": "EC", "crv": ["P-256"], "x": "AA", "y": "AA", "kid": "broken"},
        )
    )
    assert list(found) == ["good"]


def _short_rsa() -> Any:
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(65537, 1024)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"keys": 5}', b"[" * 100000, b"\xff"])
def test_what_is_no_key_set(raw: bytes) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="no key set"):
        parse(raw)


async def test_over_http() -> None:
    """Keys come over HTTP; what is too large, redirects elsewhere or says another status does not count."""
    answers: dict[str, web.Response] = {
        "/keys": web.Response(body=key_set(jwk(P256, "a"))),
        "/large": web.Response(body=b" " * (LARGEST + 1) + key_set(jwk(P256))),
        "/moved": web.Response(status=302, headers={"location": "/keys"}),
        "/broken": web.Response(status=503),
    }
    app = web.Application()
    for path in answers:
        app.router.add_get(path, _answering(answers[path]))
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    try:
        for path in answers:
            keys = Jwks(f"http://127.0.0.1:{port}{path}")
            if path == "/keys":
                await keys.seek()
                assert {kid: kind_of(known.key) for kid, (known,) in keys.keys.items()} == {"a": "EC P-256"}
                assert repr(keys) == f"<Jwks http://127.0.0.1:{port}/keys with 1 keys>"
            else:
                with pytest.raises(Unavailable):
                    await keys.seek()
    finally:
        await runner.cleanup()


def _answering(response: web.Response) -> Any:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=response.status, body=response.body, headers=response.headers)

    return answer


def test_key_file(tmp_path: Path) -> None:
    """A file may hold a public key, or a private one, whose public half counts."""
    for content in (public_pem(ED25519), private_pem(ED25519)):
        (tmp_path / "key.pem").write_bytes(content)
        assert kind_of(public_key(tmp_path / "key.pem")) == "Ed25519"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"nothing", "holds no PEM key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----", "holds no PEM key"),
        (b"\xff\xfe", "cannot be read: it is no UTF-8"),
        (None, "cannot be read: No such file"),
    ],
)
def test_mistakes_of_a_key_file(tmp_path: Path, content: bytes | None, expected: str) -> None:
    """One line says which file, and what is wrong."""
    if content is not None:
        (tmp_path / "key.pem").write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{tmp_path}/key.pem {expected}"):
        public_key(tmp_path / "key.pem")
