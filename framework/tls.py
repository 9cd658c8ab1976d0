"""Who may listen in on a connection: TLS for servers and clients, and where plain text is allowed.

    [server.tls]                    # gRPC, and HTTP beside it unless [server.http.tls] says otherwise
    certificate = "certs/catalog.pem"
    key = "certs/catalog.key"
    ca = "certs/ca.pem"             # clients have to show a certificate that it signed: mTLS
    [client.tls]                    # every client; [client.catalog.tls] for those of one service
    ca = "certs/ca.pem"             # who signed the servers' certificates; "system" is what the machine trusts
    certificate = "certs/orders.pem"
    key = "certs/orders.key"

Without TLS nothing is listened to and nothing is called beyond this machine, unless `plaintext = true` stands in
`[server]`, `[client]` or `[gateway]`. What the files hold, and when they change: `framework.certificates`.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Any, Literal

from framework.errors import ConfigError
from framework.parsing import Table, choice, setting, text

SYSTEM = "system"
"""In place of a file of authorities: those that the machine trusts."""

NO_TLS = {"certificate": "", "key": "", "ca": ""}
"""What `"off"` means for a server."""

NO_CLIENT_TLS = NO_TLS | {"server_name": "", "spiffe": ""}
"""What it means for a client."""

PLAIN, TLS, MUTUAL = "grpc", "grpc-tls", "grpc-mtls"
"""What an instance speaks, as its registration says: plain text, TLS, or TLS with a certificate of the client's."""


def _spiffe(value: Any, where: str) -> str:
    """A SPIFFE id."""
    if not isinstance(value, str) or (value and not re.fullmatch(r"spiffe://[a-z0-9._-]+(/[A-Za-z0-9._{}-]+)+", value)):
        raise ConfigError(f"{where} is {value!r}, which is no SPIFFE id; write for example spiffe://shop/{{service}}")
    return value


@dataclass(frozen=True, slots=True)
class TlsTable(Table):
    """What both sides have. True when it says anything: then all that it takes has to be there."""

    certificate: str = setting("", text)
    key: str = setting("", text)
    ca: str = setting("", text)

    def __bool__(self) -> bool:
        return bool(self.certificate or self.key or self.ca)


@dataclass(frozen=True, slots=True)
class ServerTls(TlsTable):
    """`[server.tls]`, `[server.http.tls]` and `[gateway.tls]`.

    Attributes:
        certificate: file with the certificate, and with those between it and its authority behind it.
        key: file with its key; empty is the file of the certificate.
        ca: file with the authorities of clients' certificates; empty is not to ask for any.
        clients: whether every client has to show one, or may go without; gRPC knows `required` only.
        minimum: the oldest version of TLS that is spoken; gRPC's is 1.2.
    """

    clients: Literal["required", "optional"] = setting("required", choice("required", "optional"))
    minimum: Literal["1.2", "1.3"] = setting("1.2", choice("1.2", "1.3"))

    @property
    def protocol(self) -> str:
        """What clients are told that an instance speaks."""
        return PLAIN if not self else MUTUAL if self.ca else TLS


@dataclass(frozen=True, slots=True)
class ClientTls(TlsTable):
    """`[client.tls]` and `[client.NAME.tls]`.

    Attributes:
        certificate: file with the certificate to show to servers that ask for one.
        key: file with its key; empty is the file of the certificate.
        ca: file with the authorities of servers' certificates; "system" is those that the machine trusts.
        server_name: the name that a server's certificate has to have; empty is the name of the service, or the host of
            a target that names one.
        spiffe: the SPIFFE id that it has to have, instead of a name; `{service}` in it is the name of the service.
    """

    server_name: str = setting("", text)
    spiffe: str = setting("", _spiffe)

    def __bool__(self) -> bool:
        return bool(self.certificate or self.key or self.ca or self.server_name or self.spiffe)


def complete(settings: ServerTls | ClientTls, where: str) -> None:
    """Raise ConfigError when settings name one file and not the other that it takes."""
    if settings.key and not settings.certificate:
        raise ConfigError(f"{where} has the key {settings.key} and no certificate that it belongs to")
    if isinstance(settings, ServerTls) and not settings.certificate:
        raise ConfigError(f"{where} has the ca {settings.ca} for clients, and no certificate to serve with")
    if isinstance(settings, ClientTls) and not settings.ca:
        raise ConfigError(
            f"{where} does not say whom to trust: name a file of authorities as ca, or "
            f'ca = "{SYSTEM}" for what this machine trusts'
        )


def stays_here(address: str) -> bool:
    """Whether what is said to an address cannot leave this machine; `address` is a host, `host:port` or a target."""
    scheme, _, rest = address.partition(":")
    if scheme in ("unix", "unix-abstract", "vsock"):
        return True
    if scheme in ("dns", "ipv4", "ipv6") and rest:
        return all(stays_here(one) for one in rest.rpartition("/")[2].split(","))
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = scheme
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_plain_text(what: str, host: str, table: str) -> None:
    """Raise ConfigError when a host is one that others can reach.

    Args:
        what: would listen there, for the message.
        table: of the settings that says otherwise.
    """
    if not stays_here(host):
        raise ConfigError(
            f"{what} would listen in plain text on {host or 'every address'}, beyond this machine. Name a certificate "
            f"in [{table}.tls] (`framework certs` makes one), or allow it: plaintext = true in [{table}] or --plaintext"
        )
