"""The processes of the lab: instances that can be broken, and clients that call them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.faults.control import uses
from bench.faults.report import Report
from tests.consul_agent import ConsulAgent, free_ports

ROOT = Path(__file__).parents[2]

PATIENCE = 30.0
"""Seconds in which a process must be up, or answer."""

LOOK = 0.25
"""Seconds between two looks at the memory of the instances."""

TARGETS = {"ours": "a", "grpc.aio": "b"}
"""The clients, and what the ids of their requests begin with."""


class LabError(Exception):
    """The lab itself does not work; says nothing about the framework."""


async def until(condition: Callable[[], Any | Awaitable[Any]], what: str, pause: float = 0.02) -> None:
    """Return once the condition holds; looked at after every pause."""
    end = time.monotonic() + PATIENCE
    while True:
        holds = condition()
        if await holds if isinstance(holds, Awaitable) else holds:
            return
        if time.monotonic() > end:
            raise LabError(f"{what}: not within {PATIENCE:g} s")
        await asyncio.sleep(pause)


class Child:
    """A process that answers each command with a line. What it logs goes to a file."""

    def __init__(self, module: str, spec: dict[str, Any], log: Path) -> None:
        self._command = (sys.executable, "-m", module, json.dumps(spec))
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        """It has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Start it, and return when it says that it is up."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FRAMEWORK_")}
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=ROOT,
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C is the lab's; and the scheduler shares the CPU fairly among sessions
            )
        await self._answer()

    async def ask(self, **command: Any) -> dict[str, Any]:
        """Give a command, and return the answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command).encode() + b"\n")
        return await self._answer()

    async def _answer(self) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(PATIENCE):
                line = await self._process.stdout.readline()
        except TimeoutError:
            raise LabError(f"{self._command[2]} does not answer; its log: {self._tail()}") from None
        if not line:
            raise LabError(f"{self._command[2]} has ended; its log: {self._tail()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; returns the exit code."""
        assert self._process is not None
        assert self._process.stdin is not None
        code = await self._process.wait()
        self._process.stdin.close()
        with contextlib.suppress(OSError):  # it has closed its end before
            await self._process.stdin.wait_closed()
        return code

    async def kill(self) -> None:
        """End it at once, whatever state it is in."""
        if self.running:
            self.signal(signal.SIGKILL)
        if self._process is not None:
            await self.ended()


class Instance(Child):
    """One instance of the service.

    Attributes:
        address: what clients dial.
        executions: the file with what it executed.
    """

    def __init__(self, number: int, spec: dict[str, Any], address: str, folder: Path) -> None:
        self.number = number
        self.address = address
        self.executions = folder / f"{number}.executions"
        name = f"{spec['service']}-{number}"
        own = {"name": name, "log": str(self.executions), "seed": number, "advertise": address}
        super().__init__("bench.faults.server", spec | own, folder / f"{number}.log")

    async def replace(self) -> None:
        """Drain it, and start it again at the same address."""
        self.signal(signal.SIGTERM)
        await self.ended()
        await self.start()

    def executed(self) -> list[tuple[str, str, float]]:
        """Id, method and moment of everything that it executed."""
        if not self.executions.exists():
            return []
        rows = [line.split() for line in self.executions.read_text().splitlines()]
        return [(id, method, float(moment)) for id, method, moment in rows]


class Caller(Child):
    """A client that makes calls."""

    def __init__(self, client: str, target: str, folder: Path) -> None:
        self.client = client
        self.tag = TARGETS[client]
        self._results = folder / f"{self.tag}.json"
        spec = {"client": client, "target": target, "tag": self.tag, "seed": 7, "results": str(self._results)}
        super().__init__("bench.faults.load", spec, folder / f"{self.tag}.log")

    async def load(self, rate: float, mix: Sequence[tuple[float, str, str]] | None = None) -> None:
        """Call at this rate from now on."""
        await self.ask(load={"rate": rate, "mix": mix})

    async def finish(self, fleet: Fleet) -> Report:
        """Stop calling; gives what was measured."""
        await self.ask(stop=True)
        await self.ended()
        return Report.of(self.client, self.tag, json.loads(self._results.read_text()), fleet)


class Fleet:
    """The instances, and the clients that call them.

    Attributes:
        usage: moment, resident bytes and file descriptors of all instances together.
        held_up: seconds that the lab itself had to wait for the CPU, at most: it says how busy the machine was.
    """

    def __init__(self, lab: Lab, folder: Path, service: str, instances: Sequence[Instance], registry: str) -> None:
        self.lab = lab
        self.folder = folder
        self.service = service
        self.instances = instances
        self.usage: list[tuple[float, int, int]] = []
        self.held_up = 0.0
        self._registry = registry

    @asynccontextmanager
    async def callers(self, clients: Sequence[str]) -> AsyncIterator[list[Caller]]:
        """Clients, started and known to reach every instance."""
        targets = {
            "ours": f"{self._registry}/{self.service}",
            "grpc.aio": "ipv4:" + ",".join(instance.address for instance in self.instances),
        }
        callers = [Caller(client, targets[client], self.folder) for client in clients]
        watching = asyncio.create_task(self._watch())
        try:
            await asyncio.gather(*(caller.start() for caller in callers))
            yield callers
        finally:
            watching.cancel()
            await asyncio.gather(watching, *(caller.kill() for caller in callers), return_exceptions=True)

    async def warm_up(self, callers: Sequence[Caller], rate: float) -> None:
        """Call until every client has reached every instance, and a second more."""
        await asyncio.gather(*(caller.load(rate) for caller in callers))
        await until(
            lambda: all(
                any(id.startswith(caller.tag) for id, *_ in instance.executed())
                for caller in callers
                for instance in self.instances
            ),
            "every client reaches every instance",
        )
        await asyncio.sleep(1.0)

    async def behave(self, *instances: Instance, **how: Any) -> None:
        """Change how these instances behave, or all of them."""
        await asyncio.gather(*(instance.ask(**how) for instance in instances or self.instances))

    async def _watch(self) -> None:
        while True:
            resident = descriptors = 0
            for instance in self.instances:
                with contextlib.suppress(OSError, IndexError):  # it has ended
                    own = uses(instance.pid)
                    resident, descriptors = resident + own[0], descriptors + own[1]
            self.usage.append((time.monotonic(), resident, descriptors))
            for _ in range(10):
                due = time.monotonic() + LOOK / 10
                await asyncio.sleep(LOOK / 10)
                self.held_up = max(self.held_up, time.monotonic() - due)


class Lab:
    """Where faults happen.

    Args:
        folder: for files.
        agent: a Consul that runs and stays up.
    """

    def __init__(self, folder: Path, agent: ConsulAgent) -> None:
        self.folder = folder
        self.agent = agent

    @asynccontextmanager
    async def own_agent(self) -> AsyncIterator[Agent]:
        """A Consul that may be broken."""
        folder = self.folder / f"consul-{random.getrandbits(32):08x}"
        folder.mkdir()
        agent = Agent(folder)
        await asyncio.to_thread(agent.start)
        try:
            yield agent
        finally:
            await asyncio.to_thread(agent.kill)

    @asynccontextmanager
    async def fleet(
        self,
        *,
        kind: str = "ours",
        count: int = 5,
        agent: ConsulAgent | None = None,
        discovered_at: str = "",
        behind: Callable[[str], Awaitable[str]] | None = None,
        drain: float = 1.0,
        behaviour: Mapping[str, float] = MappingProxyType({}),
    ) -> AsyncIterator[Fleet]:
        """Instances, serving and registered.

        Args:
            kind: `ours`, or `bare` for grpc.aio alone, which nobody registers.
            agent: where they register, when it is not the lab's.
            discovered_at: `host:port` where our client looks for them, when that is not the agent.
            behind: gives, for the address of the first instance, the one that clients are to dial.
            drain: seconds for which a draining instance still accepts calls.
            behaviour: how they behave, from the beginning and after a restart.
        """
        number = f"{random.getrandbits(32):08x}"
        service = f"worker-{number}"
        folder = self.folder / f"fleet-{number}"
        folder.mkdir()
        address = (agent or self.agent).address
        spec = {
            "kind": kind,
            "service": service,
            "registry": f"consul://{address}",
            "delay": drain,
            "grace": 10.0,
            "behaviour": dict(behaviour),
        }
        instances = []
        for index, port in enumerate(free_ports(count)):
            dialled = f"127.0.0.1:{port}"
            if behind is not None and index == 0:
                dialled = await behind(dialled)
            instances.append(Instance(index, spec | {"port": port}, dialled, folder))
        async with AsyncExitStack() as exits:
            exits.push_async_callback(lambda: asyncio.to_thread(deregister, agent or self.agent, service))
            for instance in instances:
                exits.push_async_callback(instance.kill)
            await asyncio.gather(*(instance.start() for instance in instances))
            yield Fleet(self, folder, service, instances, f"consul://{discovered_at or address}")

    async def newcomer(self, fleet: Fleet, agent: ConsulAgent) -> Instance:
        """One more instance of a fleet; the caller ends it."""
        [port] = free_ports(1)
        spec = {
            "kind": "ours",
            "service": fleet.service,
            "registry": f"consul://{agent.address}",
            "delay": 0.0,
            "grace": 10.0,
            "behaviour": {},
            "port": port,
        }
        instance = Instance(len(fleet.instances), spec, f"127.0.0.1:{port}", fleet.folder)
        await instance.start()
        return instance


def deregister(agent: ConsulAgent, service: str) -> None:
    """Let an agent forget instances that were killed, or it would go on looking for them."""
    if agent.running:
        for id, one in agent.api("agent/services").items():
            if one["Service"] == service:
                agent.api(f"agent/service/deregister/{id}", "PUT")


class Agent(ConsulAgent):
    """A Consul agent that can lose its memory."""

    def forget(self) -> None:
        """Drop what it knows; while it is down."""
        shutil.rmtree(self.folder / "data")

    def passing(self, service: str) -> int:
        """How many instances of a service it finds healthy."""
        return len(self.api(f"health/service/{service}?passing=1"))
