"""What stands before every HttpApp: request ids, forwarded headers, CORS, and pages of its own.

The application behind it can be replaced while requests are served; each is finished by the one that it began with.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from framework.errors import PermissionDenied, RpcError
from framework.http.admission import CLIENT
from framework.http.app import Guard
from framework.http.asgi import OUTSIDE, Receive, Scope, Send, address_of
from framework.http.cors import FOREIGN, Cors, respond
from framework.http.exchange import Exchange
from framework.http.forwarded import Proxies
from framework.http.headers import TOLD_OF_CLIENT
from framework.http.rest import fail
from framework.http.settings import HttpSettings
from framework.http.status import Details, Headers, text
from framework.interceptors.request_id import KEY as REQUEST_ID
from framework.interceptors.request_id import new_request_id
from framework.web import AUTHENTICATED, WebSettings

ID = REQUEST_ID.encode()
_ID = re.compile(rb"[!-~]{1,128}")
_FORWARDED = frozenset(name.encode() for name in TOLD_OF_CLIENT)

App: TypeAlias = Callable[[Scope, Receive, Send], Any]
Page: TypeAlias = Callable[[Mapping[bytes, bytes]], tuple[int, Headers, bytes]]
"""Status, headers and body of a page, for the headers of a request."""


class Front:
    """An ASGI 3 application before another.

    Args:
        app: the other one; may be replaced at any time.
        settings: of CORS and trusted proxies.
        pages: what is answered to GET of a path, before the application is asked.
        docs: the same; for those whom `guard` lets pass, when the settings say so.
        guard: is asked before these.
    """

    def __init__(
        self,
        app: App,
        settings: WebSettings,
        pages: Mapping[str, Page] = MappingProxyType({}),
        docs: Mapping[str, Page] = MappingProxyType({}),
        guard: Guard | None = None,
    ) -> None:
        self.app = app
        self.pages = {**pages, **(docs if settings.docs else {})}
        self._guarded = frozenset(docs if settings.docs == AUTHENTICATED else ())
        self._guard = guard
        self._cors = Cors(settings.cors)
        self._proxies = Proxies(settings.trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        origin, request_id = self._read(scope)
        if kind == "websocket":
            if origin is not None:  # looked at here, and no concern of the application's
                try:
                    self._cors.check(dict(scope["headers"]))
                except PermissionDenied as error:
                    await receive()
                    await _deny(send, error)
                    return
                scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"origin"]
            await self.app(scope, receive, send)
            return
        if origin is not None and scope["method"] == "OPTIONS":
            said = self._cors.preflight("OPTIONS", dict(scope["headers"]))
            if said is not None:
                status, headers, body = said
                await respond(send, status, [*headers, (ID, request_id)], body)
                return
        if origin is not None:
            scope[FOREIGN] = not self._cors.allows(origin) and self._cors.is_foreign(dict(scope["headers"]))
        cors = self._cors.headers(origin)

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = message["headers"]
                for key, _ in headers:
                    if key == ID:
                        break
                else:
                    headers.append((ID, request_id))
                headers += cors
            await send(message)

        page = self.pages.get(scope["path"])
        if page is None or scope["method"] not in ("GET", "HEAD"):
            await self.app(scope, receive, sending)
            return
        try:
            if self._guard is not None and scope["path"] in self._guarded:
                await self._guard(scope, None)
        except RpcError as error:
            await fail(Exchange(scope, receive, sending, HttpSettings(), scope["path"], set()), Details(()), error)
            return
        status, headers, body = page(dict(scope["headers"]))
        await respond(sending, status, list(headers), body)

    def _read(self, scope: Scope) -> tuple[bytes | None, bytes]:
        """Origin and request id; headers that are not believed are taken out, and an id is put in where one lacks."""
        origin = request_id = None
        forwarded: list[bytes] = []
        told = wrong = False
        for key, value in scope["headers"]:
            if key == b"origin":
                origin = value
            elif key == ID:
                if request_id is None and _ID.fullmatch(value):
                    request_id = value
                else:
                    wrong = True
            elif key in _FORWARDED:
                told = True
                if key == b"x-forwarded-for":
                    forwarded.append(value)
        peer = scope["client"][0] if scope.get("client") else ""
        if told:
            if self._proxies.trusts(peer):
                scope[CLIENT] = client = self._proxies.client(peer, b",".join(forwarded).decode("latin-1"))
                if client != peer:
                    scope[OUTSIDE] = address_of(client)
                told = False
            else:
                wrong = True
        if wrong:
            seen: set[bytes] = set()
            headers = []
            for key, value in scope["headers"]:
                if key == ID:
                    if value != request_id or key in seen:
                        continue
                    seen.add(key)
                if not (told and key in _FORWARDED):
                    headers.append((key, value))
            scope["headers"] = headers
        if request_id is None:
            request_id = new_request_id().encode()
            scope["headers"].append((ID, request_id))
        return origin, request_id


async def _deny(send: Send, error: PermissionDenied) -> None:
    body = text({"code": int(error.code), "message": error.message})
    headers: Headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "websocket.http.response.start", "status": 403, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
