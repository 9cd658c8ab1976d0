"""Pages for those who run a process: how it is, what it was set to, whom it calls, and which calls are in flight.

    GET /healthz     200 while the event loop answers
    GET /readyz      200 while calls should be sent here; 503 with the reason
    GET /metrics     for Prometheus
    GET /settings    every setting that holds, and who says so; what is secret is hidden
    GET /endpoints   the instances of every service that is called: load, latency, breaker
    GET /calls       what is in flight, the oldest first
    GET /            the same for a person

They are for everybody who can reach them, so they are on loopback by default, change nothing, and a page of another
site cannot read them by a name that leads here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import html
import importlib
import ipaddress
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from framework.call import Call
from framework.client.breaker import State
from framework.client.pool import Pool, live
from framework.config import Settings
from framework.errors import ConfigError
from framework.logs import redaction
from framework.loop import exact_clock
from framework.observation import AdminSettings
from framework.parsing import DEFAULT, Table, shown

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger("framework")

MOST = 1000
"""Rows that a page has."""

PLACES = 64
"""Ports after the one in the settings that workers of one service try."""


class Effective:
    """The settings that hold: those that a process was started with, and what of a changed file its clients follow.

    Attributes:
        now: they.
    """

    def __init__(self, settings: Settings) -> None:
        self.now = settings

    def changed(self, read: Settings) -> None:
        """The file says this now."""
        self.now = dataclasses.replace(self.now, client=read.client, clients=read.clients)


@dataclass(frozen=True)
class Watched:
    """What the pages tell of.

    Attributes:
        name: of the service.
        settings: those that hold.
        unready: why no calls should be sent here; empty when they should.
        calls: those in flight.
        metrics: as Prometheus reads them.
        pools: of the services that are called.
    """

    name: str
    settings: Effective
    unready: Callable[[], str]
    calls: Callable[[], Iterable[Call]]
    metrics: Callable[[], bytes]
    pools: Callable[[], Iterable[Pool]] = lambda: tuple(live)


def settings_rows(settings: Settings) -> Iterator[dict[str, str]]:
    """Every setting that holds: its path in a file, its value as a file would say it, and who says so."""
    registry = redaction.text(settings.registry)
    yield {"setting": "registry", "value": registry, "origin": DEFAULT if registry == "local" else "settings"}
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if isinstance(value, Table):
            yield from _table(f.name, value)
    for name, client in sorted(settings.clients.items()):
        yield from _table(f"client.{name}", client)


def _table(path: str, table: Table) -> Iterator[dict[str, str]]:
    for f in dataclasses.fields(table):
        value, where = getattr(table, f.name), f"{path}.{f.name}"
        if f.name == "said":
            continue
        if isinstance(value, Table):
            yield from _table(where, value)
        elif isinstance(value, Mapping) and "parse" not in f.metadata:  # by name: methods, rate limits, files
            for name, one in sorted(value.items()):
                if isinstance(one, Table):
                    yield from _table(f"{where}.{name}", one)
                else:
                    yield {"setting": f"{where}.{name}", "value": _hidden(name, str(one)), "origin": "settings"}
        elif value is not None or "parse" in f.metadata:
            text = shown(f, value) if "parse" in f.metadata else str(redaction.value(value))
            origin = table.origin(f.name)
            if origin == f.name:  # an option of the command line stands in no table
                origin = f"--{origin}"
            yield {"setting": where, "value": _hidden(f.name, text), "origin": origin}


def _hidden(name: str, text: str) -> str:
    return redaction.HIDDEN if text and redaction.secret(name) else redaction.text(text)


def pool_rows(pool: Pool, now: float) -> dict[str, Any]:
    """A service that is called, and its instances."""
    return {
        "service": pool.service,
        "registry": redaction.text(pool.where),
        "endpoints": [
            {
                "address": one.instance.address,
                "id": one.instance.id,
                "version": one.instance.version,
                "zone": one.instance.zone,
                "state": "ready" if one.transport.ready else "failed" if one.transport.failed else "idle",
                "in_flight": one.pending,
                "latency_ms": round(one.latency * 1000, 3),
                "breaker": (breaker := one.breaker.state(now)).value,
                "reason": one.breaker.reason if breaker is not State.CLOSED else "",
            }
            for one in pool.endpoints[:MOST]
        ],
    }


def call_row(call: Call, now: float) -> dict[str, Any]:
    """A call in flight."""
    return {
        "method": call.method.full_name,
        "age_ms": round((now - call.began) * 1000, 1) if call.began else None,
        "left_ms": round((call.deadline - now) * 1000, 1) if call.deadline is not None else None,
        "peer": call.caller or call.peer,
        "request_id": call.request_id,
        "attempt": call.attempt,
        "identity": str(call.identity) if call.identity is not None else "",
    }


class Pages:
    """What is answered, by path."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._clock = exact_clock()
        self._began = time.monotonic()

    def status(self) -> dict[str, Any]:
        """How the process is."""
        reason = self._watched.unready()
        found: dict[str, Any] = {
            "service": self._watched.name,
            "status": "NOT_SERVING" if reason else "SERVING",
            "pid": os.getpid(),
            "uptime_s": round(time.monotonic() - self._began, 1),
        }
        return found | ({"reason": reason} if reason else {})

    def settings(self) -> list[dict[str, str]]:
        """Every setting that holds."""
        return list(settings_rows(self._watched.settings.now))

    def endpoints(self) -> list[dict[str, Any]]:
        """The services that are called."""
        now = asyncio.get_running_loop().time()
        return [pool_rows(pool, now) for pool in sorted(self._watched.pools(), key=lambda pool: pool.service)]

    def calls(self) -> dict[str, Any]:
        """The calls in flight."""
        now = self._clock()
        found = sorted(self._watched.calls(), key=lambda call: call.began)
        return {"in_flight": len(found), "calls": [call_row(call, now) for call in found[:MOST]]}

    def index(self) -> str:
        """All of it for a person."""
        status = self.status()
        endpoints = [{"service": pool["service"], **one} for pool in self.endpoints() for one in pool["endpoints"]]
        said = [row for row in self.settings() if row["origin"] != DEFAULT]
        calls = self.calls()
        links = " ".join(
            f'<a href="{path}">{path}</a>'
            for path in ("/healthz", "/readyz", "/metrics", "/settings", "/endpoints", "/calls")
        )
        return PAGE.format(
            title=html.escape(f"{status['service']} (pid {status['pid']})"),
            status=html.escape(" ".join(filter(None, (status["status"], status.get("reason", ""))))),
            uptime=status["uptime_s"],
            links=links,
            in_flight=calls["in_flight"],
            calls=_rows(calls["calls"], "None."),
            endpoints=_rows(endpoints, "It calls nobody."),
            settings=_rows(said, "All have their defaults."),
        )


def _rows(rows: list[dict[str, Any]], nothing: str) -> str:
    if not rows:
        return f"<p>{nothing}</p>"
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    cells = (
        "".join(f"<td>{html.escape('' if one is None else str(one))}</td>" for one in row.values()) for row in rows
    )
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; margin: 2em; color: #222 }} table {{ border-collapse: collapse }}
td, th {{ padding: 2px 12px 2px 0; text-align: left; border-bottom: 1px solid #ddd }} h2 {{ margin-top: 1.5em }}
</style>
<h1>{title}</h1><p>{status}, up for {uptime} s. {links}</p>
<h2>Calls in flight: {in_flight}</h2>{calls}
<h2>Whom it calls</h2>{endpoints}
<h2>Settings that somebody has said</h2>{settings}
</html>"""


def application(pages: Pages, metrics: Callable[[], bytes], *, any_host: bool) -> web.Application:
    """The pages as an application.

    Args:
        any_host: answer under every name, since they are meant for other machines.
    """
    from aiohttp import web

    def answered(given: Any, status: int = 200) -> web.Response:
        text = json.dumps(given, indent=2, ensure_ascii=False, default=str) + "\n"
        return web.Response(text=text, status=status, content_type="application/json")

    def page(make: Callable[[], web.Response]) -> Callable[[web.Request], Any]:
        async def handler(request: web.Request) -> web.Response:
            if not any_host and not _is_here(request.host):
                return answered({"error": f"{request.host} is no name of this machine's loopback"}, 403)
            answer = make()
            answer.headers["Cache-Control"] = "no-store"
            answer.headers["X-Content-Type-Options"] = "nosniff"
            return answer

        return handler

    def readyz() -> web.Response:
        status = pages.status()
        return answered(status, 503 if status["status"] != "SERVING" else 200)

    def exposition() -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.add_routes(
        web.get(path, page(make))
        for path, make in {
            "/": lambda: web.Response(text=pages.index(), content_type="text/html"),
            "/healthz": lambda: answered({"status": "SERVING"}),
            "/readyz": readyz,
            "/metrics": exposition,
            "/settings": lambda: answered(pages.settings()),
            "/endpoints": lambda: answered(pages.endpoints()),
            "/calls": lambda: answered(pages.calls()),
        }.items()
    )
    return app


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine's loopback by itself, and not by a name that somebody else gives out."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    name = name.strip("[]").rstrip(".").lower()
    return _is_loopback(name) or name.endswith(".localhost")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@asynccontextmanager
async def admin_pages(settings: AdminSettings, watched: Watched, *, shared: bool = False) -> AsyncIterator[str]:
    """Serve the pages while the block runs, where the settings say; gives their address, empty without.

    Args:
        shared: other workers of the same service have theirs: the next free port does as well.

    Raises:
        ConfigError: the address cannot be had.
    """
    if settings.port is None:
        yield ""
        return
    host = settings.host.strip("[]")
    with _listening(host, settings.port, shared=shared) as listener:
        pages = Pages(watched)
        serving = asyncio.create_task(
            _serve(pages, watched.metrics, listener, any_host=not _is_loopback(host)), name="admin pages"
        )
        try:
            port = listener.getsockname()[1]
            address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            log.info("%s has its admin pages on http://%s", watched.name, address)
            yield address
        finally:
            serving.cancel()
            await asyncio.wait([serving])


async def _serve(pages: Pages, metrics: Callable[[], bytes], listener: socket.socket, *, any_host: bool) -> None:
    """Serve the pages until cancelled; what that takes is loaded when the first client comes, and most never do."""
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    loop.add_reader(listener, asked.set)
    try:
        await asked.wait()
    finally:
        loop.remove_reader(listener)
    try:
        web = await asyncio.to_thread(importlib.import_module, "aiohttp.web")
        app = application(pages, metrics, any_host=any_host)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            await loop.create_future()
        finally:
            await runner.cleanup()
    except Exception:
        log.exception("there are no admin pages")
        listener.close()  # so that nobody waits for them


def _listening(host: str, first: int, *, shared: bool) -> socket.socket:
    last = min(first + PLACES, 65535) if shared and first else first
    for port in range(first, last + 1):
        try:
            family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
            listener = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            if port < last and error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            what = f"port {first} on {host} is in use or may not be used" if first else f"cannot listen on {host}"
            raise ConfigError(
                f"admin: {what} ({error.strerror or error}). Choose another with FRAMEWORK_ADMIN_PORT or `port` in"
                f' [admin], 0 for any free one, or "none" for no admin pages.'
            ) from None
        listener.setblocking(False)
        return listener
    raise AssertionError  # the range has one
