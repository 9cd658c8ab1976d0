"""Consul: what is registered, restarts, bad answers, tokens and TLS. The agent is real where it can be."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from framework.discovery import Instance, Snapshot, Watch, consul
from framework.discovery.consul import ConsulRegistry
from framework.discovery.consul_terms import Check, ConsulSettings, instances, registration
from framework.discovery.targets import open_registry
from framework.errors import ConfigError
from tests.consul_agent import ConsulAgent, MakeAgent, free_ports
from tests.discovery.fake_consul import FakeConsul

TOKEN = "5f2a8c1e-77aa-4d0e-9d5b-3c6f0c1d2e3f"

OTHER = "00000000-0000-4000-8000-000000000000"

Open = Callable[..., ConsulRegistry]


@pytest.fixture
async def open_consul() -> AsyncIterator[Open]:
    """`open_consul(agent, hold=..., check=...)` is a registry at that agent; instances keep themselves alive."""
    async with AsyncExitStack() as exits:

        def open_consul(agent: ConsulAgent, token: str | None = None, **settings: Any) -> ConsulRegistry:
            host, port = agent.address.split(":")
            settings.setdefault("check", Check("ttl", interval=0.5))
            registry = ConsulRegistry(ConsulSettings(host, int(port), **settings), token=token)
            exits.push_async_callback(registry.aclose)
            return registry

        yield open_consul


def instance(id: str = "catalog-1", service: str = "catalog", address: str = "127.0.0.1:7001") -> Instance:
    return Instance(id, service, address)


async def until(watch: Watch, wanted: Callable[[Snapshot], bool], within: float = 10.0) -> Snapshot:
    async with asyncio.timeout(within):
        async for snapshot in watch:
            if wanted(snapshot):
                return snapshot
    raise AssertionError("the watch ended")


async def nothing_comes(watch: Watch, within: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(within):
            pytest.fail(f"a snapshot came: {await anext(watch)}")


async def eventually(condition: Callable[[], object], within: float = 5.0) -> float:
    """Seconds until it happened."""
    began = time.monotonic()
    while time.monotonic() < began + within:
        if condition():
            return time.monotonic() - began
        await asyncio.sleep(0.01)
    pytest.fail("it never happened")


def state(task: Path) -> str:
    """What Linux says a thread does: T is stopped."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


# What is registered


async def test_entry_is_what_consul_users_expect(consul: ConsulAgent, open_consul: Open) -> None:
    """Address, port, tags, weights and meta stand where Consul's own tools look for them."""
    one = Instance(
        "entry-1", "entry", "127.0.0.1:7001", "1.2.0", "eu-1", 5, tags=("blue",), metadata={"commit": "5ba1e"}
    )
    await open_consul(consul).register(one)
    entry = consul.api("agent/service/entry-1")
    lease = entry["Meta"].pop("lease")
    assert {key: entry[key] for key in ("Service", "Address", "Port", "Tags", "Meta", "Weights")} == {
        "Service": "entry",
        "Address": "127.0.0.1",
        "Port": 7001,
        "Tags": ["blue"],
        "Meta": {"version": "1.2.0", "zone": "eu-1", "weight": "5", "protocol": "grpc", "commit": "5ba1e"},
        "Weights": {"Passing": 5, "Warning": 1},
    }
    assert len(lease) == 16


OVER_TLS: dict[str, object] = {"GRPCUseTLS": True, "TLSSkipVerify": True}


@pytest.mark.parametrize(
    ("address", "check", "expected"),
    [
        ("127.0.0.1:80", Check(), {"GRPC": "127.0.0.1:80", "GRPCUseTLS": False, "Interval": "2s"}),
        ("[::1]:80", Check("grpc-tls", 0.5), {"GRPC": "[::1]:80", **OVER_TLS, "Interval": "0.5s"}),
        ("public:80", Check(host="private"), {"GRPC": "private:80", "GRPCUseTLS": False, "Interval": "2s"}),
        ("127.0.0.1:80", Check("ttl", interval=0.5), {"TTL": "1.5s"}),
    ],
)
def test_check_definition(address: str, check: Check, expected: dict[str, object]) -> None:
    """Each kind of check is what Consul wants to read, passing from the start, and forgotten after a while."""
    expected |= {"Status": "passing", "DeregisterCriticalServiceAfter": "60s"}
    expected |= {} if check.kind == "ttl" else {"Timeout": "2s"}
    assert registration(instance(address=address), check, "me")["check"] == expected


@pytest.mark.parametrize("address", ["dns:///catalog:80", "unix:/run/catalog.sock", "catalog", "catalog:http", ":80"])
async def test_address_without_host_and_port_is_refused(open_consul: Open, consul: ConsulAgent, address: str) -> None:
    """Consul keeps a host and a port; any other address is refused with a clear line."""
    with pytest.raises(ConfigError, match="that is not host:port"):
        await open_consul(consul).register(instance(address=address))


@asynccontextmanager
async def health_server() -> AsyncIterator[tuple[str, health.aio.HealthServicer]]:
    """A gRPC server that serves health and nothing else."""
    servicer = health.aio.HealthServicer()
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}", servicer
    await server.stop(0)


async def test_consul_asks_each_instance_for_its_health(consul: ConsulAgent, open_consul: Open) -> None:
    """An instance is found from the moment it registers, leaves while it is not serving, and comes back."""
    registry = open_consul(consul, check=Check(interval=0.2), hold=0.1)
    watch = registry.watch("asked")
    assert await anext(watch) == {}
    async with health_server() as (address, servicer):
        await registry.register(instance("asked-1", "asked", address))
        assert len(consul.api("health/service/asked?passing")) == 1
        assert set(await until(watch, bool)) == {"asked-1"}
        await servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert await until(watch, lambda snapshot: not snapshot) == {}
        await servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        assert set(await until(watch, bool)) == {"asked-1"}
        (check,) = consul.api("health/checks/asked")
        assert "success" in check["Output"]
    assert await until(watch, lambda snapshot: not snapshot) == {}


# What others registered


def entry(service: dict[str, object], node: str = "n1", address: str = "10.0.0.1") -> dict[str, Any]:
    return {"Node": {"Node": node, "Address": address}, "Service": service, "Checks": []}


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({}, {}),
        ({"ID": ""}, {"id": "catalog"}),
        ({"Address": "::1"}, {"address": "[::1]:80"}),
        ({"Meta": None, "Tags": None, "Weights": None}, {}),
        ({"Weights": {"Passing": 900}}, {"weight": 100}),
        ({"Weights": {"Passing": 0}}, {}),
        ({"Meta": {"weight": "much"}}, {}),
        ({"Meta": {"team": "a"}, "Tags": ["blue"]}, {"metadata": {"team": "a"}, "tags": ("blue",)}),
    ],
)
def test_entries_of_others_are_understood(service: dict[str, object], expected: dict[str, Any]) -> None:
    """What another tool registered without our meta is an instance with defaults."""
    one = dataclasses.replace(Instance("x", "catalog", "10.0.0.1:80"), **expected)
    assert instances([entry({"ID": "x", "Port": 80} | service)], "catalog") == {one.id: one}


def test_entry_without_a_port_is_left_out() -> None:
    """What cannot be dialled is no instance, and does not hide the others."""
    found = instances([entry({"ID": "x", "Port": 0}), entry({"ID": "y", "Port": 1})], "catalog")
    assert set(found) == {"y"}


def test_equal_ids_on_two_nodes_are_two_instances() -> None:
    """Ids are unique on a node only: the later entry is called after its node, whatever the order of the answer."""
    old = entry({"ID": "x", "Port": 1, "CreateIndex": 5}, "n1")
    new = entry({"ID": "x", "Port": 2, "CreateIndex": 9}, "n2")
    for answer in ([old, new], [new, old]):
        assert {id: one.address for id, one in instances(answer, "catalog").items()} == {
            "x": "10.0.0.1:1",
            "x@n2": "10.0.0.1:2",
        }


async def test_service_of_another_tool_is_found(consul: ConsulAgent, open_consul: Open) -> None:
    """A service registered by hand, with the least that Consul asks for, is watched like any other."""
    consul.api("agent/service/register", "PUT", {"Name": "plain", "Port": 80})
    found = await until(open_consul(consul).watch("plain"), bool)
    assert found == {"plain": Instance("plain", "plain", "127.0.0.1:80")}


# An agent that goes away


async def test_restarted_agent_that_lost_everything(consul_agent: MakeAgent, open_consul: Open) -> None:
    """When the agent comes back empty, all are registered again within 2 s, and no watch sees anybody leave."""
    agent = await asyncio.to_thread(consul_agent)
    registry = open_consul(agent, hold=1.5)
    all_three = {f"catalog-{number}" for number in range(3)}
    for id in all_three:
        await registry.register(instance(id))
    watch = registry.watch("catalog")
    await until(watch, lambda snapshot: set(snapshot) == all_three)
    agent.kill()
    shutil.rmtree(agent.folder / "data")
    await asyncio.to_thread(agent.start)
    assert await eventually(lambda: set(agent.api("agent/services")) == all_three) < 2
    await nothing_comes(watch, within=1.8)
    assert watch.problem == ""
    await registry.register(instance("catalog-9"))
    assert set(await until(watch, bool, within=1)) == {*all_three, "catalog-9"}


async def test_agent_that_is_away_changes_nothing(consul_agent: MakeAgent, open_consul: Open) -> None:
    """While the agent is down a watch keeps what it knew and says why. When it is back, changes arrive within 2 s, and
    nobody leaves though Consul begins by holding everything for critical."""
    agent = await asyncio.to_thread(consul_agent)
    agent.api("agent/service/register", "PUT", {"Name": "catalog", "ID": "theirs", "Port": 1})
    registry = open_consul(agent, check=Check(interval=0.5), hold=1.5)
    async with health_server() as (address, _):
        await registry.register(instance("ours", address=address))
        watch = registry.watch("catalog")
        await until(watch, lambda snapshot: set(snapshot) == {"theirs", "ours"})
        agent.stop()
        await eventually(lambda: watch.problem)
        assert watch.problem == f"consul://{agent.address}: connection refused"
        await nothing_comes(watch, within=0.3)
        comes = asyncio.create_task(registry.register(instance("comes", address=address)))
        await asyncio.to_thread(agent.start)
        await asyncio.wait_for(comes, 2)
        assert set(await until(watch, bool, within=2)) == {"theirs", "ours", "comes"}
        agent.api("agent/service/deregister/theirs", "PUT")
        assert set(await until(watch, bool, within=4)) == {"ours", "comes"}
        assert watch.problem == ""


async def test_no_agent_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody listens, the message says where, why and what to do."""
    monkeypatch.setattr(consul, "PATIENCE", 0.3)
    port = free_ports(1)[0]
    registry = open_registry(f"consul://127.0.0.1:{port}")
    expected = (
        f"Consul at http://127.0.0.1:{port} does not answer (connection refused). Start it, or choose another registry "
        "with --registry or FRAMEWORK_REGISTRY."
    )
    for use in (lambda: registry.register(instance()), registry.services):
        with pytest.raises(ConfigError) as caught:
            await use()
        assert str(caught.value) == expected
    await registry.aclose()


async def test_hung_agent_holds_up_nobody(
    consul_agent: MakeAgent, open_consul: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that accepts and says nothing is given up on: closing takes bounded time and raises nothing."""
    agent = await asyncio.to_thread(consul_agent)
    registry = open_consul(agent)
    lease = await registry.register(instance())
    monkeypatch.setattr(consul, "ANSWER", 0.3)
    monkeypatch.setattr(consul, "PATIENCE", 0.5)
    os.kill(agent.pid, signal.SIGSTOP)
    await eventually(lambda: all(state(task) == "T" for task in Path(f"/proc/{agent.pid}/task").iterdir()))
    try:
        async with asyncio.timeout(1):
            await lease.close()
        assert "is not deregistered" in caplog.text
        with pytest.raises(ConfigError, match=r"does not answer \(no answer in 0.3 s\)"):
            await registry.register(instance())
    finally:
        os.kill(agent.pid, signal.SIGCONT)


async def test_deregistered_by_others_comes_back(consul: ConsulAgent, open_consul: Open) -> None:
    """An instance that Consul forgot, having been critical for too long say, registers again by itself."""
    await open_consul(consul).register(instance("back-1", "back"))
    consul.api("agent/service/deregister/back-1", "PUT")
    assert await eventually(lambda: "back-1" in consul.api("agent/services")) < 2


async def test_cancelled_registration_is_taken_back(consul: ConsulAgent, open_consul: Open) -> None:
    """A registration that is given up half way leaves no entry."""
    registry = open_consul(consul)
    for delay in (0, 0.0005, 0.001, 0.002):
        task = asyncio.create_task(registry.register(instance("given-up", "given-up")))
        await asyncio.sleep(delay)
        task.cancel()
        lease = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(lease, BaseException):
            await lease.close()
        assert "given-up" not in consul.api("agent/services")


async def test_more_watches_than_a_connection_pool_holds(consul: ConsulAgent, open_consul: Open) -> None:
    """A hundred and fifty watches wait at once, and a registration still gets through."""
    registry = open_consul(consul)
    watches = [registry.watch(f"many-{number}") for number in range(150)]
    assert all([await anext(watch) == {} for watch in watches])
    await asyncio.sleep(0.2)  # now every watch waits for an answer
    await asyncio.wait_for(registry.register(instance("many-7", "many-7")), 2)
    assert set(await until(watches[7], bool, within=2)) == {"many-7"}


# Answers that a real agent gives on a bad day


async def test_index_that_goes_backwards_starts_again() -> None:
    """After the index fell from 50 to 7, the next query asks without one, and the one after that from there."""
    fake = FakeConsul()
    fake.says(50, "a")
    async with fake.serve() as registry:
        watch = registry.watch("catalog")
        assert set(await anext(watch)) == {"a"}
        await eventually(lambda: len(fake.queries) == 2)
        fake.says(7, "a", "b")
        assert set(await anext(watch)) == {"a", "b"}
        fake.says(7, "a", "b")
        await eventually(lambda: len(fake.queries) == 4)
    assert [query.get("index") for query in fake.queries] == [None, "50", None, "7"]


@pytest.mark.parametrize("index", [0, None])
async def test_missing_index_is_polled_gently(index: int | None) -> None:
    """Without an index there is no waiting in Consul, so there is here: a few queries, then one a second."""
    fake = FakeConsul()
    fake.hasty = True
    fake.says(index, "a")
    async with fake.serve() as registry:
        watch = registry.watch("catalog")
        assert set(await anext(watch)) == {"a"}
        await nothing_comes(watch, within=1)
        assert 3 <= len(fake.queries) <= 6
        assert all("index" not in query for query in fake.queries)


async def test_query_that_does_not_block_is_slowed_down() -> None:
    """Some versions answer about a service that nobody has without waiting; that is not asked in a tight loop."""
    fake = FakeConsul()
    fake.hasty = True
    fake.says(5)
    async with fake.serve() as registry:
        watch = registry.watch("catalog")
        assert await anext(watch) == {}
        await nothing_comes(watch, within=1)
        assert 3 <= len(fake.queries) <= 6
        fake.says(6, "a")
        assert set(await until(watch, bool, within=1.5)) == {"a"}


async def test_answer_that_is_suddenly_empty_is_not_believed(caplog: pytest.LogCaptureFixture) -> None:
    """Five instances, none, five again: nobody is told of it, but the log."""
    fake = FakeConsul()
    fake.says(10, *"abcde")
    async with fake.serve() as registry:
        watch = registry.watch("catalog")
        assert set(await anext(watch)) == set("abcde")
        fake.says(11)
        await eventually(lambda: len(fake.queries) == 3)
        fake.says(12, *"abcde")
        await nothing_comes(watch, within=0.6)
    assert "5 of 5 instances are missing; kept until that is confirmed" in caplog.text


async def test_answer_that_stays_empty_is_confirmed_first() -> None:
    """An empty answer counts once the servers, asked to be sure, say the same."""
    fake = FakeConsul()
    fake.says(10, "a", "b")
    async with fake.serve(hold=0.3) as registry:
        watch = registry.watch("catalog")
        assert set(await anext(watch)) == {"a", "b"}
        await eventually(lambda: len(fake.queries) == 2)
        fake.says(11)
        began = time.monotonic()
        assert await anext(watch) == {}
        assert time.monotonic() - began >= 0.3
        await eventually(lambda: len(fake.queries) == 5)
    confirming = [query for query in fake.queries if "consistent" in query]
    assert confirming == [{"passing": "1", "consistent": "1"}]
    assert fake.queries[-1]["index"] == "11"


async def test_answer_after_trouble_may_lack_instances() -> None:
    """After an error, an answer with fewer instances is not believed at once, whatever its index says."""
    fake = FakeConsul()
    fake.says(50, "a", "b")
    async with fake.serve(hold=5) as registry:
        watch = registry.watch("catalog")
        assert set(await anext(watch)) == {"a", "b"}
        fake.says_text("No cluster leader", 500)
        fake.says(60, "a")
        await nothing_comes(watch, within=0.7)
        assert watch.problem == ""
        fake.says(61, "a", "c")
        assert set(await anext(watch)) == {"a", "b", "c"}


async def test_instances_that_return_one_by_one_do_not_flap() -> None:
    """After an agent forgot everything, no instance leaves while they come back, and a new one is seen at once."""
    fake = FakeConsul()
    fake.says(50, "a", "b", "c")
    async with fake.serve(hold=1) as registry:
        watch = registry.watch("catalog")
        assert set(await anext(watch)) == {"a", "b", "c"}
        for answer in ([], ["b"], ["b", "a"], ["b", "a", "d"]):
            fake.says(5 + len(answer), *answer)
        assert set(await anext(watch)) == {"a", "b", "c", "d"}
        fake.says(10, "b", "d", "c")
        assert set(await anext(watch)) == {"b", "c", "d"}


@pytest.mark.parametrize(
    ("status", "text", "reason"),
    [
        (500, "No cluster leader", "500 No cluster leader"),
        (200, "<html>Sign in</html>", "Failed to decode JSON"),
        (200, '{"not": "a list"}', "an answer that cannot be read"),
        (200, "[{}]", "an answer that cannot be read: KeyError('Service')"),
        (403, "ACL not found", "403 ACL not found"),
        (429, "Your IP is issuing too many concurrent connections", "429 Your IP"),
    ],
)
async def test_bad_answer_keeps_the_last_good_one(status: int, text: str, reason: str) -> None:
    """Whatever an agent says instead of an answer, the last snapshot stays and `problem` says what it was."""
    fake = FakeConsul()
    fake.says(10, "a")
    async with fake.serve() as registry:
        watch = registry.watch("catalog")
        assert set(await anext(watch)) == {"a"}
        fake.says_text(text, status)
        await eventually(lambda: watch.problem)
        assert watch.problem.startswith(f"{registry}: {reason}")
        fake.says(11, "a")
        await eventually(lambda: not watch.problem)
        await nothing_comes(watch, within=0.1)
        fake.says(12, "a", "b")
        assert set(await until(watch, bool, within=2)) == {"a", "b"}


async def test_answer_filtered_by_acls_is_no_answer() -> None:
    """An answer that is empty for want of a permission is a problem, not an empty service."""
    fake = FakeConsul()
    fake.says(10, "a")
    async with fake.serve(hold=0.1) as registry:
        watch = registry.watch("catalog")
        assert set(await anext(watch)) == {"a"}
        fake.says_text("[]", headers={"X-Consul-Index": "11", "X-Consul-Results-Filtered-By-ACLs": "true"})
        await eventually(lambda: watch.problem)
        assert "the token lacks service:read or node:read" in watch.problem
        await nothing_comes(watch, within=0.5)


# Tokens and TLS


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    """An agent that does nothing without its token."""
    with ConsulAgent(tmp_path_factory.mktemp("locked"), token=TOKEN) as agent:
        yield agent


async def test_token_opens_and_stays_secret(
    locked: ConsulAgent, open_consul: Open, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An explicit token is used, wins over the environment's, and is in no log, message or representation."""
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", OTHER)
    with caplog.at_level(logging.DEBUG):
        registry = open_consul(locked, token=TOKEN)
        lease = await registry.register(instance())
        watch = registry.watch("catalog")
        assert set(await until(watch, bool)) == {"catalog-1"}
        assert set(await registry.services()) == {"catalog"}
        locked.api("agent/service/deregister/catalog-1", "PUT")
        await eventually(lambda: "catalog-1" in locked.api("agent/services"))
        await lease.close()
    said = [caplog.text, str(registry), *map(repr, (registry, registry.settings, lease, watch))]
    assert not any(TOKEN in text for text in said)
    assert "does not know catalog-1" in caplog.text


async def test_token_of_the_environment_is_used(
    locked: ConsulAgent, open_consul: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an explicit token, CONSUL_HTTP_TOKEN counts, as it does for Consul's own tools; "" is none at all."""
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", TOKEN)
    await open_consul(locked).register(instance())
    with pytest.raises(ConfigError, match="service:write"):
        await open_consul(locked, token="").register(instance())


@pytest.mark.parametrize(("token", "reason"), [(None, "Permission denied"), (OTHER, "ACL not found")])
async def test_token_without_permission_is_one_clear_line(
    locked: ConsulAgent, open_consul: Open, token: str | None, reason: str
) -> None:
    """A token that may not register is refused at once; the message says what it lacks, and not what it is."""
    with pytest.raises(ConfigError) as caught:
        await asyncio.wait_for(open_consul(locked, token=token).register(instance()), 1)
    where = f"Consul at http://{locked.address}"
    assert str(caught.value).startswith(
        f"{where} refuses to register catalog: the token lacks service:write (403 {reason}"
    )
    assert OTHER not in str(caught.value)


async def test_tls_trusts_what_it_is_told(consul_agent: MakeAgent) -> None:
    """With the authority's file, or without verification, HTTPS works; otherwise the certificate is complained of."""
    agent = await asyncio.to_thread(consul_agent, tls=True)
    for query in (f"ca={agent.ca}", "verify=false"):
        registry = open_registry(f"consul://{agent.address}?check=ttl&{query}")
        lease = await registry.register(instance())
        assert set(await until(registry.watch("catalog"), bool)) == {"catalog-1"}
        await lease.close()
        await registry.aclose()
    registry = open_registry(f"consul://{agent.address}?tls=true")
    with pytest.raises(ConfigError, match=f"https://{agent.address} does not answer .*certificate verify failed"):
        await registry.services()
    await registry.aclose()


def test_settings_of_a_url() -> None:
    """Everything that can follow the `?` arrives in the settings; what needs TLS switches it on."""
    assert ConsulSettings.parse("consul://host") == ConsulSettings("host", 8500)
    assert ConsulSettings.parse("consul://h:1?dc=east&check=grpc-tls&interval=5&hold=9") == ConsulSettings(
        "h", 1, datacenter="east", check=Check("grpc-tls", interval=5), hold=9
    )
    plain = ConsulSettings("h", 1, tls=True)
    assert ConsulSettings.parse("consul://h:1?tls=true") == plain
    assert ConsulSettings.parse("consul://h:1?verify=false") == dataclasses.replace(plain, verify=False)
    assert ConsulSettings.parse("consul://h:1?ca=a&cert=b&key=c") == dataclasses.replace(
        plain, ca="a", cert="b", key="c"
    )
