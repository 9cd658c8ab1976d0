"""Settings of who callers are and what they may do, and the rules that say so.

    [auth.jwt]                       # who they are
    issuer = "https://login.example.com/"
    audience = "shop"
    algorithms = ["RS256"]
    jwks = "https://login.example.com/keys"
    [access.rules]                   # what they may do; once there is a rule, the rest is denied
    "shop.catalog.v1.*" = "public"
    "shop.orders.v1.Orders/PlaceOrder" = { roles = ["buyer"] }
    "shop.payments.v1.Payments/*" = [{ services = ["orders"] }, { roles = ["accountant"], scopes = ["refund"] }]

`framework.security` does what is said here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, Self

from framework.errors import ConfigError
from framework.identity import Identity
from framework.parsing import (
    Parse,
    Secret,
    Table,
    boolean,
    choice,
    optional,
    setting,
    span,
    suggest,
    table,
    text,
)
from framework.parsing import secret as hidden

ALGORITHMS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    "ES256": "EC P-256",
    "ES384": "EC P-384",
    "ES512": "EC P-521",
    "EdDSA": "Ed25519",
}
"""What a token may be signed with, and the kind of key that it takes. A secret that both sides have is none of them:
whoever can check such a token can make one."""

LEAST_SECRET = 32
"""Bytes of a secret that tokens are signed with."""

_SERVICE = "{service}"
_LOOPBACK = re.compile(r"http://(localhost|127\.\d+\.\d+\.\d+|\[::1\])(:\d+)?(/|$)")
_NAMED = re.compile(r"[^\s,]+")
_OBJECT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def names(pattern: re.Pattern[str], what: str) -> Parse:
    """A parser of one text, a list of them, or one text with commas, as a tuple."""

    def parse(value: Any, where: str) -> tuple[str, ...]:
        given = [one.strip() for one in value.split(",") if one.strip()] if isinstance(value, str) else value
        if not isinstance(given, list | tuple | set | frozenset) or not all(isinstance(one, str) for one in given):
            raise ConfigError(f"{where} is {value!r}; it must be a list of texts")
        for one in given:
            if not pattern.fullmatch(one):
                raise ConfigError(f"{where} has {one!r}, which is no {what}")
        return tuple(given)

    return parse


# Who callers are


def _algorithms(value: Any, where: str) -> tuple[str, ...]:
    found: tuple[str, ...] = names(re.compile(r"\S+"), "algorithm")(value, where)
    for one in found:
        if one.upper().startswith("HS"):
            raise ConfigError(f"{where} has {one}: who can check such a token can make one. Use EdDSA")
        if one not in ALGORITHMS:
            raise ConfigError(f"{where} has {one!r}, which is not allowed.{suggest(one, ALGORITHMS)}")
    return found


def _url(value: Any, where: str) -> str:
    url = text(value, where)
    if url and not re.match(r"https?://[^/\s]+", url):
        raise ConfigError(f"{where} is {url!r}; it must be an http or https URL")
    return url


def _said(settings: Table) -> bool:
    """Whether anything is said at all. What is needed may be missing, such as a secret that was to come from the
    environment: that is a mistake to be told, and no reason to ask nobody."""
    return bool(settings.said) or settings != type(settings)()


@dataclass(frozen=True, slots=True)
class JwtSettings(Table):
    """`[auth.jwt]`: tokens that somebody else has signed. Without an issuer there are none.

    Attributes:
        issuer: what `iss` of a token must be.
        audience: one of these must be in its `aud`.
        algorithms: what it may be signed with.
        jwks: URL of the issuer's keys; they are fetched when it starts, and again every `refresh`.
        key: file with the issuer's public key instead, as PEM; a private one serves too, for development.
        insecure: `jwks` may be plain http beyond this machine, where whoever is between decides which keys count.
        leeway: seconds by which the clocks of issuer and server may differ.
        refresh: seconds between two looks at `jwks`.
        roles, scopes: claims that hold them; `realm_access.roles` is one inside another.
    """

    issuer: str = setting("", text)
    audience: tuple[str, ...] = setting((), names(re.compile(r"\S+"), "audience"))
    algorithms: tuple[str, ...] = setting((), _algorithms)
    jwks: str = setting("", _url)
    key: str = setting("", text)
    insecure: bool = setting(False, boolean)
    leeway: float = setting(30.0, span(0, 300))
    refresh: float = setting(300.0, span(1, 86400))
    roles: str = setting("roles", text)
    scopes: str = setting("scope", text)

    @property
    def on(self) -> bool:
        """Anything is said of tokens."""
        return _said(self)

    def verify(self) -> None:
        """Raise ConfigError unless this is enough to check tokens with."""
        if not self.issuer:
            raise ConfigError("auth.jwt.issuer is missing: say what `iss` of a token must be")
        if not self.audience:
            raise ConfigError("auth.jwt.audience is missing: say what `aud` of a token must be")
        if not self.algorithms:
            raise ConfigError('auth.jwt.algorithms is missing: say what its issuer signs with, for example ["RS256"]')
        if bool(self.jwks) == bool(self.key):
            raise ConfigError("auth.jwt takes the keys of the issuer: say either `jwks`, a URL, or `key`, a file")
        if self.jwks.startswith("http://") and not _LOOPBACK.match(self.jwks) and not self.insecure:
            raise ConfigError(
                f"auth.jwt.jwks is {self.jwks}: whoever is between could put in keys of their own. Use https, or say"
                " `insecure = true`"
            )


@dataclass(frozen=True, slots=True)
class InternalSettings(Table):
    """`[auth.internal]`: how services tell each other for whom they call: a signed token that is good for a minute, and
    for one service only. Either all of them share a secret, or each signs with a key of its own.

    Attributes:
        secret: what all of them share, at least 32 bytes.
        previous: the secret before it, which counts as well, while the new one is rolled out.
        key: file with this service's Ed25519 private key, as PEM; without one it only reads what others say.
        trusted: folder with the public keys of those that are believed, each in a file NAME.pem by the service's name.
        lifetime: seconds that a token is good for, unless the call may take longer.
        claims: what of the caller's claims is told too, beside subject, issuer, roles and scopes.
    """

    secret: Secret = setting(Secret(""), hidden)
    previous: Secret = setting(Secret(""), hidden)
    key: str = setting("", text)
    trusted: str = setting("", text)
    lifetime: float = setting(60.0, span(2, 60))
    claims: tuple[str, ...] = setting((), names(_NAMED, "claim"))

    @property
    def on(self) -> bool:
        """Anything is said of it."""
        return _said(self)

    def verify(self) -> None:
        """Raise ConfigError unless this is enough."""
        for name in ("secret", "previous"):
            value: Secret = getattr(self, name)
            if value and len(value.reveal().encode()) < LEAST_SECRET:
                raise ConfigError(
                    f"auth.internal.{name} is shorter than {LEAST_SECRET} bytes; make one with: openssl rand -hex 32"
                )
        if self.secret and (self.key or self.trusted):
            raise ConfigError("auth.internal has a shared `secret`, and `key` or `trusted`: say one or the other")
        if self.previous and not self.secret:
            raise ConfigError("auth.internal.previous counts beside `secret`, which is missing")
        if not (self.secret or self.key or self.trusted) or ("secret" in self.said and not self.secret):
            raise ConfigError(
                "auth.internal.secret is missing or empty: set FRAMEWORK_AUTH_INTERNAL_SECRET, or say `key` or"
                " `trusted`"
            )


def _spiffe(value: Any, where: str) -> str:
    template = text(value, where)
    if template and not (template.startswith("spiffe://") and template.count(_SERVICE) == 1):
        raise ConfigError(
            f'{where} is {template!r}; write how SPIFFE ids name a service, for example "spiffe://shop/{_SERVICE}"'
        )
    return template


@dataclass(frozen=True, slots=True)
class AuthSettings(Table):
    """`[auth]`: how callers prove who they are. Without any of it nobody is asked.

    Attributes:
        jwt: tokens of an issuer, in `authorization: Bearer ...`.
        keys: file with API keys, which come in `x-api-key`; `framework access key new NAME` makes one.
        mtls: how the certificate of a client names its service, `spiffe://shop/{service}`; needs TLS that asks for one.
        internal: how services tell each other for whom they call.
        authenticators: your own, `shop.sessions:Sessions`; they are asked first.
    """

    jwt: JwtSettings = table(JwtSettings(), JwtSettings)
    keys: str = setting("", text)
    mtls: str = setting("", _spiffe)
    internal: InternalSettings = table(InternalSettings(), InternalSettings)
    authenticators: tuple[str, ...] = setting((), names(_OBJECT, "module:object"))

    @property
    def on(self) -> bool:
        """Callers are asked who they are."""
        return _said(self)

    def verify(self) -> None:
        """Raise ConfigError unless this is enough to know anybody by."""
        for name in ("jwt", "internal"):
            one: JwtSettings | InternalSettings = getattr(self, name)
            if one.on or name in self.said:
                one.verify()
        for name in ("keys", "mtls", "authenticators"):
            if name in self.said and not getattr(self, name):
                raise ConfigError(f"{self.said[name][0]} is empty: say what it should be, or remove it")


# What they may do


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call: everything that it names must hold.

    Attributes:
        public: everybody, known or not.
        roles: who has one of these; empty is no condition, as with the others.
        scopes: who has all of these.
        services: who calls from one of these services.
        subjects: who is one of these, whatever has proved it.
    """

    public: bool = False
    roles: frozenset[str] = frozenset()
    scopes: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    subjects: frozenset[str] = frozenset()

    def allows(self, identity: Identity | None) -> bool:
        """Whether this caller may."""
        if self.public:
            return True
        if identity is None:
            return False
        if self.services:
            if identity.service not in self.services:
                return False
        elif not identity.subject:  # somebody unknown for whom a service calls
            return False
        return (
            (not self.roles or not self.roles.isdisjoint(identity.roles))
            and self.scopes <= identity.scopes
            and (not self.subjects or identity.subject in self.subjects)
        )

    def lacks(self, identity: Identity | None) -> str:
        """Why not, for those who look after the rules; callers are not told."""
        if identity is None:
            return "the caller is not known"
        missing = []
        if self.services and identity.service not in self.services:
            missing.append(f"a call from {_or(self.services)}")
        if not self.services and not identity.subject:
            missing.append("a known caller")
        if self.roles and self.roles.isdisjoint(identity.roles):
            missing.append(f"the role {_or(self.roles)}")
        if absent := self.scopes - identity.scopes:
            missing.append(f"the scope {' and '.join(sorted(absent))}")
        if self.subjects and identity.subject not in self.subjects:
            missing.append(f"to be {_or(self.subjects)}")
        return f"lacks {', '.join(missing)}" if missing else ""

    def __str__(self) -> str:
        if self.public:
            return PUBLIC
        told = {"role": _or(self.roles), "scope": " and ".join(sorted(self.scopes)), "service": _or(self.services)}
        told["subject"] = _or(self.subjects)
        return ", ".join(f"{name} {value}" for name, value in told.items() if value) or AUTHENTICATED

    def as_dict(self) -> dict[str, Any] | str:
        """As a file says it."""
        said = {f.name: sorted(getattr(self, f.name)) for f in dataclasses.fields(self)[1:] if getattr(self, f.name)}
        return said or str(self)


def _or(words: Iterable[str]) -> str:
    return " or ".join(sorted(words))


Rules = tuple[Rule, ...]
"""Any of them is enough; none is nobody."""

PUBLIC, AUTHENTICATED, DENY = "public", "authenticated", "deny"
WORDS: Mapping[str, Rules] = {PUBLIC: (Rule(public=True),), AUTHENTICATED: (Rule(),), DENY: ()}
_CONDITIONS = ("roles", "scopes", "services", "subjects")


def rules(value: Any, where: str) -> Rules:
    """Rules as a file or a proto says them: `"public"`, `"authenticated"`, `"deny"`, a table of conditions or a list.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(value, str):
        if value not in WORDS:
            raise ConfigError(f'{where} is {value!r}; write {", ".join(WORDS)}, or who may: {{ roles = ["buyer"] }}')
        return WORDS[value]
    if isinstance(value, list | tuple):
        return tuple(one for inner in value for one in rules(inner, where))
    if isinstance(value, Rule):
        return (value,)
    if not isinstance(value, Mapping):
        raise ConfigError(f'{where} is {value!r}; write {", ".join(WORDS)}, or who may: {{ roles = ["buyer"] }}')
    for name in value:
        if name not in _CONDITIONS:
            raise ConfigError(f"{where}.{name} is no condition.{suggest(name, dict.fromkeys(_CONDITIONS))}")
    said: dict[str, Any] = {
        name: frozenset(names(_NAMED, "name")(one, f"{where}.{name}")) for name, one in value.items()
    }
    empty = next((name for name, one in said.items() if not one), "")
    if empty or not said:
        place = f"{where}.{empty}" if empty else where
        raise ConfigError(f'{place} names nobody; write "{DENY}" for that, or "{AUTHENTICATED}" for every known caller')
    return (Rule(**said),)


_PATTERN = re.compile(r"\*|/?[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\.\*|/\*|/[A-Za-z_]\w*)")


def patterns(value: Any, where: str) -> Mapping[str, Rules]:
    """Rules by what they are for: `package.Service/Method`, `package.Service/*`, `package.*` or `*`.

    Raises:
        ConfigError: something that is none of these, or a rule that cannot be used.
    """
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}; it must be a table of rules by method")
    found: dict[str, Rules] = {}
    for pattern, said in value.items():
        if not _PATTERN.fullmatch(pattern):
            raise ConfigError(
                f'{where} has {pattern!r}, which is no method; write "package.Service/Method", "package.Service/*",'
                ' "package.*" or "*"'
            )
        found[pattern.lstrip("/")] = rules(said, f'{where}."{pattern}"')
    return MappingProxyType(found)


@dataclass(frozen=True, slots=True)
class AccessSettings(Table):
    """`[access]`: who may call what.

    Attributes:
        default: who may call a method for which there is no rule, `deny`, `authenticated` or `public`; None is `deny`
            once there is any rule, and `authenticated` before.
        health: who may call grpc.health, unless there is a rule for it.
        reflection: who may call grpc.reflection, unless there is a rule for it.
        file: a file with more `[rules]`, followed while the process runs; for the same method it has the say.
        rules: by method; see `patterns`.
    """

    default: Literal["deny", "authenticated", "public"] | None = setting(None, optional(choice(*WORDS)))
    health: Rules = setting(WORDS[PUBLIC], rules)
    reflection: Rules = setting(WORDS[AUTHENTICATED], rules)
    file: str = setting("", text)
    rules: Mapping[str, Rules] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def parse(cls, given: Any, where: str, base: Self | None = None) -> Self:
        """Settings from a table of a file over `base`."""
        own = dict(given) if isinstance(given, Mapping) else given
        said = own.pop("rules", {}) if isinstance(own, dict) else {}
        parsed = super(AccessSettings, cls).parse(own, where, base)
        found = patterns(said, f"{where}.rules" if where else "rules")
        return dataclasses.replace(parsed, rules=MappingProxyType({**parsed.rules, **found}))

    @property
    def on(self) -> bool:
        """Anybody is kept from anything, which takes that callers are known."""
        everybody = WORDS[PUBLIC]
        reflection = self.reflection != everybody and (
            self.reflection != WORDS[AUTHENTICATED] or "reflection" in self.said
        )
        return bool(
            self.default not in (None, PUBLIC) or self.health != everybody or reflection or self.file or self.rules
        )


DECLARED = "(framework.method).access"
"""Where a proto says who may call a method."""


def rules_declared(declared: Iterable[Mapping[str, Any]]) -> Rules:
    """The rules that a proto declares. Raises ConfigError."""
    found: list[Rule] = []
    for one in declared:
        if one.get("public") or one.get("authenticated"):
            if len(one) > 1:
                raise ConfigError(f"{DECLARED} says {PUBLIC} or {AUTHENTICATED}, and who else; say them apart")
            found += WORDS[PUBLIC if one.get("public") else AUTHENTICATED]
        else:
            found += rules({name: value for name, value in one.items() if value is not False}, DECLARED)
    return tuple(found)
