"""The page on which people read what there is, fill in a request and make the call.

One HTML file with everything in it: nothing is fetched but the document that it shows, and nobody is called but the
server that it came from. What it may do is said in its Content-Security-Policy, by the hashes of what is in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from importlib.resources import files

from framework.http.status import Headers

SCRIPTS = ("forms.js", "call.js", "method.js", "page.js")


def page(openapi: str = "openapi.json") -> bytes:
    """The page.

    Args:
        openapi: where the document is, relative to the page.
    """
    text = _text("index.html").replace("{{openapi}}", html.escape(openapi))
    return text.replace("{{style}}", _style()).replace("{{script}}", _script()).encode()


def page_headers() -> Headers:
    """The headers that the page is sent with."""
    policy = (
        "default-src 'none'",
        f"script-src '{_hash(_script())}'",
        f"style-src '{_hash(_style())}'",
        "connect-src 'self'",
        "img-src data: blob:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return [
        (b"content-type", b"text/html; charset=utf-8"),
        (b"content-security-policy", "; ".join(policy).encode()),
        (b"cache-control", b"no-cache"),
        (b"referrer-policy", b"no-referrer"),
        (b"x-content-type-options", b"nosniff"),
    ]


@cache
def _text(name: str) -> str:
    return (files("framework.http") / "page" / name).read_text(encoding="utf-8")


@cache
def _style() -> str:
    return _text("style.css")


@cache
def _script() -> str:
    # In a function, so that nothing of it is global.
    return '"use strict";\n(() => {\n' + "\n".join(map(_text, SCRIPTS)) + "\n})();\n"


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
