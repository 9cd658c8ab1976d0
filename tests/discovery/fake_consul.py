"""An agent that says what a test wants it to say: for answers that a real one gives only on a bad day."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from aiohttp import web

from framework.discovery.consul import ConsulRegistry
from framework.discovery.consul_terms import ConsulSettings


class FakeConsul:
    """Answers queries about `catalog` from a script, one after the other; then, like Consul, with the last one again
    when the time of a query is over.

    Attributes:
        queries: the parameters of every query.
        hasty: answer at once, whatever a query says of waiting.
    """

    def __init__(self) -> None:
        self.queries: list[dict[str, str]] = []
        self.hasty = False
        self._script: list[tuple[int, str, dict[str, str]]] = []
        self._said = (200, "[]", {"X-Consul-Index": "1"})
        self._more = asyncio.Event()

    def says(self, index: int | None, *ids: str) -> None:
        """The next answer has these instances and this index."""
        entries = [
            {"Node": {"Node": "n"}, "Service": {"ID": id, "Service": "catalog", "Address": id, "Port": 1}} for id in ids
        ]
        self.says_text(json.dumps(entries), headers={} if index is None else {"X-Consul-Index": str(index)})

    def says_text(self, text: str, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """The next answer is this."""
        self._script.append((status, text, headers or {}))
        self._more.set()

    @asynccontextmanager
    async def serve(self, hold: float = 0.3) -> AsyncIterator[ConsulRegistry]:
        """Listen, and give a registry that talks to this agent."""
        app = web.Application()
        app.router.add_get("/v1/health/service/catalog", self._health)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        registry = ConsulRegistry(ConsulSettings(port=runner.addresses[0][1], hold=hold))
        try:
            yield registry
        finally:
            await registry.aclose()
            await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        self.queries.append(dict(request.query))
        if not self._script and not self.hasty:
            self._more.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(int(request.query.get("wait", "0ms").removesuffix("ms")) / 1000):
                    await self._more.wait()
        if self._script:
            self._said = self._script.pop(0)
        status, text, headers = self._said
        return web.Response(status=status, text=text, headers=headers)
