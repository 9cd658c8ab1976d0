"""One service behind the gateway: its instances, what they say of themselves, and the channel to them.

Reading order: Versions (pure: whose description counts), Generation (a description in use), Application (of
some generations), Backend (asyncio: asks).
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor

from framework.call import Call, Handler, Method, Outcome, Reply
from framework.client.dropin import Channel
from framework.config import Settings, Stamp
from framework.discovery import Instance, Registry, Snapshot
from framework.errors import ConfigError, RpcError
from framework.gateway.description import Checked, Description, contradiction
from framework.gateway.learning import learn
from framework.http.app import HttpApp
from framework.http.asgi import Receive, Scope, Send

log = logging.getLogger("framework.gateway")

SAMPLE = 2
"""Instances of a version that are asked at first; who comes later is asked when it comes."""

AT_ONCE = 4
"""Instances that are asked at the same time."""

AGAIN = (0.2, 10.0)
"""Seconds before an instance that did not tell is asked again: the first time, and at most."""

MOST_SAID = 1000
"""Things that were said and are not said again."""

_NUMBERS = re.compile(r"\d+|\D+")


def _version(text: str) -> tuple[Any, ...]:
    """Sorts `1.10` behind `1.9`."""
    return tuple((1, int(part), "") if part.isdecimal() else (0, 0, part) for part in _NUMBERS.findall(text))


def unreplaced(one: Instance, other: Instance) -> bool:
    """Nothing speaks for another process behind the same id."""
    return one is other or (one.address, one.version) == (other.address, other.version)


class Versions:
    """Which of the descriptions of a service's instances counts. Pure.

    The newest does: that of the highest version, and among equals that of the instance that was seen last. While an
    instance is there that it contradicts, it does not, because calls may reach either.
    """

    def __init__(self) -> None:
        self.instances: Snapshot = {}
        self._order: dict[str, int] = {}
        self._told: dict[str, Description] = {}
        self._count = 0
        self._begun = False

    def see(self, instances: Snapshot) -> list[Instance]:
        """These are there now; returns those to ask."""
        stay = {id for id, one in self.instances.items() if id in instances and unreplaced(one, instances[id])}
        new = [one for id, one in instances.items() if id not in stay]
        self.instances = instances
        self._order = {id: number for id, number in self._order.items() if id in stay}
        self._told = {id: told for id, told in self._told.items() if id in stay}
        for one in new:
            self._count += 1
            self._order[one.id] = self._count
        if self._begun:
            if self._told or not instances:
                return new
            return list({one.id: one for one in (*new, *self.unasked())}.values())[:SAMPLE]
        self._begun = bool(instances)
        asked: dict[str, list[Instance]] = {}
        for one in new:
            if len(same := asked.setdefault(one.version, [])) < SAMPLE:
                same.append(one)
        return [one for same in asked.values() for one in same]

    def unasked(self) -> list[Instance]:
        """Those that have not told yet."""
        return [one for id, one in self.instances.items() if id not in self._told]

    def tell(self, id: str, description: Description) -> None:
        """An instance has told."""
        if id in self.instances:
            self._told[id] = description

    def choices(self) -> list[tuple[Description, str]]:
        """The descriptions, the newest first, each with what speaks against it: empty, or how it contradicts."""
        ids = sorted(self._told, key=lambda id: (_version(self.instances[id].version), self._order[id]), reverse=True)
        different = {self._told[id].digest: self._told[id] for id in reversed(ids)}
        found: dict[str, tuple[Description, str]] = {}
        for id in ids:
            told = self._told[id]
            if told.digest not in found:
                others = (other for other in different.values() if other.digest != told.digest)
                found[told.digest] = (told, next(filter(None, (contradiction(told, one) for one in others)), ""))
        return list(found.values())


class Generation:
    """A description in use, and the channel that its methods are called on.

    It is closed when no application has it any more and the last call has ended.

    Attributes:
        checked: the description.
    """

    def __init__(self, checked: Checked, channel: Channel) -> None:
        self.checked = checked
        self._channel = channel
        self._handlers: dict[str, Handler] = {}
        self._in_flight = 0
        self._holders = 0
        self._closing: asyncio.Task[None] | None = None

    def bind(self, method: Method[Any, Any]) -> Handler:
        """The handler of a method; may be asked off the loop."""
        found = self._handlers.get(method.path)
        if found is None:
            found = self._handlers[method.path] = self._counting(method)
        return found

    def _counting(self, method: Method[Any, Any]) -> Handler:
        inner: Handler | None = None
        ended = self._ended

        def handler(call: Call) -> Awaitable[Reply]:
            nonlocal inner
            if inner is None:
                inner = self._channel.bind(method)
            self._in_flight += 1
            call.on_end(ended)
            call.caller, call.peer = call.peer, ""
            return inner(call)

        return handler

    def _ended(self, outcome: Outcome) -> None:
        self._in_flight -= 1
        self._close_if_done()

    def hold(self) -> None:
        """An application has it, from which calls may come."""
        self._holders += 1

    def release(self) -> None:
        """No new calls come from an application that held it."""
        self._holders -= 1
        self._close_if_done()

    def _close_if_done(self) -> None:
        if not (self._holders or self._in_flight or self._closing):
            self._closing = asyncio.get_running_loop().create_task(self._channel.close())

    async def aclose(self) -> None:
        """Close the channel now; calls in flight are cancelled."""
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._channel.close())
        await self._closing

    @property
    def closed(self) -> bool:
        """The channel is closed, or on the way to it."""
        return self._closing is not None

    def __repr__(self) -> str:
        return f"<Generation of {', '.join(self.checked.description.services)}, {self._in_flight} calls in flight>"


class Application:
    """The application of some generations, until another takes its place and all it has begun with has been called.

    A request belongs to it from its first byte on, and to the generation that it calls only once it is known which:
    a body may take its time.

    Args:
        generations: whose methods it serves.
        make: makes it, with what binds methods; may be called off the loop, as this is made there.
    """

    def __init__(
        self,
        generations: Iterable[Generation],
        make: Callable[[Iterable[ServiceDescriptor], Callable[[Method[Any, Any]], Handler]], HttpApp],
    ) -> None:
        self.generations = tuple(generations)
        by_service = {service.full_name: one for one in self.generations for service in one.checked.services}
        self._undecided: set[asyncio.Task[Any] | None] = set()
        self._replaced = False

        def bind(method: Method[Any, Any]) -> Handler:
            inner, undecided = by_service[method.service].bind(method), self._undecided

            def handler(call: Call) -> Awaitable[Reply]:
                reply = inner(call)
                undecided.discard(asyncio.current_task())
                if self._replaced and not undecided:
                    self._release()
                return reply

            return handler

        self.http = make([service for one in self.generations for service in one.checked.services], bind)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        task = asyncio.current_task()
        self._undecided.add(task)
        try:
            await self.http(scope, receive, send)
        finally:
            self._undecided.discard(task)
            if self._replaced and not self._undecided:
                self._release()

    def hold(self) -> None:
        """It serves from now on."""
        for one in self.generations:
            one.hold()

    def retire(self) -> None:
        """No new requests come."""
        self._replaced = True
        if not self._undecided:
            self._release()

    def _release(self) -> None:
        self._replaced = False  # once
        for one in self.generations:
            one.release()

    def __repr__(self) -> str:
        return f"<Application of {self.generations}, {len(self._undecided)} requests that call nothing yet>"


class Backend:
    """One service of the registry. `run` follows it.

    Args:
        name: in the registry.
        registry: where its instances are found.
        changed: is called whenever something has changed that the gateway is to look at.
        settings: how instances are asked.
        descriptors: a file with its descriptor set; without one its instances are asked.

    Attributes:
        generation: what the gateway serves of it; None before anything can be.
        tried: it is known by now what can be served of it, if anything.
        empty_since: since when it has no instance, on the loop's clock; None while there is one, or nobody knows.
        seen: there was one at some time.
    """

    def __init__(
        self, name: str, registry: Registry, changed: Callable[[], None], settings: Settings, descriptors: str = ""
    ) -> None:
        self.name = name
        self.versions = Versions()
        self.generation: Generation | None = None
        self.tried = self.seen = False
        self.empty_since: float | None = None
        self._registry = registry
        self._changed = changed
        self._settings = settings
        self._file = Path(descriptors) if descriptors else None
        self._stamp: Stamp | None = None
        self._from_file: Description | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._said: set[Hashable] = set()
        self._left = False

    @property
    def callable(self) -> bool:
        """There is an instance, and it is known how to call it."""
        return self.generation is not None and bool(self.versions.instances)

    def choices(self) -> list[tuple[Description, str]]:
        """See `Versions.choices`."""
        if self._file is not None:
            return [] if self._from_file is None else [(self._from_file, "")]
        return self.versions.choices()

    async def run(self) -> None:
        """Follow the service until this is cancelled."""
        watch = self._registry.watch(self.name)
        try:
            self.read()
            async for snapshot in watch:
                self._see(snapshot)
        finally:
            asking = list(self._asking.values())
            for task in asking:
                task.cancel()
            await asyncio.gather(*asking, return_exceptions=True)
            await watch.aclose()

    def _see(self, snapshot: Snapshot) -> None:
        had = bool(self.versions.instances)
        to_ask = self.versions.see(snapshot)
        if not snapshot:
            if had:
                self._left = True
                log.warning("%s has no instance left", self.name)
            self.empty_since = self.empty_since or asyncio.get_running_loop().time()
            self.tried = True
        else:
            self.empty_since, self.seen = None, True
            if self._left:
                self._left = False
                log.info("%s has an instance again", self.name)
        if self._file is None:
            for one in to_ask:
                if one.id not in self._asking:
                    self._asking[one.id] = asyncio.create_task(self._ask(one.id))
        self._changed()

    async def _ask(self, id: str) -> None:
        try:
            await self._ask_until_told(id)
        finally:
            del self._asking[id]

    async def _ask_until_told(self, id: str) -> None:
        wait, longest = AGAIN
        while (instance := self.versions.instances.get(id)) is not None:
            try:
                async with self._slots:
                    description = await learn(instance, self._settings)
                now = self.versions.instances.get(id)
                if now is not None and not unreplaced(now, instance):
                    continue  # it has been replaced meanwhile, and what it said is another's
                self.versions.tell(id, description)
            except (ConfigError, RpcError) as error:
                kind = (instance.id, error.code if isinstance(error, RpcError) else str(error))
                self.say_once(f"{self.name} at {instance.address} does not say what it serves: {error}", kind)
            else:
                self.tried = True
                self._changed()
                return
            self.tried = True
            self._changed()
            await asyncio.sleep(wait)
            wait = min(2 * wait, longest)

    def read(self) -> None:
        """Look at the file with descriptors, if there is one; it may have changed."""
        if self._file is None:
            return
        stamp = Stamp.now(self._file)
        if stamp is not None and stamp == self._stamp:
            return
        self.tried = True
        try:
            self._from_file = Description.read(self._file)
        except ConfigError as error:
            self.say_once(f"{self.name}: {error}")
            return
        self._stamp = stamp
        self._changed()

    def say_once(self, text: str, about: Hashable = None) -> None:
        """Log what is wrong, unless it has been said already, or something else about the same."""
        about = text if about is None else about
        if about not in self._said:
            if len(self._said) > MOST_SAID:
                self._said.clear()
            self._said.add(about)
            log.error("%s", text)

    def __repr__(self) -> str:
        return f"<Backend {self.name}, {len(self.versions.instances)} instances>"


def named(backends: Iterable[Backend]) -> str:
    """Their names, for messages."""
    return ", ".join(sorted(one.name for one in backends)) or "nothing"
