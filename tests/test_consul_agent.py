"""The Consul that other tests rely on."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from tests.consul_agent import ConsulAgent, MakeAgent


def names(agent: ConsulAgent) -> set[str]:
    return set(agent.api("catalog/services"))


def test_restart_keeps_address_and_state(consul_agent: MakeAgent) -> None:
    """After a restart the agent answers where it did and knows what it knew."""
    agent = consul_agent()
    agent.api("agent/service/register", "PUT", {"Name": "catalog", "Port": 1})
    agent.restart()
    assert names(agent) == {"consul", "catalog"}
    agent.kill()
    assert not agent.running
    agent.start()
    assert names(agent) == {"consul", "catalog"}


def test_token_is_asked_for(consul_agent: MakeAgent) -> None:
    """With ACLs on, only the token lists services."""
    agent = consul_agent(token="7c0ea0f4-7c0c-4c80-8a5c-1d2f6a2b7a11")
    assert names(agent) == {"consul"}
    agent.token = None
    assert names(agent) == set()


def test_tls_is_the_only_way_in(consul_agent: MakeAgent) -> None:
    """With TLS the API speaks HTTPS under the agent's own authority, and nothing else."""
    agent = consul_agent(tls=True)
    assert names(agent) == {"consul"}
    agent.ca = None
    with pytest.raises(urllib.error.HTTPError, match="400"):
        agent.api("status/leader")
