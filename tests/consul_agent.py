"""A real Consul for tests: one server on loopback and free ports, that can go away and come back with its state.

Two fixtures: `consul`, one agent for the whole run, shared by tests that keep to service names of their own; and
`consul_agent`, which makes one that a test may stop, kill, restart, lock with a token or put behind TLS. The methods
block until they are done: where the event loop has to go on meanwhile, `await asyncio.to_thread(agent.restart)`.
"""

from __future__ import annotations

import json
import random
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.tools import tool

START = 30.0  # seconds; it takes 2 to 4


class ConsulAgent:
    """A `consul agent` process.

    Attributes:
        address: `host:port` of the HTTP API, of the HTTPS one with `tls`; the same after a restart.
        token: what its ACLs ask for, or None where everything is allowed.
        ca: the authority's certificate file with `tls`, or None.
        cert, key: what it wants to be shown with `mutual`, or None.
    """

    def __init__(self, folder: Path, *, token: str | None = None, tls: bool = False, mutual: bool = False) -> None:
        self.executable = tool("consul")
        self.folder = folder
        self.token = token
        self.ca: Path | None = None
        self.cert: Path | None = None
        self.key: Path | None = None
        self.log = folder / "consul.log"
        self._process: subprocess.Popen[bytes] | None = None
        api, server, serf = free_ports(3)
        self.address = f"127.0.0.1:{api}"
        ports = dict.fromkeys(("http", "https", "dns", "grpc", "serf_wan"), -1)  # -1 is off
        ports |= {"https" if tls else "http": api, "server": server, "serf_lan": serf}
        config: dict[str, Any] = {
            "server": True,
            "bootstrap_expect": 1,
            "node_name": "test",
            "data_dir": str(folder / "data"),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": ports,
            "performance": {"raft_multiplier": 1},  # elects itself in 2 s instead of 8
            "limits": {"http_max_conns_per_client": 5000},  # one blocking query per watch, all from one address
            "disable_update_check": True,
        }
        if token is not None:
            config["acl"] = {"enabled": True, "default_policy": "deny", "tokens": {"master": token, "agent": token}}
        if tls:
            self._consul("tls", "ca", "create")
            self._consul("tls", "cert", "create", "-server", "-additional-ipaddress=127.0.0.1")
            self.ca = folder / "consul-agent-ca.pem"
            config["cert_file"] = str(folder / "dc1-server-consul-0.pem")
            config["key_file"] = str(folder / "dc1-server-consul-0-key.pem")
        if mutual:
            self._consul("tls", "cert", "create", "-client")
            self.cert, self.key = folder / "dc1-client-consul-0.pem", folder / "dc1-client-consul-0-key.pem"
            config["ca_file"], config["verify_incoming_https"] = str(self.ca), True
        (folder / "consul.json").write_text(json.dumps(config))

    def __repr__(self) -> str:
        return f"<ConsulAgent {self.address} {'running' if self.running else 'stopped'}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self) -> None:
        """Start it, and return once it leads, answers with its catalog and takes registrations."""
        assert not self.running, "already running"
        command = [self.executable, "agent", "-config-file", str(self.folder / "consul.json")]
        with self.log.open("ab") as log:
            self._process = process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        give_up = time.monotonic() + START
        while not self._leads():
            if process.poll() is not None or time.monotonic() > give_up:
                self.kill()
                pytest.fail(f"consul did not start; its log ends:\n{self.tail()}", pytrace=False)
            time.sleep(0.02)

    def stop(self) -> None:
        """End it in order, as an upgrade of the agent does."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it and start it again: same ports, same state."""
        self.stop()
        self.start()

    def api(self, path: str, method: str = "GET", body: object = None) -> Any:
        """What the HTTP API answers to `path`, `agent/services` say."""
        request = urllib.request.Request(
            f"{'https' if self.ca else 'http'}://{self.address}/v1/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Consul-Token": self.token} if self.token else {},
        )
        context = ssl.create_default_context(cafile=self.ca) if self.ca else None
        if context is not None and self.cert is not None:
            context.load_cert_chain(self.cert, self.key)
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with direct.open(request, timeout=5) as response:
            content = response.read()
        return json.loads(content) if content else None

    def tail(self, since: int = 0, lines: int = 40) -> str:
        """The end of its log."""
        with self.log.open("rb") as log:
            log.seek(since)
            return b"\n".join(log.read().splitlines()[-lines:]).decode(errors="replace")

    def _leads(self) -> bool:
        try:
            return bool(self.api("status/leader") and self.api("catalog/service/consul"))
        except OSError:  # does not listen yet; answers 500 without a leader, 403 before its ACLs are up
            return False

    def _end(self, by: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(by)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _consul(self, *arguments: str) -> None:
        subprocess.run([self.executable, *arguments], cwd=self.folder, check=True, capture_output=True)


def free_ports(count: int) -> list[int]:
    """Ports that nothing uses, below those that the system hands to clients: they stay free across a restart."""
    found: list[int] = []
    with ExitStack() as held:
        while len(found) < count:
            port = random.randrange(20_000, 32_000)
            try:
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):  # Consul gossips over UDP too
                    held.enter_context(socket.socket(type=kind)).bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    return found


MakeAgent = Callable[..., ConsulAgent]


@pytest.fixture
def consul_agent(tmp_path: Path) -> Iterator[MakeAgent]:
    """`consul_agent(token="secret", tls=True)` is a running agent of the test's own."""
    with ExitStack() as agents:

        def make(*, token: str | None = None, tls: bool = False, mutual: bool = False) -> ConsulAgent:
            folder = tmp_path / f"consul-{random.getrandbits(32):08x}"
            folder.mkdir()
            agent = ConsulAgent(folder, token=token, tls=tls or mutual, mutual=mutual)
            agents.callback(lambda: print(f"{agent!r}, its log ends:\n{agent.tail()}"))  # shown when the test failed
            return agents.enter_context(agent)

        yield make


@pytest.fixture(scope="session")
def _shared_consul(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ConsulAgent]:
    with ConsulAgent(tmp_path_factory.mktemp("consul")) as agent:
        yield agent


@pytest.fixture
def consul(_shared_consul: ConsulAgent) -> Iterator[ConsulAgent]:
    """The agent that all tests share: register under a name of your own, and leave it running."""
    before = _shared_consul.log.stat().st_size
    yield _shared_consul
    print(f"{_shared_consul!r}, its log since the test began:\n{_shared_consul.tail(before)}")
