"""Pages that stand beside the methods: how the server is, what it serves, and a place to try that."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from google.protobuf.descriptor import ServiceDescriptor

from framework.http.compression import accepted, pack
from framework.http.docs import page, page_headers
from framework.http.front import Page
from framework.http.openapi import Info, Security, document, json_text, yaml_text
from framework.http.settings import DOCS, HEALTHZ, OPENAPI_JSON, OPENAPI_YAML, READYZ, HttpSettings
from framework.http.status import Headers, text
from framework.http.success import unchanged
from framework.security.authentication import API_KEY
from framework.security.guard import Guard

JSON: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
OPENAPI: Mapping[Callable[..., str], Headers] = {
    json_text: [(b"content-type", b"application/json"), (b"cache-control", b"no-cache")],
    yaml_text: [(b"content-type", b"application/yaml"), (b"cache-control", b"no-cache")],
}


def health_pages(unready: Callable[[], str]) -> dict[str, Page]:
    """`/healthz`, which says that the process lives, and `/readyz`, which says whether calls should come.

    Args:
        unready: why they should not; empty when they should.
    """

    def healthz(asked: Mapping[bytes, bytes]) -> tuple[int, Headers, bytes]:
        return 200, JSON, b'{"status":"SERVING"}'

    def readyz(asked: Mapping[bytes, bytes]) -> tuple[int, Headers, bytes]:
        if reason := unready():
            return 503, JSON, text({"status": "NOT_SERVING", "reason": reason})
        return healthz(asked)

    return {HEALTHZ: healthz, READYZ: readyz}


class _Text:
    """One that is read again and again: packed once, and not sent to whoever has it."""

    def __init__(self, headers: Headers, body: bytes, settings: HttpSettings) -> None:
        self._type, *others = headers
        tag = f'W/"{hashlib.blake2b(body, digest_size=12).hexdigest()}"'
        self._headers: Headers = [*others, (b"etag", tag.encode()), (b"vary", b"accept-encoding")]
        self._packed = {"": body}
        self._packs = len(body) >= settings.compress_above

    def answer(self, asked: Mapping[bytes, bytes]) -> tuple[int, Headers, bytes]:
        """Status, headers and body for the headers of a request."""
        if unchanged("GET", asked, self._headers):
            return 304, self._headers, b""
        how = accepted(asked.get(b"accept-encoding")) if self._packs else ""
        body = self._packed.get(how)
        if body is None:
            body = self._packed[how] = pack(how, self._packed[""])
        encoding = [(b"content-encoding", how.encode())] if how else []
        return 200, [self._type, *encoding, *self._headers], body


@dataclass(frozen=True, slots=True)
class Grpc:
    """Where something is served over gRPC: `host:port`, and whether over TLS."""

    address: str
    tls: bool


def docs_pages(
    services: Callable[[], tuple[ServiceDescriptor, ...]],
    title: str,
    settings: HttpSettings,
    guard: Guard | None = None,
    grpc: Grpc | None = None,
) -> dict[str, Page]:
    """`/docs` and the document that it shows, `/openapi.json` and `/openapi.yaml`.

    Args:
        services: what is served now.
        title: of the document.
        guard: who may call, which the document says.
        grpc: where the same is served over gRPC; None where nobody knows.
    """
    shown = _Text(page_headers(), page(), settings)
    info = Info(title) if grpc is None else Info(title, grpc_target=grpc.address, grpc_tls=grpc.tls)

    def openapi(form: Callable[..., str]) -> Page:
        made: tuple[tuple[ServiceDescriptor, ...], int, _Text] | None = None

        def answer(asked: Mapping[bytes, bytes]) -> tuple[int, Headers, bytes]:
            nonlocal made
            now, version = services(), 0 if guard is None else guard.access.version
            if made is None or made[0] is not now or made[1] != version:
                whole = document(now, info, security=security_of(guard), settings=settings)
                made = (now, version, _Text(OPENAPI[form], form(whole).encode(), settings))
            return made[2].answer(asked)

        return answer

    return {DOCS: shown.answer, OPENAPI_JSON: openapi(json_text), OPENAPI_YAML: openapi(yaml_text)}


def security_of(guard: Guard | None) -> Security | None:
    """How callers prove who they are, in the words of OpenAPI."""
    if guard is None:
        return None
    schemes: dict[str, dict[str, str]] = {}
    if guard.authentication.jwt is not None:
        schemes["bearer"] = {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    if guard.authentication.keys is not None:
        schemes["key"] = {"type": "apiKey", "in": "header", "name": API_KEY}
    if not schemes:
        return None
    access = guard.access
    required: list[dict[str, list[str]]] = [{name: []} for name in schemes]
    return Security(schemes, required, lambda method: () if access.held(method).public else None)
