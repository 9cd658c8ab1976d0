"""The ASGI application: which protocol a request speaks, and which method it calls.

    app = HttpApp(services, channel.bind)

`bind` gives the handler of a method: a channel's, so that this is a gateway, or that of a service in this process.
On the path `/package.Service/Method` the content type tells Connect, gRPC-Web and JSON apart; all other paths are REST.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from typing import Any, TypeAlias

from google.protobuf.descriptor import ServiceDescriptor

from framework.call import Handler, Method
from framework.errors import Code, Internal, InvalidArgument, NotFound, RpcError, Unimplemented
from framework.http import connect, grpc_web
from framework.http.asgi import Receive, Scope, Send, peer_of
from framework.http.conduct import Conduct, Gone
from framework.http.cors import Cors, respond
from framework.http.exchange import Exchange
from framework.http.headers import Incoming, rest_named, rpc_named
from framework.http.json import Json
from framework.http.methods import declared_rules, files_of
from framework.http.relay import relayed
from framework.http.rest import RestRoute, fail
from framework.http.routes import BadPath, Router
from framework.http.rpc import RpcMethod
from framework.http.rules import default_rule
from framework.http.settings import DOCS, HttpSettings
from framework.http.status import Details, Headers, HttpError
from framework.http.websocket import serve_websocket
from framework.logs import RequestLines
from framework.options import method_of
from framework.telemetry.http import ROUTE, trace_ids, watched
from framework.telemetry.telemetry import Telemetry
from framework.telemetry.telemetry import telemetry as current_telemetry

log = logging.getLogger("framework.http")

Guard: TypeAlias = Callable[[Scope, Method[Any, Any] | None], Awaitable[None]]
"""Lets a request to a method pass, or to none when there is nothing at its path; raises the RpcError to answer with."""


class HttpApp:
    """An ASGI 3 application.

    Args:
        services: descriptors of the services, generated or dynamic.
        bind: gives the handler of a method; called once for each.
        settings: see HttpSettings.
        guard: is asked before anything of a request is read but its head.
        live: the calls in flight; shared by applications that take over from each other.
        report: log rules that are never used, or match some of what others do.
        telemetry: what watches the requests; default: that of the service that runs here, or of the process.
        relays: which methods are passed on as bytes where that can be done, see `relay`; default: none.

    Raises:
        RuleError: an annotation that cannot be served.
    """

    def __init__(
        self,
        services: Iterable[ServiceDescriptor],
        bind: Callable[[Method[Any, Any]], Handler],
        settings: HttpSettings | None = None,
        *,
        guard: Guard | None = None,
        live: set[Conduct] | None = None,
        report: bool = True,
        telemetry: Telemetry | None = None,
        relays: Callable[[Method[Any, Any]], bool] = lambda method: False,
    ) -> None:
        telemetry = telemetry or current_telemetry()
        self._watched = watched(self._answer, telemetry)
        self._lines = RequestLines(telemetry.settings.logs)
        services = tuple({service.full_name: service for service in services}.values())
        self.services = services
        self.settings = settings or HttpSettings()
        self.cors = Cors(self.settings.cors)
        self.guard = guard
        self._hint = f"; {DOCS} tells what there is" if DOCS in self.settings.pages else ""
        self.live = set() if live is None else live
        pools: dict[Any, list[ServiceDescriptor]] = {}
        for service in services:
            pools.setdefault(service.file.pool, []).append(service)
        self.codecs = {pool: Json(files_of(those), self.settings.json) for pool, those in pools.items()}
        self.details = Details(service.file.pool for service in services)
        incoming = Incoming(rest_named(self.settings))
        routes: list[RestRoute] = []
        rpc_incoming = Incoming(rpc_named)
        self.methods: dict[str, RpcMethod] = {}
        for service in services:
            codecs = self.codecs[service.file.pool]
            for descriptor in service.methods:
                method = method_of(descriptor)
                rules = (default_rule(method), *declared_rules(descriptor, method))
                if codecs.native and relays(method) and (bytewise := relayed(method, rules)) is not None:
                    method = bytewise
                    rules = tuple(replace(rule, method=method) for rule in rules)
                handler = bind(method)
                self.methods[method.path] = RpcMethod(
                    method, handler, codecs, self.settings, rpc_incoming, self.details
                )
                routes += (RestRoute(r, handler, codecs, self.settings, incoming, self.details) for r in rules)
        self.router = Router(routes, self.settings.pages)
        self.routes = tuple(routes)
        for line in self.router.ambiguous if report else ():
            log.warning("%s", line)
        for line in self.router.overlaps() if report else ():
            log.info("%s", line)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await self._watched(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            telling = self.cors.telling(scope, send) if self.cors.needed else send
            exchange = Exchange(scope, receive, telling, self.settings, raw_path(scope), self.live)
            if self.cors.needed and (said := self.cors.preflight(exchange.http, exchange.headers)) is not None:
                await respond(send, *said)
                return
            with contextlib.suppress(Gone):
                await self._serve(exchange)
            if not exchange.called and (exchange.refused is not None or exchange.status >= 400):
                self.note(scope, exchange.status, *(exchange.refused or (Code.UNIMPLEMENTED, "")))
        elif kind == "websocket":
            await serve_websocket(self, scope, receive, send)

    def note(self, scope: Scope, status: int, code: Code, message: str) -> None:
        """Write the line of a request that was turned away before a call was made for it."""
        fields = {
            "request": f"{scope.get('method', 'GET')[:20]} {raw_path(scope)[:200]}",
            "status": status,
            "peer": peer_of(scope),
            "request_id": dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1"),
            **trace_ids(),
            "error": message,
        }
        self._lines(code, {name: said for name, said in fields.items() if said})

    async def _serve(self, exchange: Exchange) -> None:
        try:
            await self._dispatch(exchange)
        except HttpError as error:
            await fail(exchange, self.details, error.error, error.status, error.headers)
        except RpcError as error:
            await fail(exchange, self.details, error)
        except Gone:
            raise
        except Exception:
            log.exception("%s %s failed", exchange.http, exchange.path[:200])
            if exchange.started:
                raise  # the server breaks the connection off
            await fail(exchange, self.details, Internal("internal error; its cause stands in the log of the server"))

    async def _dispatch(self, exchange: Exchange) -> None:
        if b"origin" in exchange.headers:
            self.cors.check_unasked(exchange.scope, exchange.headers)
        rpc = self.methods.get(exchange.path)
        if rpc is not None:
            exchange.scope[ROUTE] = exchange.path
        if rpc is None:
            if connect.is_rpc(exchange):
                await exchange.respond(404, [], b"")
            else:
                await self._rest(exchange)
        elif grpc_web.speaks_grpc_web(exchange):
            await self._guarded(grpc_web, rpc, exchange)
        elif connect.speaks_connect(exchange):
            await self._guarded(connect, rpc, exchange)
        else:
            await self._rest(exchange)

    async def _guarded(self, protocol: Any, rpc: RpcMethod, exchange: Exchange) -> None:
        if self.guard is not None:
            try:
                await self.guard(exchange.scope, rpc.method)
            except RpcError as error:
                await protocol.refuse(rpc, exchange, error)
                return
        await protocol.serve(rpc, exchange)

    async def _rest(self, exchange: Exchange) -> None:
        http, path = exchange.http, exchange.path
        try:
            found = self.router.find(http, path)
            if found.route is None and http == "HEAD":
                found = self.router.find("GET", path)
        except BadPath as error:
            raise InvalidArgument(str(error)) from None
        if found.route is not None:
            exchange.scope[ROUTE] = found.route.rule.template.text
        if self.guard is not None:
            await self.guard(exchange.scope, None if found.route is None else found.route.rule.method)
        if found.route is not None:
            await found.route.serve(exchange, found.values)
            return
        allowed = found.allowed | ({"GET"} if path in self.settings.pages else frozenset())
        if not allowed and path != "*":
            raise NotFound(f"there is nothing at {path[:200]}{self._hint}")
        await self._refuse(exchange, allowed)

    async def _refuse(self, exchange: Exchange, allowed: frozenset[str]) -> None:
        names = set(allowed) | {"OPTIONS"} | ({"HEAD"} if "GET" in allowed else set())
        rpc = self.methods.get(exchange.path)
        if rpc is not None and connect.takes_get(rpc):
            if exchange.http == "GET":
                raise InvalidArgument("a call by GET has ?encoding=json&message=... in its query, as Connect has it")
            names.add("GET")
        allow: Headers = [(b"allow", ", ".join(sorted(names)).encode())]
        if exchange.http == "OPTIONS":
            await exchange.respond(204, allow, b"")
            return
        told = f"{exchange.http[:20]} is not allowed at {exchange.path[:200]}"
        raise HttpError(405, Unimplemented(told), allow)

    def __repr__(self) -> str:
        return f"<HttpApp with {len(self.routes)} routes>"


def raw_path(scope: Scope) -> str:
    """The path as it was sent, without the prefix under which the application is mounted."""
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        from urllib.parse import quote

        path = quote(scope["path"], safe="/:@!$&'()*+,;=~")
    else:
        path = raw.decode("utf-8", "replace")
    root: str = scope.get("root_path", "")
    if root and f"{path}/".startswith(f"{root}/"):
        path = path[len(root) :]
    return path or "/"


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
