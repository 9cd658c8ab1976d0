"""The files of certificates and keys: read and checked as a whole, and read again when they change.

    | the files                  | what happens                                                                      |
    |----------------------------|-----------------------------------------------------------------------------------|
    | at the start               | one that is missing, not readable, expired or does not fit is a ConfigError       |
    | have changed               | once they have stayed the same for one look: read, and used for new connections   |
    | cannot be used any more    | one line says why; what was read before stays in use                              |

A certificate and its key are two files, which nobody replaces at the same time; a pair that does not fit is one that is
half written, and waited for.
"""

from __future__ import annotations

import asyncio
import base64
import contextvars
import dataclasses
import logging
import re
import ssl
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from framework.errors import ConfigError
from framework.tls import SYSTEM, ClientTls, ServerTls, complete

log = logging.getLogger("framework.tls")

INTERVAL = 1.0
"""Seconds between two looks at the files; a look is a `stat` of each."""

TRIES = 3
"""How often files are read that change while they are read."""

_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN (ENCRYPTED |[A-Z]+ )?PRIVATE KEY-----(\s+Proc-Type: 4,ENCRYPTED)?")


@dataclass(frozen=True, slots=True)
class Material:
    """What the files hold. Compared by identity: other files are other material.

    Attributes:
        certificate: the chain to show, in PEM; empty without one.
        key: of its first certificate, in PEM.
        ca: the authorities to trust, in PEM; empty is what the machine trusts.
        expires: when the certificate and the authorities end, in seconds since 1970, by file.
    """

    certificate: bytes
    key: bytes
    ca: bytes
    expires: Mapping[str, float]

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def read(settings: ServerTls | ClientTls, where: str, now: float) -> Material:
    """Read and check the files.

    Args:
        settings: which files.
        where: the table that names them, for messages.
        now: seconds since 1970.

    Raises:
        ConfigError: one of them cannot be used; the message says which and why.
    """
    complete(settings, where)
    ca = "" if settings.ca == SYSTEM else settings.ca
    key = settings.key or settings.certificate
    wanted = {"certificate": settings.certificate, "key": key, "ca": ca}
    found = _all(wanted, where)
    trouble = ""
    for _ in range(TRIES):
        trouble = _mismatch(settings.certificate, key, where) if settings.certificate else ""
        before, found = found, _all(wanted, where)
        if found == before:  # what was checked by name is what was read
            break
    expires: dict[str, float] = {}
    if settings.certificate:
        spans = _spans(found["certificate"], settings.certificate, f"{where}.certificate")
        _valid(spans[0], now, settings.certificate, f"{where}.certificate")
        expires[settings.certificate] = spans[0][1]
        _check_key(found["key"], key, f"{where}.key")
        if trouble:
            raise ConfigError(trouble)
    if ca:
        spans = _spans(found["ca"], ca, f"{where}.ca")
        living = [span for span in spans if span[0] <= now < span[1]]
        _valid(min(living, default=spans[0], key=lambda span: span[1]), now, ca, f"{where}.ca")
        expires[ca] = min(span[1] for span in living)
    return Material(found["certificate"], found["key"], found["ca"], expires)


def _all(wanted: Mapping[str, str], where: str) -> dict[str, bytes]:
    return {name: _bytes(file, f"{where}.{name}") if file else b"" for name, file in wanted.items()}


def _bytes(file: str, where: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"{where}: {file} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _mismatch(certificate: str, key: str, where: str) -> str:
    """What is wrong with a pair of files, empty when they fit."""
    try:
        # A key with a pass phrase would be asked for on the terminal; without one it fails here, and is told apart.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"):
            return f"{where}: the key {key} does not belong to the certificate {certificate}"
        return (
            f"{where}: {certificate} and {key} cannot be used: {(error.reason or str(error)).lower().replace('_', ' ')}"
        )
    except OSError:
        pass  # it is gone again, and the reading tells
    return ""


def _check_key(content: bytes, file: str, where: str) -> None:
    begin = _KEY.search(content)
    if begin is None:
        raise ConfigError(f"{where}: {file} has no private key in PEM")
    if begin[1] == b"ENCRYPTED " or begin[2]:
        raise ConfigError(f"{where}: the key in {file} has a pass phrase, which nobody is there to type")


def _valid(span: tuple[float, float], now: float, file: str, where: str) -> None:
    if now >= span[1]:
        raise ConfigError(f"{where}: {file} has expired on {_date(span[1])}; put a new one in its place")
    if now < span[0]:
        raise ConfigError(f"{where}: {file} is not valid before {_date(span[0])}; is the clock right?")


def _date(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _spans(content: bytes, file: str, where: str) -> list[tuple[float, float]]:
    """From when to when each certificate in a file is valid, in seconds since 1970."""
    try:
        spans = [_validity(base64.b64decode(one)) for one in _PEM.findall(content)]
    except (ValueError, IndexError):
        raise ConfigError(f"{where}: {file} has a certificate that cannot be read") from None
    if not spans:
        raise ConfigError(f"{where}: {file} has no certificate in PEM")
    return spans


def _validity(der: bytes) -> tuple[float, float]:
    """Of one certificate, which the standard library can tell only of a connection. Source: RFC 5280, section 4.1."""
    at, _ = _enter(der, 0)  # Certificate
    at, _ = _enter(der, at)  # TBSCertificate
    if der[at] == 0xA0:  # version
        at = _enter(der, at)[1]
    for _ in range(3):  # serial number, algorithm, issuer
        at = _enter(der, at)[1]
    at, _ = _enter(der, at)
    begin, after = _enter(der, at)
    start = _moment(der[at], der[begin:after])
    begin, end = _enter(der, after)
    return start, _moment(der[after], der[begin:end])


def _enter(der: bytes, at: int) -> tuple[int, int]:
    """Where the content of the element at an offset begins, and where it ends."""
    length, begin = der[at + 1], at + 2
    if length & 0x80:
        begin += length & 0x7F
        length = int.from_bytes(der[at + 2 : begin], "big")
    if begin + length > len(der):
        raise ValueError("it is cut off")
    return begin, begin + length


def _moment(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == 0x17:  # UTCTime: 50 to 99 are of the last century
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()


class TlsFiles:
    """Files that are in use, looked at every second from the event loop while anybody follows them.

    Args:
        settings: which files.
        where: the table that names them, for messages.
        now: the clock, in seconds since 1970.

    Attributes:
        current: what was read last and can be used.

    Raises:
        ConfigError: a file cannot be used.
    """

    def __init__(self, settings: ServerTls | ClientTls, where: str, *, now: Callable[[], float] = time.time) -> None:
        self.settings = settings = _absolute(settings)
        self.where = where
        self._now = now
        files = (settings.certificate, settings.key, "" if settings.ca == SYSTEM else settings.ca)
        self._paths = [Path(file) for file in files if file]
        self._read = self._seen = self._stamps()
        self.current = read(settings, where, now())
        self._followers: list[Callable[[], object]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._context: tuple[Material, ssl.SSLContext] | None = None
        _in_use.add(self)

    def context(self, protocol: str = "h2") -> ssl.SSLContext:
        """For clients who connect by name; the same until the files change. Raises OSError, see `client_context`."""
        if self._context is None or self._context[0] is not self.current:
            self._context = self.current, client_context(self.settings, self.current, named=True, protocol=protocol)
        return self._context[1]

    def follow(self, callback: Callable[[], object] = lambda: None) -> Callable[[], None]:
        """Look at the files, and call back when `current` has changed, until what is returned is called."""
        self._followers.append(callback)
        if self._timer is None:
            self._again()

        def leave() -> None:
            if callback in self._followers:
                self._followers.remove(callback)
            if not self._followers and self._timer is not None:
                self._timer.cancel()
                self._timer = None

        return leave

    def _again(self) -> None:
        # A context of its own, or the call that came first would be kept alive by it.
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._tick, context=contextvars.Context())

    def _tick(self) -> None:
        self._again()
        self.look()

    def look(self) -> None:
        """Read the files when they have changed since they were read, and not since the last look."""
        stamps = self._stamps()
        settled, self._seen = stamps == self._seen, stamps
        if stamps == self._read or not settled:
            return
        self._read = stamps
        try:
            self.current = read(self.settings, self.where, self._now())
        except ConfigError as error:
            log.error("%s; what was read before stays in use", error)
            return
        log.info("%s has changed: %s", self.where, told(self.current, self._now()))
        for callback in tuple(self._followers):
            callback()

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]

    def __repr__(self) -> str:
        return f"<TlsFiles of {self.where}: {', '.join(map(str, self._paths))}>"


def _absolute(settings: ServerTls | ClientTls) -> ServerTls | ClientTls:
    """The same files, wherever the process goes from here."""

    def there(file: str) -> str:
        return str(Path.cwd() / file) if file else ""

    ca = settings.ca if settings.ca == SYSTEM else there(settings.ca)
    return dataclasses.replace(settings, certificate=there(settings.certificate), key=there(settings.key), ca=ca)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """By what a file tells that it has changed; one that replaces it has another inode."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def told(material: Material, now: float) -> str:
    """The files and how long they are good for, in a few words."""
    days = ((file, (end - now) / 86400) for file, end in material.expires.items())
    return ", ".join(f"{file} ends in {left:.0f} days" if left >= 2 else f"{file} ends soon" for file, left in days)


_in_use: weakref.WeakSet[TlsFiles] = weakref.WeakSet()


def expiry() -> dict[str, float]:
    """When each file of certificates that this process uses ends, in seconds since 1970; the metric
    `framework.tls.certificate.expiry`."""
    found: dict[str, float] = {}
    for files in tuple(_in_use):
        for file, end in files.current.expires.items():
            found[file] = min(end, found.get(file, end))
    return found


class ServerContext(ssl.SSLContext):
    """For servers of asyncio: every connection is made with what the files hold when it begins.

    A context can be given another certificate while it is used, but it never forgets an authority.
    """

    files: TlsFiles
    _made_of: Material | None = None
    _inner: ssl.SSLContext

    @classmethod
    def of(cls, files: TlsFiles) -> ServerContext:
        """The context for these files."""
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context.files = files
        context.fresh()
        return context

    def fresh(self) -> ssl.SSLContext:
        """A context of what the files hold now."""
        material = self.files.current
        if self._made_of is not material:
            settings = self.files.settings
            assert isinstance(settings, ServerTls)
            try:
                self._inner = server_context(settings, material)
            except (OSError, ConfigError) as error:  # replaced since they were read; the next look reads them
                if self._made_of is None:
                    raise ConfigError(f"{self.files.where}: {error}") from None
                return self._inner
            self._made_of = material
        return self._inner

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        return self.fresh().wrap_bio(*args, **kwargs)


CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""What grpc offers below TLS 1.3; RFC 9113 bans most others for HTTP/2."""


def client_context(
    settings: ServerTls | ClientTls, material: Material, *, named: bool, protocol: str = "h2"
) -> ssl.SSLContext:
    """A context for clients, who verify the server's certificate.

    Args:
        named: and the name in it, which has to be among its alternative names, as gRPC has it; else somebody else does.
        protocol: that is spoken, by its name in ALPN.

    Raises:
        OSError: the files have been replaced by some that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = named
    context.hostname_checks_common_name = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols([protocol])
    if material.ca:
        context.load_verify_locations(cadata=material.ca.decode("ascii", "ignore"))
    else:
        context.load_default_certs()
    if settings.certificate:  # nobody is asked for a pass phrase
        context.load_cert_chain(settings.certificate, settings.key or None, password=lambda: "")
    return context


def server_context(settings: ServerTls, material: Material) -> ssl.SSLContext:
    """A context for a server of HTTP."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3 if settings.minimum == "1.3" else ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(settings.certificate, settings.key or None, password=lambda: "")
    if material.ca:
        context.load_verify_locations(cadata=material.ca.decode("ascii", "ignore"))
        context.verify_mode = ssl.CERT_REQUIRED if settings.clients == "required" else ssl.CERT_OPTIONAL
    return context
