"""A service that has something of everything to document, and answers what its document allows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from google.protobuf import descriptor_pb2, message_factory

from framework.codegen.comments import comments_of_all
from framework.codegen.compiler import describe_protos
from framework.errors import Aborted, InvalidArgument, NotFound
from framework.http.app import HttpApp
from framework.http.docs import page, page_headers
from framework.http.methods import pool_of, services_in
from framework.http.openapi import Info, Security, document, json_text, yaml_text
from framework.options import method_of
from framework.server.context import Context
from framework.server.local import Local
from framework.server.pipeline import Pipeline
from framework.server.servicer import Servicer
from tests.http.driver import loopback
from tests.http.lab import PROTOS

_FILES = describe_protos(PROTOS, ["kiosk/v1/kiosk.proto"])
COMMENTS = comments_of_all(_FILES.values())
POOL = pool_of(descriptor_pb2.FileDescriptorSet(file=_FILES.values()))
SERVICES = services_in(POOL, ["kiosk.v1.Kiosk"])
BEARER = Security({"token": {"type": "http", "scheme": "bearer"}}, required=[{"token": []}, {}])
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)


def message(name: str) -> Any:
    return message_factory.GetMessageClass(POOL.FindMessageTypeByName(f"kiosk.v1.{name}"))


Item, ListItemsReply, Note, Collected = map(message, ("Item", "ListItemsReply", "Note", "Collected"))


class Kiosk(Servicer):
    __methods__ = tuple(method_of(descriptor) for descriptor in SERVICES[0].methods)

    def __init__(self) -> None:
        self.may_hang = True
        self.metadata: dict[str, Any] = {}
        self.cancelled = asyncio.Event()

    async def GetItem(self, request: Any, context: Context) -> Any:
        self.metadata = dict(context.invocation_metadata())
        if "missing" in request.name:
            raise NotFound(f"no item {request.name}")
        return Item(name=request.name, title="The Daily", kind=1, price={"currency": "EUR", "minor_units": 2**53 + 1})

    async def ListItems(self, request: Any, context: Context) -> Any:
        return ListItemsReply(
            items=[Item(name="racks/1/items/1", title=f"{key}={value}") for key, value in request.labels.items()]
        )

    async def CreateItem(self, request: Any, context: Context) -> Any:
        if not request.item.title:
            raise InvalidArgument("an item has a title")
        request.item.name = f"{request.parent}/items/1"
        return request.item

    async def UpdateItem(self, request: Any, context: Context) -> Any:
        request.item.title = request.item.title or "what it was"
        return request.item

    async def DeleteItem(self, request: Any, context: Context) -> Any:
        return method_of(SERVICES[0].methods_by_name["DeleteItem"]).reply()

    async def FindItem(self, request: Any, context: Context) -> Any:
        return Item(name=request.name, title="found")

    async def Echo(self, request: Any, context: Context) -> Any:
        return request

    async def Watch(self, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            for number in range(1, min(request.count, 50) + 1):
                yield Item(title=f"item {number}")
            if request.hang and self.may_hang:
                await asyncio.Event().wait()
            if request.fail:
                raise Aborted("sold out")
        finally:
            self.cancelled.set()

    async def Collect(self, requests: Any, context: Context) -> Any:
        reply = Collected()
        async for note in requests:
            reply.count += 1
            reply.texts.append(f"{note.rack}: {note.text}")
        return reply

    async def Chat(self, requests: Any, context: Context) -> AsyncIterator[Any]:
        number = 0
        async for note in requests:
            number += 1
            if note.text == "boom":
                raise InvalidArgument("no such word")
            yield Note(rack=note.rack, text=note.text.upper(), number=number)

    async def Photo(self, request: Any, context: Context) -> Any:
        kind = method_of(SERVICES[0].methods_by_name["Photo"]).reply
        return kind(content_type="image/png", data=PIXEL)

    async def Hang(self, request: Any, context: Context) -> Any:
        return Collected(count=len(request.photo.data) % 2**31, texts=[request.path])


def described(**more: Any) -> dict[str, Any]:
    """The document of the kiosk."""
    info = Info("Kiosk", "1.2.3", "What a *kiosk* has.", grpc_target="127.0.0.1:50051")
    return document(SERVICES, info, comments=COMMENTS, security=BEARER, **more)


class Site:
    """The kiosk over HTTP, with its document and the page that shows it."""

    def __init__(self) -> None:
        self.kiosk = Kiosk()
        pipeline = Pipeline()
        pipeline.add(self.kiosk)
        self.app: Any = HttpApp(SERVICES, Local(pipeline).bind)
        json = [(b"content-type", b"application/json")]
        yaml = [(b"content-type", b"application/yaml")]
        shown = described()
        self.pages = {
            "/docs": (page_headers(), page()),
            "/openapi.json": (json, json_text(shown).encode()),
            "/openapi.yaml": (yaml, yaml_text(shown).encode()),
        }

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        found = self.pages.get(scope.get("path", ""))
        if scope["type"] != "http" or found is None:
            await self.app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": found[0]})
        await send({"type": "http.response.body", "body": found[1]})


@asynccontextmanager
async def served(site: Site) -> AsyncIterator[str]:
    """The site on a free port of this machine."""
    with loopback() as listener:
        server = uvicorn.Server(uvicorn.Config(site, log_level="critical", lifespan="off", ws="websockets-sansio"))
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task
