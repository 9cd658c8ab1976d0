"""Pages that stand beside the methods: how the server is, what it serves, and a place to try that."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.descriptor import ServiceDescriptor

from framework.http.docs import page, page_headers
from framework.http.front import Page
from framework.http.openapi import Info, Security, document, json_text, yaml_text
from framework.http.settings import HttpSettings
from framework.http.status import Headers, text
from framework.security.authentication import API_KEY
from framework.security.guard import Guard

JSON: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
YAML: Headers = [(b"content-type", b"application/yaml"), (b"cache-control", b"no-store")]


def health_pages(unready: Callable[[], str]) -> dict[str, Page]:
    """`/healthz`, which says that the process lives, and `/readyz`, which says whether calls should come.

    Args:
        unready: why they should not; empty when they should.
    """

    def healthz() -> tuple[int, Headers, bytes]:
        return 200, JSON, b'{"status":"SERVING"}'

    def readyz() -> tuple[int, Headers, bytes]:
        if reason := unready():
            return 503, JSON, text({"status": "NOT_SERVING", "reason": reason})
        return healthz()

    return {"/healthz": healthz, "/readyz": readyz}


def docs_pages(
    services: Callable[[], tuple[ServiceDescriptor, ...]],
    title: str,
    settings: HttpSettings,
    guard: Guard | None = None,
) -> dict[str, Page]:
    """`/docs` and the document that it shows, `/openapi.json` and `/openapi.yaml`.

    Args:
        services: what is served now.
        title: of the document.
        guard: who may call, which the document says.
    """
    made: dict[str, tuple[tuple[ServiceDescriptor, ...], int, bytes]] = {}

    def openapi(form: Callable[..., str], headers: Headers) -> Page:
        def answer() -> tuple[int, Headers, bytes]:
            now, version = services(), 0 if guard is None else guard.access.version
            shown = made.get(form.__name__)
            if shown is None or shown[0] is not now or shown[1] != version:
                whole = document(now, Info(title), security=security_of(guard), settings=settings)
                shown = made[form.__name__] = (now, version, form(whole).encode())
            return 200, headers, shown[2]

        return answer

    return {
        "/docs": lambda: (200, page_headers(), page()),
        "/openapi.json": openapi(json_text, JSON),
        "/openapi.yaml": openapi(yaml_text, YAML),
    }


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
