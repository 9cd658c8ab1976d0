"""How an instance may be reached: over TLS, in plain text, or not at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from framework.call import Call, Handler, Method, Reply
from framework.certificates import TlsFiles
from framework.discovery import Instance
from framework.errors import Unavailable
from framework.policy import ClientSettings
from framework.tls import MUTUAL, TLS, stays_here

HOST_PORT = re.compile(r"(\[[^\]]+\]|[^:/]+):\d+")


def _unchanged() -> None:
    pass


class Refused:
    """The way to an instance that is not to be called as it would have to be; says why.

    Args:
        problem: why, and what to do about it.
    """

    ready = False
    failed = True
    outdated = False

    def __init__(self, problem: str) -> None:
        self.problem = problem
        self.changed: Callable[[], None] = _unchanged

    def bind(self, method: Method[Any, Any]) -> Handler:
        async def refuse(call: Call) -> Reply:
            raise Unavailable(self.problem, sent=False, method=method.full_name, attempts=call.attempt)

        return refuse

    def connect(self) -> None:
        """Does not."""

    async def aclose(self) -> None:
        """There is nothing to close."""


class Security:
    """Of the connections to one service.

    Args:
        service: its name.
        settings: of its clients.
        listed: its addresses stand in a fixed list, which does not say what they speak.

    Attributes:
        files: certificates; None without TLS.
        server_name: the name that certificates of instances have to have; empty is the host that is dialled.
        spiffe: the SPIFFE id that they have to have; empty is any.

    Raises:
        ConfigError: a file of certificates cannot be used.
    """

    def __init__(self, service: str, settings: ClientSettings, *, listed: bool) -> None:
        self._service = service
        self._settings = settings
        self._listed = listed
        self.files = TlsFiles(settings.tls, "client.tls") if settings.tls else None
        self.spiffe = settings.tls.spiffe.replace("{service}", service)
        self.server_name = settings.tls.server_name or ("" if listed else service)

    def tls_of(self, instance: Instance) -> TlsFiles | None:
        """What to connect to an instance with; None is plain text."""
        plain = self._settings.plaintext and not self._listed and instance.protocol not in (TLS, MUTUAL)
        return None if plain else self.files

    def refusal(self, instance: Instance) -> str:
        """Why an instance is not to be called; empty when it is."""
        protocol, where = instance.protocol, f"{self._service} at {instance.address}"
        if self._listed and instance.address == self._service:
            where = instance.address
        if self.files is None:
            if protocol in (TLS, MUTUAL):
                return f"{where} speaks TLS, and nothing says whom to trust: name its authority as ca in [client.tls]"
            if not self._settings.plaintext and not stays_here(instance.address):
                return (
                    f"{where} would be called in plain text, beyond this machine. Name the authority of its "
                    "certificate as ca in [client.tls], or allow it: plaintext = true in [client]"
                )
        elif protocol == MUTUAL and not self._settings.tls.certificate:
            return f"{where} asks for a certificate, and there is none: name certificate and key in [client.tls]"
        elif self.spiffe and not HOST_PORT.fullmatch(instance.address):
            return f"{where} cannot be asked for a SPIFFE id: that takes host:port"
        return ""
