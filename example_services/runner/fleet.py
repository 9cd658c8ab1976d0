"""The processes of the shop: two instances of each service, watched in the registry and kept running."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from example_services.runner.certificates import Certificates
from framework import ConfigError, FrameworkError
from framework.discovery import Registry, Snapshot
from framework.discovery.targets import open_registry

SERVICES: dict[str, tuple[str, ...]] = {  # and those that each waits for: its first call is to find them
    "catalog": (),
    "inventory": (),
    "payments": (),
    "orders": ("catalog", "inventory", "payments"),
}
INSTANCES = 2  # of each
ROOT = Path(__file__).parents[2]

START = 30.0  # seconds that all may take to serve
PATIENCE = 2.0  # seconds that an instance may take to leave before it is killed
ADMIN = re.compile(r"admin pages on http://(\S+)")
SETTINGS = {  # of every instance
    "FRAMEWORK_ADMIN_PORT": "0",
    "FRAMEWORK_TELEMETRY_LOGS_FORMAT": "text",  # the files are for the person who looks on
}
DRAIN = {  # short, because everything is on one machine and somebody waits
    "FRAMEWORK_SERVER_DRAIN_DELAY": "200ms",
    "FRAMEWORK_SERVER_DRAIN_GRACE": "1s",
    "FRAMEWORK_SERVER_DRAIN_STREAMS": "200ms",
}


PROMETHEUS = """\
global: {{ scrape_interval: 1s, evaluation_interval: 1s }}
rule_files: ["{rules}"]
scrape_configs:
  - job_name: shop
    file_sd_configs: [{{ files: ["{targets}"], refresh_interval: 1s }}]
"""


class StartError(FrameworkError):
    """The shop cannot start; the message says what to do, or has the words of the instance that ended."""


@dataclass(eq=False)
class Instance:
    """One of the processes.

    Attributes:
        name: `catalog-1`, for people; a process that replaces another keeps it.
        address: where it serves, as the registry says; empty while it does not.
        admin: where its admin pages are, as its log says.
        log: the file with what it writes.
        logged: bytes of the log that are of processes before this one.
        starts: how many processes it has had.
        served: the present one has been in the registry.
        leaving: it has been told to end.
    """

    name: str
    service: str
    log: Path
    process: asyncio.subprocess.Process | None = None
    address: str = ""
    admin: str = ""
    logged: int = 0
    starts: int = 0
    served: bool = False
    leaving: bool = False

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    @property
    def state(self) -> str:
        """`starting`, `serving` or `leaving`."""
        return "leaving" if self.leaving else "serving" if self.address else "starting"

    def kill(self, by: signal.Signals) -> None:
        """Send the process a signal."""
        if self.process is not None and self.alive:
            self.process.send_signal(by)


class Fleet:
    """The processes. `async with Fleet.start(...)` starts them and ends them.

    Attributes:
        instances: all of them.
        failed: is done when an instance cannot be started, with the error.
        certificates: what they show each other; None is plain text.
    """

    def __init__(
        self,
        directory: Path,
        registry: str,
        say: Callable[[str], None],
        certificates: Certificates | None = None,
        secured: Path | None = None,
    ) -> None:
        self.instances = tuple(
            Instance(f"{service}-{number}", service, directory / f"{service}-{number}.log")
            for service in SERVICES
            for number in range(1, INSTANCES + 1)
        )
        self.registry: Registry = open_registry(registry)
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.certificates = certificates
        self._say = say
        self._found: dict[str, Snapshot] = {}
        self._changed = asyncio.Event()
        self._stopping = False
        self._arguments = ("--port", "0", "--registry", registry)
        self._directory = directory
        self._admin: dict[str, str] = {}  # where the pages of other processes are
        self._environment = {
            **SETTINGS,
            **os.environ,
            **DRAIN,
            "FRAMEWORK_REGISTRY": registry,
            "SHOP_DATA": str(directory),
        }
        self.secured = secured
        if secured is not None:
            self._environment["FRAMEWORK_CONFIG"] = str(secured)

    @classmethod
    @asynccontextmanager
    async def start(
        cls,
        directory: Path,
        registry: str,
        say: Callable[[str], None],
        certificates: Certificates | None = None,
        secured: Path | None = None,
    ) -> AsyncIterator[Fleet]:
        """Start all processes, without waiting for them, and end them with the block.

        Args:
            directory: for their data and logs.
            registry: URL of the registry they meet in.
            say: is told what happens.
            certificates: what they show each other; None is plain text.
            secured: settings by which they ask who calls; None is not to ask.

        Raises:
            ConfigError: there is no registry of this kind.
            StartError: it cannot be used.
        """
        fleet = cls(directory, registry, say, certificates, secured)
        try:
            await fleet._reach_registry()
            watchers = [asyncio.create_task(fleet._watch(service)) for service in SERVICES]
            keepers = [asyncio.create_task(fleet._keep(instance)) for instance in fleet.instances]
            try:
                yield fleet
            finally:
                for watcher in watchers:  # first, or each instance that leaves would be missed
                    watcher.cancel()
                try:
                    await asyncio.wait(watchers)
                finally:
                    await fleet._end(keepers)
        finally:
            await fleet.registry.aclose()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once the condition holds; looked at whenever an instance changes.

        Raises:
            StartError: an instance cannot be started.
        """
        while not condition():
            if self.failed.done():
                self.failed.result()
            await self._changed.wait()

    async def until_serving(self) -> None:
        """Return once every instance is registered.

        Raises:
            StartError: one of them cannot be started, or takes too long.
        """
        try:
            async with asyncio.timeout(START):
                await self.until(lambda: all(instance.state == "serving" for instance in self.instances))
        except TimeoutError:
            late = ", ".join(instance.name for instance in self.instances if instance.state != "serving")
            raise StartError(f"not registered in {self.registry} after {START:g} s: {late}") from None

    async def during(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this, unless an instance cannot be started meanwhile.

        Raises:
            StartError: that happened, and the work was cancelled.
        """
        task = asyncio.create_task(work)
        try:
            await asyncio.wait((task, self.failed), return_when=asyncio.FIRST_COMPLETED)
            if self.failed.done():
                self.failed.result()
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def replace(self, instance: Instance) -> None:
        """Let an instance drain and start it again, as a rolling update does; returns once the new one serves."""
        starts = instance.starts
        instance.leaving = True
        instance.kill(signal.SIGTERM)
        await self.until(lambda: instance.starts > starts and instance.state == "serving")

    def of(self, service: str) -> tuple[Instance, ...]:
        """The instances of a service."""
        return tuple(instance for instance in self.instances if instance.service == service)

    @property
    def prometheus(self) -> Path:
        """What a Prometheus is started with to watch the shop."""
        return self._directory / "prometheus.yml"

    def tell_prometheus(self, **others: str) -> None:
        """Write down where the metrics of all processes are; `others` are more of them, by name."""
        self._admin |= others
        addresses = {one.name: one.admin for one in self.instances if one.admin} | self._admin
        targets = [
            {"targets": [address], "labels": {"job": name.rpartition("-")[0] or name, "instance": name}}
            for name, address in addresses.items()
        ]
        listed = self._directory / "targets.json"
        part = listed.with_suffix(".part")
        part.write_text(json.dumps(targets, indent=2))
        part.replace(listed)  # Prometheus may look at any time
        self.prometheus.write_text(PROMETHEUS.format(targets=listed, rules=ROOT / "deploy/prometheus/rules.yml"))

    async def _reach_registry(self) -> None:
        """One that is not there is best told at once."""
        try:
            await self.registry.services()
        except ConfigError as error:
            raise StartError(
                f"{error} For make run that is REGISTRY=URL; with neither the shop has a registry of its own."
            ) from error

    async def _keep(self, instance: Instance) -> None:
        """Run an instance again and again."""
        needed = [other for service in SERVICES[instance.service] for other in self.of(service)]
        await self.until(lambda: self._ending or all(other.served for other in needed))
        own = {} if self.certificates is None else self.certificates.environment(instance.service)
        while not self._ending:
            with instance.log.open("ab") as log:
                instance.logged = log.tell()
                instance.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    *("-m", "example_services.runner.instance", f"example_services.{instance.service}:service"),
                    *self._arguments,
                    cwd=ROOT,
                    env=self._environment | own,
                    stdin=asyncio.subprocess.PIPE,  # it leaves when this ends
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us; we tell it
                )
            instance.starts += 1
            instance.served = False
            self._note()
            code = await instance.process.wait()
            if not instance.leaving:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                if not instance.served:
                    self._fail(instance, how)
                    return
                self._say(f"{instance.name} (pid {instance.pid}) {how}; starting it again")
            instance.leaving = self._stopping
            self._note()

    @property
    def _ending(self) -> bool:
        return self._stopping or self.failed.done()

    async def _end(self, keepers: Iterable[asyncio.Task[None]]) -> None:
        """Let all instances drain; kill those that are too slow, and all when this is cancelled."""
        self._stopping = True
        for instance in self.instances:
            instance.leaving = True
            instance.kill(signal.SIGTERM)
        self._note()
        try:
            await asyncio.wait(keepers, timeout=PATIENCE)
        finally:
            for instance in self.instances:
                instance.kill(signal.SIGKILL)
            await asyncio.wait(keepers)

    async def _watch(self, service: str) -> None:
        """Follow what the registry says about a service."""
        async with aclosing(self.registry.watch(service)) as snapshots:
            async for snapshot in snapshots:
                self._found[service] = snapshot
                self._note()

    def _note(self) -> None:
        for instance in self.instances:
            found = {one.metadata.get("pid"): one.address for one in self._found.get(instance.service, {}).values()}
            address = found.get(str(instance.pid), "") if instance.alive else ""
            instance.address = address
            if address and not instance.served:
                instance.served = True
                found_admin = ADMIN.search(_said(instance))
                instance.admin = found_admin[1] if found_admin is not None else ""
                self.tell_prometheus()
                self._say(f"{instance.name} (pid {instance.pid}) serves on {address}")
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _fail(self, instance: Instance, how: str) -> None:
        words = _said(instance).strip()
        if not self.failed.done():
            self.failed.set_exception(StartError(f"{instance.name} {how} before it served:\n{words}"))
        self._note()


def _said(instance: Instance) -> str:
    """What its process has written so far."""
    with instance.log.open("rb") as log:
        log.seek(instance.logged)
        return log.read().decode(errors="replace")
