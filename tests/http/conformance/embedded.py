"""The service of `server` as the engine pyvoy imports it."""

from __future__ import annotations

from typing import Any

from framework import ServerSettings, Service, Settings
from framework.pyvoy.embedded import Embedded, Order
from framework.web import HttpLimits, WebSettings
from tests.http.conformance.server import Conformance, Roomy, message, query


def load(order: Order) -> tuple[Service, Settings]:
    request = message("ServerCompatRequest").FromString(bytes.fromhex(order.arguments[0]))
    limit = request.message_receive_limit or 4 << 20
    web = WebSettings(limits=HttpLimits(body=limit), compress_above=1)
    return Roomy("conformance", servicers=[Conformance()]), Settings(
        registry="none", server=ServerSettings(max_message=limit, http=web)
    )


served = Embedded(load)


async def app(scope: Any, receive: Any, send: Any) -> None:
    query.set(scope.get("query_string", b"") if scope.get("method") == "GET" else b"")
    await served(scope, receive, send)
