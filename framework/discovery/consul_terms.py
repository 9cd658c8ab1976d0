"""Consul in our terms: its settings and URL, and its JSON in both directions. Pure; nothing here talks to an agent.

    Service   ID, Name, Address, Port, Tags, Weights
    Meta      version, zone, weight, protocol; the instance's own metadata; lease, which tells two owners of an id apart
    Check     gRPC health, which the agent asks for; or a TTL that this process renews, for what serves no gRPC health

An instance is registered as passing: its server listens and serves before it registers, and to wait for the agent's
first look would cost up to an interval.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Self, cast, get_args
from urllib.parse import parse_qsl, urlsplit

from framework.certificates import TlsFiles
from framework.discovery import Instance, Snapshot
from framework.errors import ConfigError
from framework.tls import MUTUAL, SYSTEM, TLS, ClientTls

Kind = Literal["auto", "grpc", "grpc-tls", "ttl"]


@dataclass(frozen=True, slots=True)
class Check:
    """How Consul finds out that an instance is healthy.

    Attributes:
        kind: `grpc`: the agent asks grpc.health.v1 at the instance's address; `grpc-tls`: over TLS, whoever signed its
            certificate; `ttl`: this process tells the agent; `auto`: what the instance speaks, and `ttl` for one that
            asks for a certificate, which an agent has only if `enable_agent_tls_for_checks` says so.
        interval: seconds between two questions; or between two signs of life, of which two may be missed.
        timeout: seconds in which the instance must answer a question.
        deregister_after: seconds after which an instance that stays critical is forgotten; Consul's least is 60.
        host: what the agent dials, when that is not what clients dial.
    """

    kind: Kind = "auto"
    interval: float = 2.0
    timeout: float = 2.0
    deregister_after: float = 60.0
    host: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(f"A check of Consul's is one of {', '.join(get_args(Kind))}, not {self.kind!r}.")
        if not 0.1 <= self.interval <= 3600:
            raise ConfigError(f"A check of Consul's runs every 0.1 to 3600 seconds, not {self.interval:g}.")

    def kind_for(self, protocol: str) -> Kind:
        """How an instance is checked that speaks this."""
        if self.kind != "auto":
            return self.kind
        return "ttl" if protocol == MUTUAL else "grpc-tls" if protocol == TLS else "grpc"

    def definition(self, host: str, port: int, protocol: str) -> dict[str, Any]:
        """The check in Consul's JSON; py-consul's helpers have keys that some versions refuse, and lack others."""
        kind = self.kind_for(protocol)
        common = {"Status": "passing", "DeregisterCriticalServiceAfter": f"{self.deregister_after:g}s"}
        if kind == "ttl":
            return common | {"TTL": f"{3 * self.interval:g}s"}
        asked: dict[str, Any] = {"GRPC": join(self.host or host, port), "GRPCUseTLS": kind == "grpc-tls"}
        if kind == "grpc-tls":  # an agent would look for its own authority's word, and for its own name
            asked["TLSSkipVerify"] = True
        return common | asked | {"Interval": f"{self.interval:g}s", "Timeout": f"{self.timeout:g}s"}


@dataclass(frozen=True, slots=True)
class ConsulSettings:
    """Which agent, and how to talk to it.

    Attributes:
        host, port: the agent's HTTP address.
        datacenter: where to look for services; empty is the agent's own. One always registers with the agent.
        tls: the agent speaks HTTPS.
        ca: file with what signed its certificate; empty trusts what the system trusts.
        cert, key: files to present to it; a key in the file of the certificate needs no name.
        verify: whether its certificate is checked.
        check: how Consul finds out that an instance is healthy.
        hold: seconds for which instances that Consul may have forgotten are kept before its servers are asked to
            confirm: longer than it takes them to register again, and Consul to look at them all again.
    """

    host: str = "127.0.0.1"
    port: int = 8500
    datacenter: str = ""
    tls: bool = False
    ca: str = ""
    cert: str = ""
    key: str = ""
    verify: bool = True
    check: Check = field(default_factory=Check)
    hold: float = 3.0

    @classmethod
    def parse(cls, url: str) -> Self:
        """The settings in `consul://host:8500?...`; the port may be left out. After the `?`, joined by `&`:

            dc=NAME                   the datacenter
            tls=true                  HTTPS; implied by each of the next four
            ca=FILE                   what signed the agent's certificate
            cert=FILE, key=FILE       what to present to it
            verify=false              do not check its certificate
            check=grpc|grpc-tls|ttl   how instances are checked, when that is not by what they speak
            interval=SECONDS          how often
            hold=SECONDS              how long instances that may be forgotten are kept; by default 3, and longer than
                                      the interval

        Raises:
            ConfigError: an unknown word, or a value that cannot be.
        """
        parts = urlsplit(url)
        words = dict(parse_qsl(parts.query, keep_blank_values=True))
        known = ("dc", "tls", "ca", "cert", "key", "verify", "check", "interval", "hold")
        if unknown := words.keys() - set(known):
            raise ConfigError(f"{url!r}: {min(unknown)!r} is not one of {', '.join(known)}.")
        for word in ("tls", "verify"):
            if words.get(word, "true") not in ("true", "false"):
                raise ConfigError(f"{url!r}: {word} is true or false.")
        try:
            check = Check(cast(Kind, words.get("check", "auto")), float(words.get("interval", Check().interval)))
            hold = float(words.get("hold", max(cls().hold, check.interval + 1)))
        except ValueError:
            raise ConfigError(f"{url!r}: interval and hold are numbers of seconds.") from None
        ca, cert, key, verify = (words.get(word, "") for word in ("ca", "cert", "key", "verify"))
        return cls(
            parts.hostname or cls().host,
            parts.port or cls().port,
            datacenter=words.get("dc", ""),
            tls=words.get("tls") == "true" or bool(ca or cert or key) or verify == "false",
            ca=ca,
            cert=cert,
            key=key,
            verify=verify != "false",
            check=check,
            hold=hold,
        )

    def tls_files(self) -> TlsFiles | None:
        """What to trust and to present; None without TLS.

        Raises:
            ConfigError: a file that cannot be used.
        """
        return TlsFiles(ClientTls(self.cert, self.key, self.ca or SYSTEM), "registry") if self.tls else None

    @property
    def url(self) -> str:
        """What the agent's HTTP API is at."""
        return f"{'https' if self.tls else 'http'}://{join(self.host, self.port)}"

    def __str__(self) -> str:
        return f"consul://{join(self.host, self.port)}" + (f"?dc={self.datacenter}" if self.datacenter else "")


def registration(instance: Instance, check: Check, owner: str) -> dict[str, Any]:
    """What an instance is in the arguments of py-consul's `agent.service.register`.

    Raises:
        ConfigError: its address is not host:port.
    """
    host, _, port = instance.address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"{instance.service} cannot be registered in Consul at {instance.address!r}: that is not host:port."
        )
    meta = {"version": instance.version, "zone": instance.zone, "protocol": instance.protocol}
    meta |= {"weight": str(instance.weight), "lease": owner}
    return {
        "name": instance.service,
        "service_id": instance.id,
        "address": host,
        "port": int(port),
        "tags": list(instance.tags),
        "meta": {**instance.metadata, **meta},
        "weights": {"Passing": instance.weight, "Warning": 1},
        "check": check.definition(host, int(port), instance.protocol),
        "replace_existing_checks": True,
    }


def instances(entries: list[Any], service: str, known: Snapshot | None = None) -> dict[str, Instance]:
    """The instances in an answer about health, whoever registered them; the one object while nothing changes.

    Ids are unique on one agent only: of two instances with the same, the later is called after its node as well.
    """
    found: dict[str, Instance] = {}
    for entry in sorted(entries, key=lambda entry: entry["Service"].get("CreateIndex") or 0):
        node, entry = entry.get("Node") or {}, entry["Service"]
        host, port = entry.get("Address") or node.get("Address"), entry.get("Port")
        if not host or not port:
            continue  # nothing to dial
        id = entry.get("ID") or service
        if id in found:
            id = f"{id}@{node.get('Node', host)}"
        meta = {str(key): str(value) for key, value in (entry.get("Meta") or {}).items()}
        meta.pop("lease", None)
        weight = str((entry.get("Weights") or {}).get("Passing") or meta.get("weight", ""))
        meta.pop("weight", None)
        one = Instance(
            id=id,
            service=service,
            address=join(host, port),
            version=meta.pop("version", ""),
            zone=meta.pop("zone", ""),
            weight=min(max(int(weight), 1), 100) if weight.isdecimal() else 1,
            protocol=meta.pop("protocol", "grpc"),
            tags=tuple(entry.get("Tags") or ()),
            metadata=MappingProxyType(meta),
        )
        found[id] = known[id] if known and known.get(id) == one else one
    return found


def join(host: str, port: int) -> str:
    """`host:port`, or `[v6]:port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
