"""One service behind the gateway: its instances, what they say of themselves, and the channel to them.

Reading order: Versions (pure: whose description counts), Generation (a description in use), Backend (asyncio: asks).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from framework.call import Call, Handler, Method, Outcome, Reply
from framework.client.dropin import Channel
from framework.config import Settings, Stamp
from framework.discovery import Instance, Registry, Snapshot
from framework.errors import ConfigError, RpcError
from framework.gateway.description import Checked, Description, contradiction
from framework.gateway.learning import learn

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
        new = [one for id, one in instances.items() if id not in self._order]
        self.instances = instances
        self._order = {id: number for id, number in self._order.items() if id in instances}
        self._told = {id: told for id, told in self._told.items() if id in instances}
        for one in new:
            self._count += 1
            self._order[one.id] = self._count
        if self._begun:
            return new if self._told or not instances else [*new, *self.unasked()][:SAMPLE]
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
    """A description in use, and the channel that its methods are called on. It is closed when the last call has ended.

    Attributes:
        checked: the description.
    """

    def __init__(self, checked: Checked, channel: Channel) -> None:
        self.checked = checked
        self._channel = channel
        self._handlers: dict[str, Handler] = {}
        self._in_flight = 0
        self._retired = False
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
            return inner(call)

        return handler

    def _ended(self, outcome: Outcome) -> None:
        self._in_flight -= 1
        self._close_if_done()

    def retire(self) -> None:
        """No new calls come; close the channel when those in flight have ended."""
        self._retired = True
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._retired and not self._in_flight and self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._channel.close())

    async def aclose(self) -> None:
        """Close the channel now; calls in flight are cancelled."""
        self._retired = True
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._channel.close())
        await self._closing

    @property
    def closed(self) -> bool:
        """The channel is closed, or on the way to it."""
        return self._closing is not None

    def __repr__(self) -> str:
        return f"<Generation of {', '.join(self.checked.description.services)}, {self._in_flight} calls in flight>"


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
        empty_since: when its last instance left, on the loop's clock; None while there is one.
    """

    def __init__(
        self, name: str, registry: Registry, changed: Callable[[], None], settings: Settings, descriptors: str = ""
    ) -> None:
        self.name = name
        self.versions = Versions()
        self.generation: Generation | None = None
        self.tried = False
        self.empty_since: float | None = asyncio.get_running_loop().time()
        self._registry = registry
        self._changed = changed
        self._settings = settings
        self._file = Path(descriptors) if descriptors else None
        self._stamp: Stamp | None = None
        self._from_file: Description | None = None
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._said: set[Hashable] = set()

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
                log.warning("%s has no instance left", self.name)
            self.empty_since = self.empty_since or asyncio.get_running_loop().time()
            self.tried = True
        else:
            self.empty_since = None
        if self._file is None:
            for one in to_ask:
                if one.id not in self._asking:
                    self._asking[one.id] = asyncio.create_task(self._ask(one))
        self._changed()

    async def _ask(self, instance: Instance) -> None:
        try:
            await self._ask_until_told(instance)
        finally:
            del self._asking[instance.id]

    async def _ask_until_told(self, instance: Instance) -> None:
        wait, longest = AGAIN
        while instance.id in self.versions.instances:
            try:
                async with self._slots:
                    self.versions.tell(instance.id, await learn(instance, self._settings))
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

    def replace(self, generation: Generation | None) -> None:
        """Serve this from now on."""
        old, self.generation = self.generation, generation
        if old is not None and old is not generation:
            old.retire()

    async def aclose(self) -> None:
        """Close the channel."""
        if self.generation is not None:
            with contextlib.suppress(Exception):
                await self.generation.aclose()

    def __repr__(self) -> str:
        return f"<Backend {self.name}, {len(self.versions.instances)} instances>"


def named(backends: Iterable[Backend]) -> str:
    """Their names, for messages."""
    return ", ".join(sorted(one.name for one in backends)) or "nothing"
