"""The process that starts workers, watches over them, and registers them as one instance.

| what happens                     | what it does                                                                |
|----------------------------------|-----------------------------------------------------------------------------|
| each has served or died once     | registers, if any serves; from then on for as long as any serves            |
| a worker dies                    | starts another one after a wait (`restart`)                                 |
| a worker finds a user's mistake  | ends everything with its message; if others serve, counts it as a death     |
| SIGHUP                           | starts a new worker, retires an old one once it serves, and so on           |
| SIGTERM, SIGINT                  | NOT_SERVING and deregister, then all workers drain; exit code 0             |
| a worker does not end then       | kills it, when it takes much longer than the settings allow                 |
| a second one                     | ends all of them at once                                                    |
| kill -9                          | nothing, but the workers notice                                             |
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import signal
import sys
from collections.abc import Coroutine, Sequence
from typing import Literal

from framework import hangup
from framework.config import QUICK_DRAIN
from framework.discovery import Instance, Lease, Registry
from framework.discovery.targets import NO_REGISTRY, open_registry
from framework.errors import ConfigError, FrameworkError, mistakes
from framework.signals import PATIENCE
from framework.workers.count import count
from framework.workers.member import Member
from framework.workers.port import reserve
from framework.workers.restart import Restart
from framework.workers.worker import DRAIN, DRAIN_QUICKLY, LEAVE, RETIRE, STOP, Report

log = logging.getLogger("framework")

AT_ONCE = 1.0
"""Seconds that workers have to end at once before they are killed."""

REGISTER_AGAIN = 1.0
"""Seconds after which a registry that did not take the registration is asked again."""


class Supervisor:
    """Workers of one service, or of a gateway.

    Args:
        name: of what they serve, for messages.
        where: the host and the port to listen on.
        workers: how many there are; later the workers say what the settings are.
        http_port: where they serve HTTP beside it; 0 for nowhere.
        command: what to run for each.
        interactive: a person waits at a terminal.
        rng: what spreads restarts.
    """

    def __init__(
        self,
        name: str,
        where: tuple[str, int],
        workers: int | Literal["auto"],
        command: Sequence[str],
        *,
        http_port: int = 0,
        interactive: bool,
        rng: random.Random | None = None,
    ) -> None:
        self.name = name
        self._command = command
        self._interactive = interactive
        self._rng = rng or random.Random()
        self._where = where
        self._workers = workers
        self._http_port = http_port
        self._places: dict[int, Member] = {}
        self._everybody: set[Member] = set()  # with those that retire
        self._latest: Report | None = None
        self._tried: set[int] = set()  # places whose worker has served or died
        self._changed = asyncio.Event()
        self._reload = asyncio.Event()
        self._stop = asyncio.Event()
        self._registration = _Registration(name)
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def members(self) -> list[Member]:
        """The worker in each place, with one that has died and is not replaced yet."""
        return [self._places[place] for place in sorted(self._places)]

    async def run(self) -> None:
        """Supervise until a signal, then drain.

        Raises:
            FrameworkError: the port cannot be had, the registry cannot be used, or the workers found a mistake.
        """
        loop = asyncio.get_running_loop()
        main = asyncio.current_task()
        assert main is not None
        received: list[signal.Signals] = []

        def on_signal(number: signal.Signals) -> None:
            if number is signal.SIGHUP:
                if not self._interactive or sys.stderr.isatty():
                    self._reload.set()
                    return
                self._interactive = False  # the terminal is gone, and nobody waits
            received.append(number)
            if len(received) > 1:
                log.warning("%s stops at once", self.name)
                main.cancel()
            else:
                self._stop.set()

        handled = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        with contextlib.ExitStack() as exits:
            self._where = (self._where[0], reserve(*self._where, exits))
            if self._http_port:  # or it would be shared with whoever shares it already
                reserve(self._where[0], self._http_port, exits, "--http")
            for number in handled:
                loop.add_signal_handler(number, on_signal, number)
            hangup.release()
            try:
                async with asyncio.TaskGroup() as group:
                    for place in range(1, count(self._workers) + 1):
                        self._install(self._start(place), group)
                    self._run(group, self._register())
                    self._run(group, self._reloads(group))
                    await self._stop.wait()
                    for task in self._tasks:
                        task.cancel()
                    await self._drain(quickly=self._interactive and received[0] is signal.SIGINT)
            except asyncio.CancelledError:
                if not received:
                    raise
                main.uncancel()
            except ExceptionGroup as errors:
                if not (found := mistakes(errors)):
                    raise
                raise _raised(list(dict.fromkeys(map(str, found)))) from None  # all workers found the same, as a rule
            finally:
                await self._end()
                for number in handled:
                    loop.remove_signal_handler(number)

    def _run(self, group: asyncio.TaskGroup, work: Coroutine[None, None, None]) -> None:
        task = group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start(self, place: int) -> Member:
        member = Member(place, self._command, self._where, not self._serving(), self._changed.set)
        self._everybody.add(member)
        return member

    def _install(self, member: Member, group: asyncio.TaskGroup) -> None:
        self._places[member.number] = member
        self._run(group, self._keep(member, Restart(self._rng)))

    async def _keep(self, member: Member, restart: Restart) -> None:
        """Keep a place filled, until a reload gives it to another worker."""
        loop = asyncio.get_running_loop()
        first = True
        while True:
            if await member.starts():
                restart.serves(loop.time())
                self._latest = member.report
                log.info("%s: worker %d (pid %d) serves", self.name, member.number, member.pid)
            self._tried.add(member.number)
            self._changed.set()
            await member.ended()
            self._everybody.discard(member)
            if self._places.get(member.number) is not member:
                return
            if member.report is None and member.mistakes and (first or not self._serving()):
                raise _raised(member.mistakes)
            first = False
            fate = f"worker {member.number} (pid {member.pid}) {member.fate()}"
            started = None
            while started is None:
                wait = restart.died(loop.time())
                log.warning("%s: %s; another one starts in %.1f s", self.name, fate, wait)
                await asyncio.sleep(wait)
                if self._places.get(member.number) is not member:
                    return
                try:
                    started = self._start(member.number)
                except OSError as error:
                    fate = f"worker {member.number} cannot be started ({error})"
            member = self._places[member.number] = started

    def _serving(self) -> list[Member]:
        return [member for member in self._everybody if member.serves]

    async def _register(self) -> None:
        """Keep the registry told whether any worker serves."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if self._latest is None or not self._tried >= self._places.keys():
                continue
            wanted = self._latest if self._serving() else None
            try:
                await self._registration.show(wanted, self._where)
            except ConfigError as error:
                if not self._registration.ever:
                    raise
                log.warning("%s is not registered, and tries again: %s", self.name, error)
                asyncio.get_running_loop().call_later(REGISTER_AGAIN, self._changed.set)

    async def _reloads(self, group: asyncio.TaskGroup) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            log.info("%s reloads", self.name)
            try:
                problem = await self._replace_all(group)
            except OSError as error:
                problem = f"cannot be started ({error})"
            if problem:
                log.error("%s: the reload has failed, the new worker %s; the others go on", self.name, problem)
            else:
                log.info("%s has reloaded: %d workers", self.name, len(self._places))

    async def _replace_all(self, group: asyncio.TaskGroup) -> str:
        """Put a new worker into each place, one after the other; as many as the new ones say there are to be.

        Returns what happened to one that does not serve; it is the last.
        """
        place, wanted = 1, len(self._places)
        while place <= wanted:
            fresh = self._start(place)
            if not await fresh.starts():
                await fresh.ended()
                self._everybody.discard(fresh)
                return fresh.fate()
            assert fresh.report is not None
            wanted = fresh.report.workers
            old = self._places.get(place)
            self._install(fresh, group)
            if old is not None:
                await self._retire(old)
            place += 1
        for surplus in sorted(self._places)[wanted:]:
            await self._retire(self._places.pop(surplus))
        return ""

    async def _retire(self, old: Member) -> None:
        old.tell(RETIRE)
        self._changed.set()
        report = old.report
        await self._ends(old, 0.0 if report is None else report.connection_age * 1.1 + report.drain.grace)

    async def _ends(self, member: Member, allowed: float) -> None:
        """Wait until a worker has ended; one that takes much longer than is allowed is killed."""
        try:
            await asyncio.wait_for(member.ended(), allowed + PATIENCE)
        except TimeoutError:
            log.warning("%s: worker %d (pid %d) does not end, and is killed", self.name, member.number, member.pid)
            member.kill()
            await member.ended()

    async def _drain(self, *, quickly: bool) -> None:
        """First nobody is sent here any more, then the workers drain."""
        allowed = 0.0
        if self._latest is None:
            log.info("%s stops before it serves", self.name)
        else:
            drain = QUICK_DRAIN if quickly else self._latest.drain
            log.info(
                "%s drains: it accepts for %g s more, then calls have %g s and streams %g s",
                self.name, drain.delay, drain.grace, drain.streams,
            )  # fmt: skip
            allowed = drain.delay + drain.grace
        self._tell_all(LEAVE)
        await self._registration.close()
        self._tell_all(DRAIN_QUICKLY if quickly else DRAIN)
        await asyncio.gather(*(self._ends(member, allowed) for member in tuple(self._everybody)))
        log.info("%s has stopped", self.name)

    def _tell_all(self, order: str) -> None:
        for member in self._everybody:
            member.tell(order)

    async def _end(self) -> None:
        """Nobody is left when this returns."""
        self._tell_all(STOP)
        await self._registration.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(AT_ONCE):
                for member in tuple(self._everybody):
                    await member.ended()
        for member in tuple(self._everybody):
            member.kill()
            await member.ended()

    def __repr__(self) -> str:
        return f"<Supervisor of {self.name}: {len(self._serving())} of {len(self._places)} workers serve>"


class _Registration:
    """The one registration of all workers: as the latest of them describes it, under one id while that stays the same.

    Attributes:
        ever: it has been registered, or was not to be.
    """

    def __init__(self, name: str) -> None:
        self.ever = False
        self._name = name
        self._shown: tuple[str, Instance | None] | None = None
        self._registry: Registry | None = None
        self._lease: Lease | None = None

    async def show(self, report: Report | None, where: tuple[str, int]) -> None:
        """Register what a worker reported, or nothing.

        Raises:
            ConfigError: the registry does not take it.
        """
        if report is None:
            if self._shown is not None:
                log.warning("%s: no worker serves", self._name)
            await self.close()
            return
        instance = report.instance
        wanted = (report.registry, None if instance is None else dataclasses.replace(instance, id=""))
        if wanted == self._shown:
            return
        registry, lease = None, None
        if instance is not None and report.registry != NO_REGISTRY:
            registry = open_registry(report.registry)
            try:
                lease = await registry.register(instance)
            except BaseException:
                await registry.aclose()
                raise
        await self.close()  # the one before, now that clients know the new one
        self._shown, self._registry, self._lease, self.ever = wanted, registry, lease, True
        host, port = where
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if instance is None:
            log.info("%s serves on %s", self._name, address)
        elif registry is None:
            log.info("%s serves on %s, not registered", self._name, address)
        else:
            log.info("%s serves on %s, registered in %s as %s", self._name, address, registry, instance.id)

    async def close(self) -> None:
        """Deregister."""
        registry, lease = self._registry, self._lease
        self._shown = self._registry = self._lease = None
        if lease is not None:
            await lease.close()
        if registry is not None:
            await registry.aclose()


def _raised(messages: Sequence[str]) -> Exception:
    if len(messages) == 1:
        return FrameworkError(messages[0])
    return ExceptionGroup("mistakes", [FrameworkError(message) for message in messages])
