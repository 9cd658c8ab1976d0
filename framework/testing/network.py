"""A network in memory: services and clients in one process, without ports, with the channel and server of the real one.

Interceptors, deadlines, balancing, errors, streams and contexts are those of the real thing; only the wire is memory.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from framework.call import Interceptor
from framework.client.connect import network as in_network
from framework.client.dropin import Channel
from framework.client.fallback import Fallback
from framework.client.pool import Pool
from framework.config import Settings
from framework.discovery import Instance, Snapshot
from framework.discovery.watching import PushedWatch
from framework.interceptors.identity import signer
from framework.policy import ClientSettings
from framework.server.pipeline import Pipeline
from framework.service import Service
from framework.telemetry.telemetry import Telemetry
from framework.telemetry.telemetry import active as active_telemetry
from framework.testing.memory import MemoryTransport
from framework.testing.scripted import Scripted


class Hosted:
    """One instance on the network.

    Attributes:
        name: its address, `memory:catalog-1`.
        started: its lifespan has been entered.
        error: what its lifespan raised instead; every call to it raises the same.
        reachable: whether connections to it work.
    """

    def __init__(self, network: Network, service: Service, number: int) -> None:
        self.network = network
        self.service = service
        self.name = f"memory:{service.name}-{number}"
        self.started = False
        self.reachable = True
        self.error: BaseException | None = None
        self.pipeline = Pipeline()  # until the lifespan has been entered
        self.transports: set[MemoryTransport] = set()
        self.context = contextvars.Context()
        self._stop = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._host(), context=self.context)

    async def _host(self) -> None:
        in_network.set(self.network.connect)  # so `connect("name")` in a lifespan stays on this network
        active_telemetry.set(self.network.telemetry)
        try:
            async with self.service.assembled() as self.pipeline:
                self._set(started=True)
                await self._stop.wait()
        except Exception as error:
            self.error = error
            self._set(started=True)

    def _set(self, **changes: bool) -> None:
        for name, value in changes.items():
            setattr(self, name, value)
        for transport in tuple(self.transports):
            transport.changed()

    def disconnect(self) -> None:
        """Connections to it fail from now on, and calls in flight end, as when its machine dies."""
        self._set(reachable=False)
        for transport in tuple(self.transports):
            transport.break_off()

    def reconnect(self) -> None:
        """Connections to it work again."""
        self._set(reachable=True)

    async def stop(self) -> None:
        """Leave the network, end the calls in flight, and leave the lifespan. Raises what the lifespan raised."""
        self.network._remove(self)
        self.disconnect()
        working = [call.task for call in self.pipeline.calls if call.task is not None]
        if working:
            await asyncio.wait(working)
        self._stop.set()
        await self._task
        if self.error is not None:
            raise self.error

    def __repr__(self) -> str:
        return f"<Hosted {self.name}{'' if self.reachable else ' unreachable'}>"


class Network:
    """Services and clients without ports. `async with Network() as network`, or pytest's fixture `network`.

    Args:
        seed: of the randomness in balancing, so that a test does the same every time.
        telemetry: what watches all calls, of clients and servers; default: that of whoever makes it.
    """

    def __init__(self, seed: int = 0, *, telemetry: Telemetry | None = None) -> None:
        self._seed = seed
        self.telemetry = telemetry or active_telemetry.get()
        self._hosted: dict[str, Hosted] = {}
        self._count = 0
        self._watches: set[PushedWatch] = set()
        self._channels: list[Channel] = []

    def add(self, service: Service) -> Hosted:
        """Start an instance of a service; add a second Service of the same name for a second instance."""
        self._count += 1
        hosted = Hosted(self, service, self._count)
        self._hosted[hosted.name] = hosted
        self._publish(service.name)
        return hosted

    def script(self, name: str) -> Scripted:
        """Start a service whose methods do what the test says, call by call."""
        scripted = Scripted(name)
        self.add(scripted.service)
        return scripted

    def connect(
        self,
        service: str,
        *,
        interceptors: Iterable[Interceptor] = (),
        fallbacks: Mapping[str, Fallback] | None = None,
        settings: ClientSettings | Settings | None = None,
    ) -> Channel:
        """A channel to a service of this network, closed with it."""
        own = settings.client_for(service) if isinstance(settings, Settings) else settings or ClientSettings()
        rng = random.Random(self._seed)
        watch = PushedWatch(service, "the network in memory", self._watches)
        watch.show(self._snapshot(service))
        pool = Pool(service, watch, self._dial, own, where=watch.registry, rng=rng)
        channel = Channel(
            pool,
            own,
            interceptors,
            fallbacks=fallbacks,
            rng=rng,
            telemetry=self.telemetry,
            signer=signer.get(),
            audience=service,
        )
        self._channels.append(channel)
        return channel

    def _dial(self, instance: Instance) -> MemoryTransport:
        return MemoryTransport(self._hosted[instance.address])

    def _snapshot(self, service: str) -> Snapshot:
        return {
            name: Instance(name, service, name)
            for name, hosted in self._hosted.items()
            if hosted.service.name == service
        }

    def _publish(self, service: str) -> None:
        for watch in self._watches:
            if watch.service == service:
                watch.show(self._snapshot(service))
        for channel in self._channels:
            if channel.pool.service == service and not channel.pool.closed:
                channel.pool.apply(self._snapshot(service))  # at once, for the call that comes next

    def _remove(self, hosted: Hosted) -> None:
        if self._hosted.pop(hosted.name, None) is not None:
            self._publish(hosted.service.name)

    async def aclose(self) -> None:
        """Close every channel and leave every lifespan. Raises what a lifespan raised."""
        for channel in self._channels:
            await channel.close()
        stops = await asyncio.gather(*(one.stop() for one in self._hosted.values()), return_exceptions=True)
        for failed in stops:
            if isinstance(failed, BaseException):
                raise failed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()
