"""A connection to an instance that has proved who it is by its SPIFFE id.

gRPC in Python shows nobody the certificate of a server. So a handshake of Python's own goes first: the certificate is
verified against the authorities and its id compared, and then the connection of gRPC trusts this certificate and no
other. Who answers it has the key of the certificate that was looked at. An instance with a new certificate is looked at
again as soon as the connection is lost.

    state        what happens                          becomes
    idle         connect                               looking
    looking      the certificate has the id            connecting
    looking      it has not, or nobody answers         failed; looks again after a pause
    connecting   the connection is ready               ready
    connecting   it fails                              failed; looks again after a pause
    ready        the connection is lost for good       looking
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import ssl
from collections.abc import Callable
from typing import Any

from framework.call import Call, Handler, Method, Outcome
from framework.certificates import TlsFiles, client_context
from framework.client.endpoint import Transport
from framework.errors import ConfigError, Unavailable

PAUSE = (0.1, 1.0)
"""Seconds before it looks again: at first, and at most; doubled in between."""


class Proven:
    """The way to one instance, see above.

    Args:
        address: `host:port`.
        spiffe: the id that its certificate has to have.
        files: the authorities, and what to show.
        dial: makes the transport that trusts one certificate, given in PEM, for one of its names.
        patience: seconds that a handshake may take.
    """

    def __init__(
        self,
        address: str,
        spiffe: str,
        files: TlsFiles,
        dial: Callable[[bytes, str], Transport],
        patience: float,
    ) -> None:
        self.ready = False
        self.failed = False
        self.problem = ""
        self.changed: Callable[[], None] = lambda: None
        self._address = address
        self._spiffe = spiffe
        self._files = files
        self._dial = dial
        self._patience = patience
        self._opened: _Opened | None = None
        self._left: set[_Opened] = set()  # that have calls yet
        self._looking: asyncio.Task[None] | None = None

    @property
    def outdated(self) -> bool:
        return self._opened is not None and self._opened.transport.outdated

    def connect(self) -> None:
        if self._opened is not None:
            self._opened.transport.connect()
        elif self._looking is None:
            self._look()

    def _look(self, *, pause: bool = False) -> None:
        self._looking = asyncio.get_running_loop().create_task(
            self._prove(pause), name=f"prove {self._address}", context=contextvars.Context()
        )

    async def _prove(self, refused: bool) -> None:
        pause, longest = PAUSE
        if refused:
            await asyncio.sleep(longest)
        found = await self._try()
        while found is None:
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
            found = await self._try()
        trusted, name = found
        self._looking = None
        transport = self._dial(trusted, name)
        self._opened = _Opened(transport, self._left)
        transport.changed = self._follow
        transport.connect()

    async def _try(self) -> tuple[bytes, str] | None:
        try:
            async with asyncio.timeout(self._patience):
                return await self._shown()
        except (OSError, TimeoutError, ConfigError) as error:
            self._show(ready=False, problem=_reason(error))
            return None

    async def _shown(self) -> tuple[bytes, str]:
        """The certificate of the instance, in PEM, and a name in it. Raises ConfigError when it is another's."""
        host, _, port = self._address.rpartition(":")
        context = client_context(self._files.settings, self._files.current, named=False)
        _, writer = await asyncio.open_connection(host.strip("[]"), int(port), ssl=context)
        try:
            shown: Any = writer.get_extra_info("ssl_object")
            names = shown.getpeercert().get("subjectAltName", ())
            found = [value for kind, value in names if kind == "URI"]
            if found != [self._spiffe]:
                raise ConfigError(f"it is {' and '.join(found) or 'nobody with a SPIFFE id'}, and not {self._spiffe}")
            name = next((value for kind, value in names if kind == "DNS" and "*" not in value), "")
            if not name:
                raise ConfigError(f"the certificate of {self._spiffe} has no DNS name, which gRPC needs")
            return ssl.DER_cert_to_PEM_cert(shown.getpeercert(binary_form=True)).encode(), name
        finally:
            writer.transport.abort()

    def _follow(self) -> None:
        opened = self._opened
        if opened is None:
            return
        if not opened.transport.failed:
            opened.served = opened.served or opened.transport.ready
            self._show(ready=opened.transport.ready)
            return
        self._opened = None
        opened.leave()
        if opened.served:
            self._show(ready=False)  # calls wait: it is there, as a rule, with another certificate
        else:
            self._show(ready=False, problem=opened.transport.problem)
        self._look(pause=not opened.served)

    def _show(self, *, ready: bool, problem: str | None = None) -> None:
        before = self.ready, self.failed
        self.ready, self.failed, self.problem = ready, problem is not None, problem or ""
        if (self.ready, self.failed) != before:
            self.changed()

    def bind(self, method: Method[Any, Any]) -> Handler:
        async def handler(call: Call) -> Any:
            opened = self._opened
            if opened is None:
                raise Unavailable(
                    f"the connection to {self._address} is gone",
                    sent=False,
                    method=method.full_name,
                    attempts=call.attempt,
                )
            opened.pending += 1
            call.on_end(opened.ended)
            try:
                return await opened.bind(method)(call)
            except Unavailable as error:
                # It came when gRPC had lost the connection without knowing, and was to wait for the next one, which
                # cannot be made: the instance has another certificate by now. Another server may relay words like
                # these, but not with this address. Requests that stream may be lost by then.
                if not (error.remote or method.client_streaming) and _never_left(error.message, self._address):
                    error.sent = False
                raise

        return handler

    async def aclose(self) -> None:
        opened, self._opened, self.ready = self._opened, None, False
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if opened is not None:
            await opened.transport.aclose()
        for left in tuple(self._left):
            await left.transport.aclose()


class _Opened:
    """A connection that trusts one certificate; once it has been left it is closed with its last call.

    Attributes:
        served: it has been ready.
        pending: calls on it.
    """

    def __init__(self, transport: Transport, among: set[_Opened]) -> None:
        self.transport = transport
        self.served = False
        self.pending = 0
        self._handlers: dict[Method[Any, Any], Handler] = {}
        self._among = among
        self._left = False
        self._closing: asyncio.Task[None] | None = None

    def bind(self, method: Method[Any, Any]) -> Handler:
        handler = self._handlers.get(method)
        if handler is None:
            handler = self._handlers[method] = self.transport.bind(method)
        return handler

    def ended(self, outcome: Outcome) -> None:
        self.pending -= 1
        self._close_if_done()

    def leave(self) -> None:
        """No call comes any more."""
        self._left = True
        self._among.add(self)
        self._close_if_done()

    def _close_if_done(self) -> None:
        if self._left and not self.pending and self._closing is None:
            loop = asyncio.get_running_loop()
            self._closing = loop.create_task(self.transport.aclose(), context=contextvars.Context())
            self._closing.add_done_callback(lambda _: self._among.discard(self))


def _never_left(message: str, address: str) -> bool:
    return message.startswith("failed to connect to all addresses") and f":{address}: " in message


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate is signed by nobody that is trusted, or has expired"
    if isinstance(error, ssl.SSLError):
        return f"no TLS connection ({(error.reason or str(error)).lower().replace('_', ' ')})"
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, OSError):
        return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else str(error)
    return str(error)
