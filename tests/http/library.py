"""The service that these tests call, and the applications in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo

from framework.errors import Aborted, InvalidArgument, NotFound, Unavailable, error_for
from framework.http.app import HttpApp
from framework.http.methods import services_in
from framework.http.settings import HttpSettings
from framework.options import method_of
from framework.server.context import Context
from framework.server.local import Local
from framework.server.pipeline import Pipeline
from framework.server.servicer import Servicer
from tests.http import lab

(SERVICE,) = services_in(lab.pool(), ["lab.v1.Library"])
Book, Author, ListBooksReply, FileReply, Line, Lines = map(
    lab.message, ("Book", "Author", "ListBooksReply", "FileReply", "Line", "Lines")
)


class Library(Servicer):
    """Answers with what it was asked."""

    __methods__ = tuple(method_of(descriptor) for descriptor in SERVICE.methods)

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.metadata: tuple[tuple[str, str | bytes], ...] = ()
        self.remaining: float | None = None
        self.seen: list[Any] = []

    async def GetBook(self, request: Any, context: Context) -> Any:
        self.metadata = context.invocation_metadata()
        self.remaining = context.time_remaining()
        self.entered.set()
        match request.name:
            case "hang":
                await self._hang()
            case "headers":
                await context.send_initial_metadata((("etag", '"5"'), ("x-own", "a"), ("x-own-bin", b"\xff\x00")))
                context.set_trailing_metadata((("x-last", "z"), ("x-last-bin", b"\x01")))
            case "fail":
                raise NotFound("no such book", details=[ErrorInfo(reason="LOST")], metadata=(("x-why", "fire"),))
            case "busy":
                raise Unavailable("busy", details=[RetryInfo(retry_delay={"seconds": 3, "nanos": 1})])
            case "bug":
                raise ZeroDivisionError("secret")
            case name if name.isdigit():
                raise error_for(int(name), f"code {name}")
        book = Book(name=request.name, pages=7, color=1)
        if request.big:
            book.tags.extend(["a tag"] * 500)
        return book

    async def _hang(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def ListBooks(self, request: Any, context: Context) -> Any:
        if request.page_size == 0:
            return ListBooksReply()
        reply = ListBooksReply(next_page_token="next", counts={"a": 1}, best=Book(title="best"), total=5)
        reply.books.add(title=request.shelf)
        return reply

    async def CreateBook(self, request: Any, context: Context) -> Any:
        self.seen.append(request)
        book = Book()
        book.CopyFrom(request.book)
        book.name = f"{request.shelf}/books/{request.request_id or 'new'}"
        return book

    async def UpdateBook(self, request: Any, context: Context) -> Any:
        return request

    async def DeleteBook(self, request: Any, context: Context) -> Any:
        return method_of(SERVICE.methods_by_name["DeleteBook"]).reply()

    async def Download(self, request: Any, context: Context) -> Any:
        kind = method_of(SERVICE.methods_by_name["Download"]).reply
        return kind(content_type="image/png", data=request.path.encode() * 300)

    async def Upload(self, request: Any, context: Context) -> Any:
        reply = FileReply(size=len(request.file.data))
        reply.file.CopyFrom(request.file)
        return reply

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        self.metadata = context.invocation_metadata()
        self.entered.set()
        try:
            for number in range(1, (request.count or 3) + 1):
                if number == request.fail_at:
                    raise Aborted("enough", details=[ErrorInfo(reason="TIRED")])
                if request.shelf == "shelves/slow" and number > 1:
                    await asyncio.Event().wait()
                self.seen.append(number)
                yield Book(title=f"book {number}", name=request.shelf)
        finally:
            self.cancelled.set()

    async def Collect(self, requests: Any, context: Context) -> Any:
        reply = Lines()
        async for line in requests:
            self.seen.append(line.text)
            self.entered.set()
            reply.texts.append(line.text)
            reply.room = line.room
        self.seen.append("end")
        return reply

    async def Chat(self, requests: Any, context: Context) -> AsyncIterator[Any]:
        number = 0
        try:
            async for line in requests:
                number += 1
                if line.text == "boom":
                    raise InvalidArgument("no such word")
                yield Line(text=line.text.upper(), room=line.room, number=number)
        finally:
            self.cancelled.set()

    async def Stream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        kind = method_of(SERVICE.methods_by_name["Stream"]).reply
        for part in (b"one", b"two"):
            yield kind(content_type="text/csv", data=part)

    async def Store(self, requests: Any, context: Context) -> Any:
        size, kind = 0, ""
        async for part in requests:
            size += len(part.data)
            kind = part.content_type
        return FileReply(size=size, file={"content_type": kind})

    async def Echo(self, request: Any, context: Context) -> Any:
        return request

    async def Unshown(self, request: Any, context: Context) -> Any:
        request.any.type_url = "type.googleapis.com/no.Such"
        return request

    async def UnshownStream(self, request: Any, context: Context) -> AsyncIterator[Any]:
        yield await self.Unshown(request, context)


def application(library: Library, **settings: Any) -> HttpApp:
    """The library served over HTTP in this process."""
    pipeline = Pipeline()
    pipeline.add(library)
    return HttpApp([SERVICE], Local(pipeline).bind, HttpSettings(**settings))
