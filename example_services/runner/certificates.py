"""Certificates of the shop: each service has one, shows it to the others, and calls nobody who has none."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from framework import Settings
from framework.policy import ClientSettings
from framework.security.certs import Pair, issue, make_authority
from framework.tls import ClientTls, ServerTls

CUSTOMER = "customer"
"""The name on the certificate of everybody who is no service: customers, the shop front, you."""

SETTINGS = """\
[client.tls]
ca = "{ca}"
certificate = "{pair.certificate}"
key = "{pair.key}"
"""


@dataclass(frozen=True)
class Certificates:
    """A folder with a certificate authority of its own, and certificates of it.

    Attributes:
        folder: where the files are; beside it, `framework.toml` has what the commands take to call the shop.
    """

    folder: Path

    @classmethod
    def make(cls, directory: Path, services: tuple[str, ...]) -> Certificates:
        """Make them all."""
        folder, now = directory / "certs", datetime.now(UTC)
        authority = make_authority(folder, now)
        for name in (*services, CUSTOMER):
            issue(folder, name, now, spiffe=f"spiffe://shop/{name}")
        (directory / "framework.toml").write_text(
            SETTINGS.format(ca=authority.certificate, pair=Pair.of(folder, CUSTOMER))
        )
        return cls(folder)

    @property
    def ca(self) -> Path:
        """The authority."""
        return self.folder / "ca.pem"

    @property
    def customer(self) -> Pair:
        """What customers show."""
        return Pair.of(self.folder, CUSTOMER)

    @property
    def settings_file(self) -> Path:
        """For the commands: FRAMEWORK_CONFIG."""
        return self.folder.parent / "framework.toml"

    def environment(self, service: str) -> dict[str, str]:
        """Settings of an instance: as a server it asks for a certificate, and as a client it shows its own."""
        pair = Pair.of(self.folder, service)
        files = {"CERTIFICATE": pair.certificate, "KEY": pair.key, "CA": self.ca}
        return {
            f"FRAMEWORK_{side}_TLS_{name}": str(file) for side in ("SERVER", "CLIENT") for name, file in files.items()
        }

    @property
    def clients(self) -> ClientSettings:
        """Settings of customers."""
        return ClientSettings(tls=ClientTls(str(self.customer.certificate), str(self.customer.key), str(self.ca)))

    @property
    def front(self) -> ServerTls:
        """Of the shop front, which asks its browsers for nothing."""
        return ServerTls(str(self.customer.certificate), str(self.customer.key))


def settings_of(certificates: Certificates | None) -> Settings:
    """Settings of customers; as they were read, without certificates."""
    settings = Settings.load()
    return settings if certificates is None else dataclasses.replace(settings, client=certificates.clients, clients={})
