"""`connect`: from a target's text to a channel."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from contextvars import ContextVar
from typing import Any

from framework.call import Interceptor
from framework.client.dropin import Channel
from framework.client.endpoint import Transport
from framework.client.fallback import Fallback
from framework.client.pool import Pool
from framework.client.proven import Proven
from framework.client.security import Refused, Security
from framework.client.wire import GrpcTransport
from framework.config import Settings, active
from framework.discovery import Instance, Registry
from framework.discovery.static import PinnedRegistry, StaticRegistry
from framework.discovery.targets import open_registry, parse
from framework.errors import ConfigError
from framework.interceptors.identity import signer
from framework.policy import ClientSettings
from framework.reload import follow
from framework.telemetry.telemetry import telemetry

network: ContextVar[Callable[..., Channel] | None] = ContextVar("framework.network", default=None)
"""Where names are looked up instead, in a service that is hosted on a network in memory."""

NAME = re.compile(r"[A-Za-z0-9_-]+")


def connect(
    target: str,
    *,
    settings: Settings | None = None,
    interceptors: Iterable[Interceptor] = (),
    grpc_interceptors: Iterable[Any] = (),
    fallbacks: Mapping[str, Fallback] | None = None,
    registry: Registry | None = None,
) -> Channel:
    """A channel to a service. Use it with `async with`; connections are made when calls need them.

    Args:
        target: `catalog` (in the default registry), `consul://host:8500/catalog`, `sqlite:///file#catalog`,
            `static://host:1,host:2`, `host:port`, or a target of grpc's own such as `dns:///name:port`.
        settings: default: those of the service that runs here, or `Settings.load()`.
        interceptors: the user's own, outermost first.
        grpc_interceptors: a user's own grpc.aio client interceptors, handed to grpc.
        fallbacks: by name of the method, an async function of request and error that replies when a call has failed
            for good.
        registry: an open registry to find `target` in; it stays open when the channel closes.

    Raises:
        ConfigError: a target or a setting that cannot be used.
    """
    if registry is None and settings is None and (test := network.get()) is not None and NAME.fullmatch(target):
        return test(target, interceptors=interceptors, fallbacks=fallbacks)
    settings = settings or active.get() or Settings.load()
    release = None
    if registry is None:
        parsed = parse(target, settings.registry)
        registry, service = open_registry(parsed.registry), parsed.service
        release = registry.aclose
    else:
        service = target
    own = settings.client_for(service)
    rng = random.Random()
    watching = telemetry(settings.telemetry)
    user = (*watching.grpc_client_interceptors(), *grpc_interceptors)
    security = _security(service, own, registry)
    ended = ExitStack()

    def dial(instance: Instance) -> Transport:
        if problem := security.refusal(instance):
            return Refused(problem)
        tls = security.tls_of(instance)

        def transport(trusted: bytes = b"", name: str = security.server_name) -> GrpcTransport:
            return GrpcTransport(
                instance.address,
                connect_timeout=own.connect_timeout,
                max_message=own.max_message,
                keepalive=own.keepalive,
                interceptors=user,
                direct=own.direct,
                tls=tls,
                server_name=name,
                trusted=trusted,
            )

        if tls is None or not security.spiffe:
            return transport()
        return Proven(instance.address, security.spiffe, tls, transport, own.connect_timeout)

    async def released() -> None:
        ended.close()
        if release is not None:
            await release()

    pool = Pool(service, registry.watch(service), dial, own, where=str(registry), rng=rng)
    # Tokens are for a service by its name; of an address only what is called there is known.
    known = service if NAME.fullmatch(service) else ""
    channel = Channel(
        pool,
        own,
        interceptors,
        released,
        fallbacks=fallbacks,
        rng=rng,
        telemetry=watching,
        signer=signer.get(),
        audience=known,
    )
    ended.callback(follow(settings, service, channel))
    if (files := security.files) is not None:
        pool.on_start(lambda: ended.callback(files.follow(pool.renew)))
    return channel


def connect_to(instance: Instance, settings: Settings) -> Channel:
    """A channel to one instance that a registry has told of, for asking it about itself: nothing is tried twice.

    Raises:
        ConfigError: certificates cannot be used.
    """
    own = settings.client_for(instance.service)
    plain = Settings(client=ClientSettings(tls=own.tls, plaintext=own.plaintext))
    return connect(instance.service, settings=plain, registry=PinnedRegistry(instance))


def _security(service: str, settings: ClientSettings, registry: Registry) -> Security:
    """Raises ConfigError: certificates cannot be used, or an address that was given may not be called."""
    if not isinstance(registry, StaticRegistry) or isinstance(registry, PinnedRegistry):
        return Security(service, settings, listed=False)
    security = Security(service, settings, listed=True)
    for instance in registry.instances(service).values():
        if problem := security.refusal(instance):
            raise ConfigError(problem)
    return security
