"""What comes, goes and changes while the gateway runs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from tests.gateway.lab import CONTRADICTING, NEWER, OTHER, SHOP, Reflection, Shop, Town, logged, pool, until


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
    assert "no instance of bank" in unavailable.json()["message"]
    await until(client, "POST /v1/payments", 404)
    assert set(running.backends) == {"shop"}
    assert (await client.get("/v1/things/lamp")).status_code == 200


async def test_a_service_that_was_named_is_not_forgotten(town: Town) -> None:
    """What the settings name is answered for."""
    _, leave = await town.add("shop")
    client = await town.client(await town.gateway(services=["shop"], linger=0))
    await leave.aclose()
    await until(client, "GET /v1/things/lamp", 503)
    await asyncio.sleep(0.2)  # several looks at what there is
    assert (await client.get("/v1/things/lamp")).status_code == 503
    await town.add("shop")
    await until(client, "GET /v1/things/lamp", 200)


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
