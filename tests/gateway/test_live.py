"""What comes, goes and changes while the gateway runs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from framework.config import ServerSettings, Settings
from framework.discovery import Instance
from framework.gateway.gateway import Running
from tests.gateway.lab import (
    AT_ONCE,
    CONTRADICTING,
    NEWER,
    OTHER,
    SHOP,
    Reflection,
    Shop,
    Town,
    eventually,
    logged,
    pool,
    service,
    until,
)


async def test_a_service_that_comes_and_goes(town: Town) -> None:
    """Its routes appear; without an instance they answer UNAVAILABLE for a while, and then are gone."""
    await town.add("shop")
    running = await town.gateway(linger="1s")
    client = await town.client(running)
    assert (await client.post("/v1/payments", json={"cents": "5"})).status_code == 404
    _, leave = await town.add("bank", OTHER, Shop(OTHER, "other.Bank"))
    response = await until(client, "POST /v1/payments", 200, {"cents": "5"})
    assert response.json() == {"cents": "5"}
    await leave.aclose()
    unavailable = await until(client, "POST /v1/payments", 503)
    assert unavailable.json()["message"] == "bank cannot be reached now"
    await until(client, "POST /v1/payments", 404)
    assert set(running.backends) == {"shop"}
    assert (await client.get("/v1/things/lamp")).status_code == 200


async def test_a_service_that_was_named_is_not_forgotten(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """What the settings name is answered for; the log says when nobody is left, and when somebody is back."""
    caplog.set_level("INFO", "framework.gateway")
    _, leave = await town.add("shop")
    client = await town.client(await town.gateway(services=["shop"], linger=0))
    await leave.aclose()
    await until(client, "GET /v1/things/lamp", 503)
    await asyncio.sleep(0.2)  # several looks at what there is
    assert (await client.get("/v1/things/lamp")).status_code == 503
    assert "shop has no instance left" in caplog.text
    assert "shop has an instance again" not in caplog.text
    await town.add("shop")
    await until(client, "GET /v1/things/lamp", 200)
    assert caplog.text.count("shop has an instance again") == 1


@pytest.mark.parametrize(
    ("registered", "told"), [("shop", "Did you mean shop?"), ("bank", "There are: bank"), ("", "Nothing is.")]
)
async def test_a_service_that_was_named_and_does_not_come(
    town: Town, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, registered: str, told: str
) -> None:
    """The log says so once, with what there is."""
    monkeypatch.setattr("framework.gateway.gateway.ABSENT", 0.0)
    if registered:
        await town.add(registered)
    await town.gateway(services=["shopp"], ready=False)
    await logged(caplog, f"shopp is not registered in {town.registry}. {told}")
    await asyncio.sleep(0.2)  # several looks at what there is
    assert caplog.text.count("is not registered") == 1


async def test_a_service_that_comes_late_is_not_missed(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is said of one that was there at some time."""
    _, leave = await town.add("shop")
    running = await town.gateway(services=["shop"])
    await leave.aclose()
    await logged(caplog, "shop has no instance left")
    running._began = float("-inf")
    await running._miss()
    assert "is not registered" not in caplog.text


async def test_a_new_version(town: Town) -> None:
    """The new method and field are there once an instance has them; calls in flight are finished as they began."""
    old, leave = await town.add("shop", version="1.9")
    client = await town.client(await town.gateway())
    slow = asyncio.create_task(client.get("/v1/things/slow"))
    await old.entered.wait()
    await town.add("shop", NEWER, version="1.10")
    await until(client, "POST /v1/sold", 200)
    stopping = asyncio.create_task(leave.aclose())
    old.go_on.set()
    assert (await slow).json() == {"name": "slow", "number": 7}
    await stopping
    painted = await client.post("/v1/sold", json={"name": "lamp", "color": "red"})
    assert painted.json() == {"name": "lamp", "color": "red"}


async def test_going_back(town: Town) -> None:
    """When the instances of the new version leave, what the old one says counts again."""
    await town.add("shop", version="1")
    _, leave = await town.add("shop", NEWER, version="2")
    client = await town.client(await town.gateway())
    await until(client, "POST /v1/sold", 200)
    await leave.aclose()
    await until(client, "POST /v1/sold", 404)
    assert (await client.get("/v1/things/lamp")).status_code == 200


async def test_the_old_channel_is_closed(town: Town) -> None:
    """Once the last call on it has ended, and not before."""
    old, _ = await town.add("shop", version="1")
    running = await town.gateway()
    client = await town.client(running)
    generation = running.backends["shop"].generation
    assert generation is not None
    slow = asyncio.create_task(client.get("/v1/things/slow"))
    await old.entered.wait()
    await town.add("shop", NEWER, version="2")
    await until(client, "POST /v1/sold", 200)
    assert "1 calls in flight" in repr(generation)
    closed = [generation.closed]
    old.go_on.set()
    await slow
    closed.append(generation.closed)
    assert closed == [False, True]


async def test_a_body_that_is_still_on_its_way(town: Town) -> None:
    """A request is finished by the application that it began with, which lets go of its channel afterwards."""
    await town.add("shop", version="1")
    running = await town.gateway()
    client = await town.client(running)
    generation = running.backends["shop"].generation
    assert generation is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    head = b"POST /v1/things HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 12\r\n"
    writer.write(head + b'connection: close\r\n\r\n{"name"')

    async def arrived() -> bool:
        return "1 requests" in repr(running.front.app)

    await eventually(arrived)
    await town.add("shop", NEWER, version="2")
    await until(client, "POST /v1/sold", 200)
    closed = [generation.closed]
    writer.write(b':"x"}')
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    closed.append(generation.closed)
    assert (answer[:13], answer[-12:]) == (b"HTTP/1.1 200 ", b'{"name":"x"}')
    assert closed == [False, True]


async def test_a_stream_holds_its_own_channel_only(town: Town) -> None:
    """Those of other services, which the application had as well, are closed when they are replaced."""
    shop, _ = await town.add("shop")
    await town.add("bank", OTHER, Shop(OTHER, "other.Bank"), version="1")
    running = await town.gateway()
    client = await town.client(running)
    await until(client, "POST /v1/payments", 200)
    bank, own = (running.backends[name].generation for name in ("bank", "shop"))
    assert bank is not None
    assert own is not None
    async with client.stream("GET", "/v1/things/lamp:watch"):
        await shop.entered.wait()
        renewed = OTHER.replace("int64 cents = 1;", "int64 cents = 1; string note = 2;")
        await town.add("bank", renewed, Shop(renewed, "other.Bank"), version="2")
        async with asyncio.timeout(10):
            while running.backends["bank"].generation is bank:
                await running._news()
        assert (bank.closed, own.closed) == (True, False)


async def test_forgotten_while_another_comes(
    town: Town, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is being put together does not bring back a service that has been forgotten meanwhile."""
    caplog.set_level("INFO", "framework.gateway")
    begun, go_on = threading.Event(), threading.Event()
    make = Running._application

    def slow(running: Running, *given: Any) -> Any:
        if threading.current_thread() is not threading.main_thread() and "bank" in running.backends:
            begun.set()
            assert go_on.wait(10)
        return make(running, *given)

    monkeypatch.setattr(Running, "_application", slow)
    _, leave = await town.add("shop")
    running = await town.gateway(linger=0)
    client = await town.client(running)
    await town.add("bank", OTHER, Shop(OTHER, "other.Bank"))
    try:
        assert await asyncio.to_thread(begun.wait, 10)
        await leave.aclose()
        await logged(caplog, "shop is forgotten")
    finally:
        go_on.set()
    await until(client, "POST /v1/payments", 200)
    assert (await client.get("/v1/things/lamp")).status_code == 404


async def test_another_behind_the_same_id(town: Town) -> None:
    """It is asked what it serves, although its id was there all the time."""
    settings = Settings(registry="none", server=ServerSettings(drain=AT_ONCE))
    async with (
        service("shop", Shop()).running(settings) as old,
        service("shop", Shop(NEWER), NEWER).running(settings) as new,
    ):
        await town.registry.register(Instance("shop-1", "shop", old.address, version="1"))
        client = await town.client(await town.gateway())
        assert (await client.post("/v1/sold", json={})).status_code == 404
        await town.registry.register(Instance("shop-1", "shop", new.address, version="2"))
        await until(client, "POST /v1/sold", 200)


async def test_a_contradiction(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """A version whose messages mean something else is not taken over while an instance of the old one is there."""
    _, leave = await town.add("shop", version="1")
    client = await town.client(await town.gateway())
    await town.add("shop", CONTRADICTING, version="2")
    await logged(caplog, "field 2 of lab.Thing is text or bytes, and a number on another instance")
    assert "what shop says of itself cannot be used, what it said before stays" in caplog.text
    assert (await client.post("/v1/things", json={"number": 5})).json() == {"number": 5}
    assert caplog.text.count("cannot be used") == 1
    await leave.aclose()
    await until(client, "POST /v1/things", 200, {"number": "five"})


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (NEWER.replace('"/v1/sold"', '"/v1/{nothing}"'), "nothing"),
        (NEWER.replace('"/v1/sold"', '"v1/sold"'), "v1/sold"),
    ],
)
async def test_a_broken_rule(town: Town, caplog: pytest.LogCaptureFixture, proto: str, reason: str) -> None:
    """A version with a rule that cannot be served is refused, by name, and the old one stays."""
    await town.add("shop", version="1")
    client = await town.client(await town.gateway())
    await town.add("shop", proto, version="2")
    await logged(caplog, "what shop says of itself cannot be used, what it said before stays: ")
    assert reason in caplog.text
    assert (await client.get("/v1/things/lamp")).status_code == 200


class Broken(Reflection):
    """Tells of files that do not fit together."""

    def __init__(self, service: str) -> None:
        super().__init__([service], self)

    def FindFileContainingSymbol(self, symbol: str) -> object:
        broken = descriptor_pb2.FileDescriptorProto(name="broken.proto", package="lab")
        method = broken.service.add(name="Shop").method.add(name="Lost")
        method.input_type = method.output_type = ".lab.Missing"

        class File:
            name = "broken.proto"
            dependencies: tuple[object, ...] = ()

            def CopyToProto(self, proto: descriptor_pb2.FileDescriptorProto) -> None:
                proto.CopyFrom(broken)

        return File()


async def test_broken_descriptors(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit together is refused, in one line, and the old one stays."""
    await town.add("shop", version="1")
    client = await town.client(await town.gateway())
    await town.add("shop", described=Broken("lab.Shop"), version="2")
    await logged(caplog, "what shop says of itself cannot be used, what it said before stays: broken.proto")
    assert "lab.Missing" in caplog.text
    assert (await client.get("/v1/things/lamp")).status_code == 200


async def test_a_collision(town: Town, caplog: pytest.LogCaptureFixture) -> None:
    """A newcomer does not get what is another's already, wherever its name stands in the alphabet."""
    await town.add("shop")
    client = await town.client(await town.gateway())
    await town.add("another", OTHER.replace("/v1/payments", "/v1/things"), Shop(OTHER, "other.Bank"))
    await logged(caplog, "what another says of itself cannot be used, it is not served")
    assert "POST /v1/things (other.Bank/Pay) matches the same as POST /v1/things (lab.Shop/Buy), of shop" in caplog.text
    assert (await client.post("/v1/things", json={"name": "a"})).json() == {"name": "a"}


async def test_no_reflection(town: Town, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """A service that does not describe itself is described by a file; the file is followed too."""
    file = tmp_path / "shop.binpb"

    def write(proto: str) -> None:
        described = descriptor_pb2.FileDescriptorSet()
        for name in ("google/protobuf/descriptor.proto", "google/api/http.proto", "google/api/annotations.proto"):
            pool(proto).FindFileByName(name).CopyToProto(described.file.add())
        pool(proto).FindFileByName("test.proto").CopyToProto(described.file.add())
        file.with_suffix(".part").write_bytes(described.SerializeToString())
        file.with_suffix(".part").replace(file)

    await town.add("shop", described=pool(OTHER))
    first = await town.gateway(ready=False)
    await logged(caplog, "does not say what it serves")
    assert first.unready() == "no service can be called"
    running = await town.gateway(ready=False, descriptors={"shop": str(file)})
    client = await town.client(running)
    await logged(caplog, f"shop: descriptors in {file}: No such file or directory")
    write(SHOP)
    await until(client, "GET /v1/things/lamp", 200)
    write(NEWER)
    await until(client, "POST /v1/sold", 501)  # the service is still the old one
    file.write_bytes(b"no descriptors")
    await logged(caplog, "is no descriptor set")
    assert (await client.get("/v1/things/lamp")).status_code == 200
