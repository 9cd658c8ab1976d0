"""A service that answers with its request, and a Library that is harmless whatever it is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from framework.http.methods import services_in
from framework.options import method_of
from framework.server.context import Context
from framework.server.servicer import Servicer
from tests.http import lab
from tests.http.library import Book, Library

(SERVICE, FLAT) = services_in(lab.pool(), ["lab.v1.Mirror", "lab.v1.FlatMirror"])


class Mirror(Servicer):
    """Answers with what it was asked; streams end."""

    __methods__ = tuple(method_of(descriptor) for descriptor in SERVICE.methods)

    async def Show(self, request: Any, context: Context) -> Any:
        return request

    async def Send(self, request: Any, context: Context) -> Any:
        return request

    async def Repeat(self, request: Any, context: Context) -> AsyncIterator[Any]:
        for _ in range(min(request.i32, 3)):
            yield request

    async def Gather(self, requests: Any, context: Context) -> Any:
        gathered = lab.message("All")()
        async for request in requests:
            gathered.st += f"{request.st};"
            gathered.ri64.append(request.i64)
            gathered.i32 += 1 if gathered.i32 < 1000 else 0
        return gathered

    async def Talk(self, requests: Any, context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            yield request


class FlatMirror(Mirror):
    """The same of messages that may be passed on as bytes."""

    __methods__ = tuple(method_of(descriptor) for descriptor in FLAT.methods)


class Harmless(Library):
    """Never hangs, and fails by itself only as its documents say: what goes wrong then is the framework's."""

    async def GetBook(self, request: Any, context: Context) -> Any:
        return Book(name=request.name, pages=7)

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        for number in range(min(request.count, 5)):
            yield Book(title=f"book {number}", name=request.shelf)

    async def CreateBook(self, request: Any, context: Context) -> Any:
        return request.book

    async def Collect(self, requests: Any, context: Context) -> Any:
        reply = lab.message("Lines")()
        async for line in requests:
            reply.texts.append(line.text)
        return reply

    async def Unshown(self, request: Any, context: Context) -> Any:
        return request

    async def UnshownStream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield request


def servicers() -> tuple[Servicer, ...]:
    """All of them."""
    return Harmless(), Mirror(), FlatMirror()
