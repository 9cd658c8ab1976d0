"""Pages that stand beside the methods: how the server is, what it serves, and a place to try that."""

from __future__ import annotations

from collections.abc import Callable

from google.protobuf.descriptor import ServiceDescriptor

from framework.http.docs import page, page_headers
from framework.http.front import Page
from framework.http.openapi import Info, document, json_text, yaml_text
from framework.http.settings import HttpSettings
from framework.http.status import Headers, text

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
    services: Callable[[], tuple[ServiceDescriptor, ...]], title: str, settings: HttpSettings
) -> dict[str, Page]:
    """`/docs` and the document that it shows, `/openapi.json` and `/openapi.yaml`.

    Args:
        services: what is served now.
        title: of the document.
    """
    made: dict[str, tuple[tuple[ServiceDescriptor, ...], bytes]] = {}

    def openapi(form: Callable[..., str], headers: Headers) -> Page:
        def answer() -> tuple[int, Headers, bytes]:
            now = services()
            shown = made.get(form.__name__)
            if shown is None or shown[0] is not now:
                shown = made[form.__name__] = (now, form(document(now, Info(title), settings=settings)).encode())
            return 200, headers, shown[1]

        return answer

    return {
        "/docs": lambda: (200, page_headers(), page()),
        "/openapi.json": openapi(json_text, JSON),
        "/openapi.yaml": openapi(yaml_text, YAML),
    }
