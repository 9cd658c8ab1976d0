"""A certificate authority for development, and certificates of it: `framework certs`.

    certs/ca.pem, ca.key            the authority; who has its key can be anybody
    certs/catalog.pem, catalog.key  for a server named catalog, and for a client that proves to be catalog

For production take a real authority, which issues certificates for hours and puts new files in their place by itself.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from framework.errors import ConfigError

NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
BACKDATED = timedelta(minutes=5)
"""Clocks of other machines may be behind."""

HERE = ("localhost", "127.0.0.1", "::1")
"""Names of this machine, which a certificate for development has as well."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The files of a certificate and its key."""

    certificate: Path
    key: Path

    @classmethod
    def of(cls, folder: Path, name: str) -> Pair:
        return cls(folder / f"{name}.pem", folder / f"{name}.key")


def make_authority(folder: Path, now: datetime, *, days: float = 3650, force: bool = False) -> Pair:
    """Make a development CA.

    Args:
        folder: where its files go; made when it is missing.
        days: that it is good for.
        force: replace one that is there; no certificate of that one is trusted any more.

    Raises:
        ConfigError: there is one already, or the files cannot be written.
    """
    pair = Pair.of(folder, "ca")
    _spare(pair, force)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "development CA of framework")])
    builder = (
        _builder(name, name, key.public_key(), now, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
    )
    _write(pair, builder.sign(key, hashes.SHA256()), key)
    return pair


def issue(
    folder: Path,
    name: str,
    now: datetime,
    *,
    names: Sequence[str] = (),
    spiffe: str = "",
    days: float = 90,
    force: bool = False,
) -> Pair:
    """Make a certificate for a server and a client of this name, signed by the development CA in the folder.

    Args:
        name: of the service, which is what its clients look for in it.
        names: other host names and addresses that it is good for.
        spiffe: `spiffe://shop/catalog`; empty for none.
        days: that it is good for; at most as long as its authority.
        force: replace the one that is there.

    Raises:
        ConfigError: there is no authority, there is one of the name already, or a name is none.
    """
    if not NAME.fullmatch(name) or name == "ca":
        raise ConfigError(f"{name!r} is no name for a certificate; write that of the service, such as catalog")
    authority = Pair.of(folder, "ca")
    pair = Pair.of(folder, name)
    _spare(pair, force)
    with _reading(authority):
        ca = x509.load_pem_x509_certificate(authority.certificate.read_bytes())
        ca_key: Any = serialization.load_pem_private_key(authority.key.read_bytes(), None)
    alternatives = [_alternative(one) for one in dict.fromkeys((name, *names, *HERE))]
    if spiffe:
        if not re.fullmatch(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._-]+)*", spiffe):
            raise ConfigError(f"{spiffe!r} is no SPIFFE id; write for example spiffe://shop/{name}")
        alternatives.append(x509.UniformResourceIdentifier(spiffe))
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        _builder(subject, ca.subject, key.public_key(), now, days, ca.not_valid_after_utc)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    )
    _write(pair, builder.sign(ca_key, hashes.SHA256()), key)
    return pair


def _builder(
    subject: x509.Name, issuer: x509.Name, key: Any, now: datetime, days: float, latest: datetime | None = None
) -> x509.CertificateBuilder:
    try:
        end = now + timedelta(days=days)
    except OverflowError:
        raise ConfigError(f"{days:g} days are more than a certificate can say") from None
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end if latest is None else min(end, latest))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not NAME.fullmatch(name.removeprefix("*.")):
        raise ConfigError(f"{name!r} is no host name or address")
    return x509.DNSName(name)


def _spare(pair: Pair, force: bool) -> None:
    for file in (pair.certificate, pair.key):
        if file.exists() and not force:
            raise ConfigError(f"{file} is there already; --force replaces it")


@contextlib.contextmanager
def _reading(authority: Pair) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {error.filename}; `framework certs init` makes an authority") from None
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"the authority in {authority.certificate.parent} cannot be used: {error}") from None


def _write(pair: Pair, certificate: x509.Certificate, key: Any) -> None:
    """First the key, which nobody but this user can ever read; each file is whole, or not there."""
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        if not pair.key.parent.exists():
            pair.key.parent.mkdir(parents=True)
            (pair.key.parent / ".gitignore").write_text("*\n")  # private keys have no place in version control
        _put(pair.key, private, 0o600)
        _put(pair.certificate, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be written: {(error.strerror or '').lower()}") from None


def _put(file: Path, content: bytes, mode: int) -> None:
    part = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        part.unlink()
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
            opened.write(content)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
