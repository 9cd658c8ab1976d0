"""A gateway on a port, real services behind it."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest
import websockets

from framework import ConfigError, Unauthenticated
from framework.call import Call, Handler, Method
from framework.config import Drain, ServerSettings, Settings
from framework.discovery import Instance
from framework.discovery.consul import ConsulRegistry
from framework.discovery.targets import open_registry
from framework.gateway import Gateway
from framework.identity import Identity
from framework.security.authentication import Credentials
from tests.consul_agent import MakeAgent
from tests.gateway.lab import AT_ONCE, OTHER, SHOP, Shop, Town, logged, until


async def test_every_protocol(town: Town) -> None:
    """REST, JSON at the method's own path, Connect, gRPC-Web, events and WebSockets, with nothing but reflection."""
    await town.add("shop")
    running = await town.gateway()
    client = await town.client(running)
    thing = {"name": "lamp", "number": 7}
    assert (await client.get("/v1/things/lamp")).json() == thing
    assert (await client.post("/lab.Shop/Get", json={"name": "lamp"})).json() == thing
    connect = await client.post("/lab.Shop/Get", json={"name": "lamp"}, headers={"connect-protocol-version": "1"})
    assert connect.json() == thing
    body = b"\0\0\0\0\x06\x0a\x04lamp"
    web = await client.post("/lab.Shop/Get", content=body, headers={"content-type": "application/grpc-web+proto"})
    assert web.content.startswith(b"\0\0\0\0\x08\x0a\x04lamp\x10\x07")
    assert web.content.endswith(b"grpc-status: 0\r\n")
    async with websockets.connect(f"ws://{running.address}/v1/talk") as socket:
        for number in range(3):
            await socket.send(json.dumps({"name": "a", "number": number}))
            assert json.loads(await socket.recv()) == {"name": "a", "number": number + 1}


async def test_interceptors_meet_messages(town: Town) -> None:
    """Without any, what nobody looks into is passed on as bytes; with them, there are messages."""
    seen: list[Any] = []

    def looks(method: Method[Any, Any], handler: Handler) -> Handler:
        async def look(call: Call) -> Any:
            seen.append(call.request.name)
            reply: Any = await handler(call)
            seen.append(reply.number)
            return reply

        return look

    await town.add("shop")
    client = await town.client(await town.gateway(gateway=Gateway(interceptors=[looks])))
    assert (await client.post("/lab.Shop/Get", json={"name": "lamp"})).json() == {"name": "lamp", "number": 7}
    assert seen == ["lamp", 7]


async def test_rules_of_messages_that_would_pass_as_bytes(town: Town) -> None:
    """A request that breaks its rules does not get to the service; without `validate` it does."""
    field = "string name = 1 [(buf.validate.field).string.max_len = 4];"
    ruled = SHOP.replace("string name = 1;", field).replace(
        "package lab;", 'package lab;import "buf/validate/validate.proto";'
    )
    await town.add("shop", ruled, settings=Settings(server=ServerSettings(validate=False)))
    strict, lax = [await town.client(await town.gateway(validate=validate)) for validate in (True, False)]
    refused = await strict.post("/lab.Shop/Get", json={"name": "lampshade"})
    assert (refused.status_code, refused.json()["details"][0]["fieldViolations"][0]["field"]) == (400, "name")
    assert (await strict.post("/lab.Shop/Get", json={"name": "lamp"})).json() == {"name": "lamp", "number": 7}
    assert (await lax.post("/lab.Shop/Get", json={"name": "lampshade"})).status_code == 200


async def test_events_and_their_end(town: Town) -> None:
    """Events come as they happen."""
    shop, _ = await town.add("shop")
    client = await town.client(await town.gateway())
    async with client.stream("GET", "/v1/things/lamp:watch", headers={"accept": "text/event-stream"}) as response:
        lines = response.aiter_lines()
        seen = [await anext(lines) for _ in range(4)]
        assert seen[2:] == ["id: 1", 'data: {"name":"lamp","number":1}']
        shop.go_on.set()
        rest = [line async for line in lines]
    assert 'data: {"name":"lamp","number":2}' in rest
    assert "event: end" in rest


async def test_failures(town: Town) -> None:
    """Statuses and details of the service, and what there is not."""
    await town.add("shop")
    client = await town.client(await town.gateway())
    lost = await client.get("/v1/things/nothing")
    assert (lost.status_code, lost.json()["message"], lost.json()["details"][0]["reason"]) == (
        404,
        "no such thing",
        "LOST",
    )
    bug = await client.get("/v1/things/bug")
    assert (bug.status_code, "secret" in bug.text) == (500, False)
    nowhere = await client.get("/")
    assert (nowhere.status_code, nowhere.json()["message"]) == (404, "there is nothing at /; /docs tells what there is")
    secret = await (await town.client(await town.gateway(docs=False))).get("/")
    assert (secret.status_code, secret.json()["message"]) == (404, "there is nothing at /")
    refused = await client.delete("/v1/things/lamp")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_what_is_not_told_outside(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """Addresses and the registry stand in the log; whoever calls hears that the service cannot be reached."""
    _, leave = await town.add("shop")
    client = await town.client(await town.gateway())
    lease = await town.registry.register(Instance("dead", "shop", "127.0.0.1:1"))
    await leave.aclose()
    await until(client, "GET /v1/things/lamp", 503)
    await until(client, "POST /v1/things", 503)
    streamed = await client.get("/v1/things/lamp:watch")
    connect = await client.post("/lab.Shop/Get", json={}, headers={"connect-protocol-version": "1"})
    assert {streamed.json()["message"], connect.json()["message"]} == {"shop cannot be reached now"}
    line = lines(caplog)[-1]
    assert line["error"].startswith(f"cannot connect to shop at 127.0.0.1:1 (instances from {town.registry})")
    await lease.close()
    await logged(caplog, "shop has no instance left")
    gone = await client.get("/v1/things/lamp")
    assert gone.json()["message"] == "shop cannot be reached now"
    assert lines(caplog)[-1]["error"] == f"no instance of shop in {town.registry}"


async def test_who_stands_in_the_log(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """The client as `peer`, written one way; as `endpoint` the instance that had the call, if one had it."""
    caplog.set_level("INFO", "framework.calls")
    running = await town.gateway(ready=False)  # first, so that its lines are a gateway's
    _, leave = await town.add("shop")
    await running.until_ready()
    client = await town.client(running)
    behind = await town.client(await town.gateway(trusted=["127.0.0.1"]), headers={"x-forwarded-for": "203.0.113.9"})
    for path in ("/v1/things/lamp", "/nowhere"):
        await client.get(path)
        await behind.get(path)
    await leave.aclose()
    await until(client, "GET /v1/things/lamp", 503)
    found = [line for line in lines(caplog) if "target" in line or "request" in line]
    assert [line["code"] for line in found] == ["OK", "OK", "NOT_FOUND", "NOT_FOUND", "UNAVAILABLE"]
    here, forwarded = r"ipv4:127\.0\.0\.1:\d+", r"ipv4:203\.0\.113\.9"
    for pattern, line in zip((here, forwarded, here, forwarded, here), found, strict=True):
        assert re.fullmatch(pattern, line["peer"])
    assert ["endpoint" in line for line in found] == [True, True, False, False, False]


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """What stands in the lines of calls and requests."""
    return [vars(one)["fields"] for one in caplog.records if one.name == "framework.calls" and "fields" in vars(one)]


async def test_what_a_service_is_told(town: Town) -> None:
    """The request's id, made here or brought along, and where the request comes from; the answer has the id too."""
    shop, _ = await town.add("shop")
    client = await town.client(await town.gateway())
    response = await client.get("/v1/things/lamp")
    assert response.headers["x-request-id"] == shop.metadata["x-request-id"]
    assert shop.metadata["x-forwarded-for"] == "127.0.0.1"
    response = await client.get("/v1/things/lamp", headers={"x-request-id": "mine", "x-forwarded-for": "6.6.6.6"})
    assert (response.headers["x-request-id"], shop.metadata["x-request-id"]) == ("mine", "mine")
    assert shop.metadata["x-forwarded-for"] == "127.0.0.1"
    response = await client.get("/v1/things/lamp", headers={"x-request-id": "x" * 200})
    assert response.headers["x-request-id"] == shop.metadata["x-request-id"] != "x" * 200


async def test_a_client_that_goes(town: Town) -> None:
    """The servicer's call is cancelled, whether it has one reply or many."""
    shop, _ = await town.add("shop")
    running = await town.gateway()
    for path in ("/v1/things/slow", "/v1/things/lamp:watch"):
        shop.entered.clear()
        shop.cancelled.clear()
        _, writer = await asyncio.open_connection("127.0.0.1", running.server.port)
        writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\n\r\n".encode())
        async with asyncio.timeout(10):
            await shop.entered.wait()
            writer.close()
            await shop.cancelled.wait()


async def test_readiness(town: Town) -> None:
    """Alive from the beginning, ready once something can be called."""
    running = await town.gateway(ready=False)
    client = await town.client(running)
    assert (await client.get("/healthz")).json() == {"status": "SERVING"}
    response = await until(client, "GET /readyz", 503)
    assert response.json()["status"] == "NOT_SERVING"
    _, exit = await town.add("shop")
    await until(client, "GET /readyz", 200)
    await exit.aclose()
    response = await until(client, "GET /readyz", 503)
    assert response.json()["reason"] == "no service can be called"


async def test_docs(town: Town) -> None:
    """A page, and the document of what is served now."""
    running = await town.gateway(ready=False)
    client = await town.client(running)
    assert (await client.get("/openapi.json")).json()["paths"] == {}
    await town.add("shop")
    await until(client, "GET /readyz", 200)
    document = (await client.get("/openapi.json")).json()
    assert set(document["paths"]) == {"/v1/things/{name}", "/v1/things", "/v1/things/{name}:watch", "/v1/talk"}
    assert "x-grpc-target" not in document  # there are several, and none for those who are outside
    assert (await client.get("/openapi.yaml")).text.startswith("openapi: ")
    page = await client.get("/docs")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "script-src" in page.headers["content-security-policy"]
    without = await town.client(await town.gateway(docs=False))
    assert (await without.get("/docs")).status_code == 404


async def test_docs_are_sent_once(town: Town) -> None:
    """Packed for whoever can unpack them, and not to whoever has them; the document changes with the services."""
    client = await town.client(await town.gateway(ready=False))
    for path in ("/docs", "/openapi.json", "/openapi.yaml"):
        plain = await client.get(path, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        packed = await client.get(path, headers={"accept-encoding": "gzip"})
        assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "accept-encoding")
        assert packed.content == plain.content
        assert int(packed.headers["content-length"]) < len(plain.content) / 2
        tag = plain.headers["etag"]
        for tags in (tag, f'"other", {tag}', "*"):
            again = await client.get(path, headers={"if-none-match": tags})
            assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
            assert "content-length" not in again.headers
        assert (await client.get(path, headers={"if-none-match": '"other"'})).status_code == 200
    tag = (await client.get("/openapi.json")).headers["etag"]
    await town.add("shop")
    await until(client, "GET /readyz", 200)
    assert (await client.get("/openapi.json", headers={"if-none-match": tag})).status_code == 200
    unpacked = await town.client(await town.gateway(compress_above="none", ready=False))
    assert "content-encoding" not in (await unpacked.get("/docs", headers={"accept-encoding": "gzip"})).headers


async def test_pages_are_read_only(town: Town) -> None:
    """Another method than GET is not allowed at a page, as at any path, unless a service has it there."""
    await town.add("shop", SHOP.replace('post: "/v1/things"', 'post: "/docs"'))
    client = await town.client(await town.gateway())
    for path in ("/openapi.json", "/healthz"):
        refused = await client.post(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        allowed = await client.options(path)
        assert (allowed.status_code, allowed.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert (await client.post("/docs", json={"name": "lamp"})).json() == {"name": "lamp"}
    assert (await client.put("/docs")).headers["allow"] == "GET, HEAD, OPTIONS, POST"
    without = await town.client(await town.gateway(docs=False))
    assert (await without.put("/openapi.json")).status_code == 404


async def test_rules_behind_a_page(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """A rule for the path of a page is served by the page, and the log says so."""
    await town.add("shop", SHOP.replace("/v1/things/{name}:watch", "/docs").replace("/v1/things/{name}", "/{name}"))
    await town.gateway()
    behind = "is not reached at {}: the server has a page of its own there"
    lines = {one.getMessage() for one in caplog.records if one.levelname == "WARNING"}
    assert lines == {
        f"GET /docs (lab.Shop/Watch) {behind.format('/docs')}",
        *(f"GET /{{name}} (lab.Shop/Get) {behind.format(path)}" for path in PAGES),
    }
    caplog.clear()
    await town.gateway(docs=False)
    assert {one.getMessage() for one in caplog.records if one.levelname == "WARNING"} == {
        f"GET /{{name}} (lab.Shop/Get) {behind.format(path)}" for path in ("/healthz", "/readyz")
    }


PAGES = ("/healthz", "/readyz", "/openapi.json", "/openapi.yaml")


class Usher:
    """Knows whoever has a ticket."""

    async def authenticate(self, credentials: Credentials) -> Identity | None:
        return Identity("ada") if credentials.get("x-ticket") else None


async def test_docs_for_those_who_may_call(town: Town) -> None:
    """They can be kept from strangers; pages about health stay open."""
    running = await town.gateway(gateway=Gateway(authenticators=[Usher()]), docs="authenticated", ready=False)
    client = await town.client(running)
    for path in ("/docs", "/openapi.json", "/openapi.yaml"):
        refused = await client.get(path)
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert refused.json() == {"code": 16, "message": "credentials are needed"}
        assert (await client.get(path, headers={"x-ticket": "a"})).status_code == 200
    assert (await client.get("/healthz")).status_code == 200
    with pytest.raises(ConfigError, match='docs = "authenticated" takes a way to know who asks: set up'):
        await town.gateway(docs="authenticated")


async def test_only_some_services(town: Town) -> None:
    """What is not named is not there."""
    await town.add("shop")
    await town.add("bank", OTHER, Shop(OTHER, "other.Bank"))
    client = await town.client(await town.gateway(services=["bank"]))
    assert (await client.post("/v1/payments", json={"cents": "5"})).json() == {"cents": "5"}
    assert (await client.get("/v1/things/lamp")).status_code == 404


class Doorman:
    """Knows one word."""

    def __init__(self) -> None:
        self.asked: list[Credentials] = []

    async def authenticate(self, credentials: Credentials) -> Identity | None:
        self.asked.append(credentials)
        if credentials.bearer == "bug":
            raise ZeroDivisionError("secret")
        if credentials.bearer != "good":
            raise Unauthenticated("who are you?")
        return Identity("ada")


async def test_authentication(town: Town) -> None:
    """Who is not known gets no further, whatever protocol it speaks."""
    doorman = Doorman()
    shop, _ = await town.add("shop")
    running = await town.gateway(gateway=Gateway(authenticators=[doorman]))
    client = await town.client(running)
    for refused in (
        await client.get("/v1/things/lamp"),
        await client.post("/lab.Shop/Get", json={}, headers={"connect-protocol-version": "1"}),
        await client.get("/nowhere"),
    ):
        assert (refused.status_code, refused.json()["message"]) == (401, "who are you?")
    web = await client.post("/lab.Shop/Get", content=b"", headers={"content-type": "application/grpc-web+proto"})
    assert b"grpc-status: 16\r\n" in web.content
    with pytest.raises(websockets.InvalidStatus, match="401"):
        await websockets.connect(f"ws://{running.address}/v1/talk")
    assert not shop.entered.is_set()
    good = await client.get("/v1/things/lamp?number=1", headers={"authorization": "Bearer good"})
    assert good.status_code == 200
    last = doorman.asked[-1]
    assert last.address == "127.0.0.1"
    assert last.method is not None
    assert last.method.full_name == "lab.Shop/Get"


async def test_authentication_with_a_bug(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody passes, nothing is told, and the log has the cause."""
    await town.add("shop")
    client = await town.client(await town.gateway(gateway=Gateway(authenticators=[Doorman()])))
    response = await client.get("/v1/things/lamp", headers={"authorization": "Bearer bug"})
    assert (response.status_code, "secret" in response.text) == (500, False)
    assert "secret" in caplog.text


async def test_drain(town: Town) -> None:
    """Not ready at once, still answering for a while; what is in flight is finished, streams are told."""
    shop, _ = await town.add("shop")
    async with AsyncExitStack() as exits:
        inner = Town(town.registry, exits)
        running = await inner.gateway(drain=Drain(delay=0.3, grace=20, streams=0.1))
        client = await town.client(running)
        slow = asyncio.create_task(client.get("/v1/things/slow"))
        await shop.entered.wait()
        stream = client.stream("GET", "/v1/things/lamp:watch", headers={"accept": "text/event-stream"})
        response = await stream.__aenter__()
        lines = response.aiter_lines()
        [await anext(lines) for _ in range(4)]
        async with websockets.connect(f"ws://{running.address}/v1/talk") as socket:
            await socket.send("{}")
            await socket.recv()
            stopping = asyncio.create_task(exits.aclose())
            await until(client, "GET /readyz", 503)
            assert (await client.get("/v1/things/lamp")).status_code == 200
            rest = [line async for line in lines]
            assert "event: error" in rest
            assert any("is shutting down" in line for line in rest)
            assert "is shutting down" in str(await socket.recv())
            await socket.wait_closed()
            assert socket.close_code == 4014
        assert not stopping.done()
        with pytest.raises(httpx.ConnectError):
            await (await town.client(running)).get("/v1/things/lamp")
        shop.go_on.set()
        answered = await slow
        assert (answered.status_code, answered.headers["connection"]) == (200, "close")
        await stopping


async def test_the_end_of_patience(town: Town) -> None:
    """A call that takes longer than the drain allows is answered with UNAVAILABLE."""
    shop, _ = await town.add("shop")
    async with AsyncExitStack() as exits:
        running = await Town(town.registry, exits).gateway(drain=AT_ONCE)
        client = await town.client(running)
        slow = asyncio.create_task(client.get("/v1/things/slow"))
        await shop.entered.wait()
    response = await slow
    assert (response.status_code, response.json()["message"]) == (503, f"{running.address} is shutting down")
    await asyncio.wait_for(shop.cancelled.wait(), 5)


async def test_with_consul(consul_agent: MakeAgent, town: Town) -> None:
    """Services in Consul are found and followed."""
    registry = open_registry(f"consul://{consul_agent().address}")
    assert isinstance(registry, ConsulRegistry)
    town.registry = registry
    try:
        client = await town.client(await town.gateway(ready=False))
        await town.add("shop")
        await until(client, "GET /readyz", 200)
        assert (await client.get("/v1/things/lamp")).json() == {"name": "lamp", "number": 7}
    finally:
        await town._exits.aclose()
        await registry.aclose()
