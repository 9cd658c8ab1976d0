"""Everything over TLS: an agent of Consul that wants a certificate, and instances that speak TLS, which it checks."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from framework import connect
from framework.discovery.targets import open_registry
from framework.errors import ConfigError
from framework.tls import ServerTls
from tests.consul_agent import ConsulAgent, MakeAgent
from tests.invariants.echo import EchoClient, text
from tests.tls.lab import Folder, serving, settings


async def until_checked(agent: ConsulAgent, said: str) -> tuple[str, str]:
    """What the instance speaks and how its check ended, once that says so; the agent tells others only of changes."""
    async with asyncio.timeout(20):
        while True:
            services = await asyncio.to_thread(agent.api, "agent/services")
            for check in (await asyncio.to_thread(agent.api, "agent/checks")).values():
                if said in check["Output"]:
                    return services[check["ServiceID"]]["Meta"]["protocol"], check["Status"]
            await asyncio.sleep(0.05)


async def test_an_agent_that_wants_a_certificate(certs: Folder, consul_agent: MakeAgent) -> None:
    """Over HTTPS, with a certificate: registered, checked as what they speak, found, and called with mTLS."""
    agent = consul_agent(mutual=True)
    url = f"consul://{agent.address}?ca={agent.ca}&cert={agent.cert}&key={agent.key}&interval=0.2"

    async def call(server: ServerTls, said: str) -> tuple[str, str]:
        both = settings(url, server=server, client=certs.client())
        async with serving(both):
            found = await until_checked(agent, said)
            async with connect("echo", settings=both) as channel:
                for _ in range(3):
                    await EchoClient(channel).UnaryUnary(text(""), timeout=5)
        return found

    # The agent has asked, over TLS.
    assert await call(certs.server(mutual=False), "success") == ("grpc-tls", "passing")
    # The agent, which has no certificate to show, is told.
    assert await call(certs.server(), "it lives") == ("grpc-mtls", "passing")


@pytest.mark.parametrize("shown", [False, True])
async def test_an_agent_that_does_not_take_it(certs: Folder, consul_agent: MakeAgent, shown: bool) -> None:
    """Without a certificate, and with one of somebody else, one line says that the agent is not to be had."""
    agent = consul_agent(mutual=True)
    pair = certs.pair("caller")
    url = f"consul://{agent.address}?ca={agent.ca}" + (f"&cert={pair.certificate}&key={pair.key}" if shown else "")
    async with aclosing(open_registry(url)) as registry:
        with pytest.raises(ConfigError) as caught:
            await registry.services()
    assert f"Consul at https://{agent.address} does not answer" in str(caught.value)
    assert "certificate" in str(caught.value)


async def test_its_files_are_followed(
    certs: Folder, consul_agent: MakeAgent, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is asked after a change is asked with the new files; those that are no use change nothing."""
    agent = consul_agent(mutual=True)
    assert agent.cert
    assert agent.key
    cert, key, stranger = tmp_path / "agent.pem", tmp_path / "agent.key", certs.pair("caller")

    def put(new_cert: Path | str, new_key: Path | str) -> None:
        for source, target in ((new_cert, cert), (new_key, key)):
            shutil.copy(source, target.with_suffix(".new"))
            target.with_suffix(".new").replace(target)

    async def until(done: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(20):
            while True:
                if await done():
                    return
                await asyncio.sleep(0.05)

    async def answers() -> bool:
        with suppress(ConfigError):
            await registry.names()
            return True
        return False

    async def refused() -> bool:
        return not await answers()

    async def complained() -> bool:
        return "registry.certificate" in caplog.text

    put(agent.cert, agent.key)
    async with aclosing(open_registry(f"consul://{agent.address}?ca={agent.ca}&cert={cert}&key={key}")) as registry:
        watch = registry.watch("echo")
        await anext(aiter(watch))  # it asks on, for minutes, on the connection that it has
        put(stranger.certificate, stranger.key)
        await until(refused)
        put(agent.cert, agent.key)
        await until(answers)
        cert.write_text("nothing")
        await until(complained)
        assert await answers()
