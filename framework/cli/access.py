"""`framework access`: who may call what, whether somebody may, and what callers show."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.access import ALGORITHMS, Rules
from framework.config import Settings
from framework.errors import ConfigError, RpcError
from framework.identity import Identity
from framework.parsing import duration, suggest
from framework.security.access import Policy, passed, read, why

if TYPE_CHECKING:
    from framework.call import Method
    from framework.cli import Commands

EPILOG = """\
examples:
  framework access show                                     the table of who may call what
  framework access show --protos protos                     nothing needs to run
  framework access test ann shop.orders.v1.Orders/PlaceOrder --role buyer
  framework access test nobody shop.catalog.v1.Catalog/GetProduct
  framework access test service:orders shop.payments.v1.Payments/Charge
  framework access test "$TOKEN" shop.orders.v1.Orders/PlaceOrder      a token, checked as a server would
  framework access key new ci --role deployer               an API key, and the line for the file of keys
  framework access token --subject ann --role buyer         a token signed with a development key

`test` answers yes or no and why; its exit code is 0 or 1. Rules are those of the settings here, the file that they name
and the protos, which running instances tell by reflection, or the files in ./protos when there are none."""

PROTOS = Path("protos")
"""Where protos are looked up when nobody serves them."""

DEVELOPMENT = "development"
"""Issuer and audience of tokens where the settings name none."""

OPEN = "nobody is asked who they are, so everybody may call: [auth] is not set up here"

ALWAYS = ("grpc.health.v1.Health/Check", "grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
"""Methods that every server has."""


def add_parser(subparsers: Commands) -> None:
    """`access` and what it has below it."""
    parser = subparsers.add_parser(
        "access",
        help="who may call what; keys and tokens for development",
        description="Show the rules of who may call what, try them, and make keys and tokens.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    below = parser.add_subparsers(title="commands", dest="what", metavar="COMMAND", required=True)
    showing = below.add_parser("show", help="the table of who may call what")
    showing.set_defaults(run=show)
    testing = below.add_parser("test", help="whether somebody may call a method, and why")
    testing.add_argument(
        "identity", metavar="IDENTITY", help="a subject, nobody, service:NAME, key:NAME of an API key, or a token"
    )
    testing.add_argument("method", metavar="SERVICE/METHOD", help="full name of the service, and the method")
    testing.add_argument("--service", default="", metavar="NAME", help="the service that calls for it")
    testing.set_defaults(run=test)
    for one in (showing, testing):
        one.add_argument("--registry", metavar="URL", help="default: the settings' or FRAMEWORK_REGISTRY")
        one.add_argument("--protos", type=Path, metavar="DIR", help="ask nobody; the protos are in this directory")
        one.add_argument(
            "--header", "-H", action="append", default=[], metavar="NAME:VALUE", help="metadata to ask with"
        )
        one.add_argument("--json", action="store_true", help="for programs")
    keys = below.add_parser("key", help="API keys").add_subparsers(dest="key", metavar="COMMAND", required=True)
    making = keys.add_parser("new", help="make one: it is shown once, and only its hash is kept")
    making.add_argument("name", metavar="NAME", help="whom it stands for")
    making.set_defaults(run=new_key)
    signing = below.add_parser("token", help="a token for development")
    signing.add_argument("--subject", required=True, metavar="NAME", help="whom it stands for")
    signing.add_argument("--key", type=Path, metavar="FILE", help="private key; made when there is none")
    signing.add_argument("--for", dest="life", default="8h", metavar="DURATION", help="how long it counts (default 8h)")
    signing.set_defaults(run=token)
    for one in (testing, making, signing):
        one.add_argument("--role", action="append", default=[], metavar="NAME", help="may be said several times")
        one.add_argument("--scope", action="append", default=[], metavar="NAME", help="may be said several times")
    for one in (showing, testing, signing):
        one.add_argument("--config", type=Path, metavar="FILE", help="settings (default: framework.toml, if there)")


def show(args: argparse.Namespace) -> int:
    """Print the table, and return 0."""
    settings = Settings.load(args.config)
    methods = _methods(args, settings)
    policy = _policy(settings, methods)
    rows = [(one.full_name, *policy.rules_of(one.full_name, one.access)) for one in methods]
    rows += [(name, *policy.rules_of(name)) for name in ALWAYS]
    if args.json:
        shown = [
            {"method": name, "allowed": [rule.as_dict() for rule in rules], "from": origin}
            for name, rules, origin in rows
        ]
        print(json.dumps({"asked": settings.auth.on, "methods": shown}, indent=2))
    else:
        _print(rows)
    if not settings.auth.on:
        print(
            "framework: nobody is asked who they are, so everybody may call: [auth] is not set up here", file=sys.stderr
        )
    return 0


def _print(rows: Iterable[tuple[str, Rules, str]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 140)  # a pipe has no width to keep to
    grid = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in ("method", "who may call it", "says"):
        grid.add_column(column, overflow="fold", header_style="dim", no_wrap=column == "method")
    for name, rules, origin in rows:
        who = "; or ".join(map(str, rules)) or "nobody"
        style = "green" if who == "public" else "red" if not rules else ""
        grid.add_row(escape(name), escape(who), escape(origin), style=style)
    console.print(grid)


def test(args: argparse.Namespace) -> int:
    """Print yes or no, and return 0 or 1."""
    settings = Settings.load(args.config)
    name = args.method.strip("/")
    methods = {one.full_name: one for one in _methods(args, settings)}
    if name not in methods and name not in ALWAYS:
        raise ConfigError(f"there is no method {name}.{suggest(name, methods)}")
    identity, refused = _identity(args, settings)
    rules, origin = _policy(settings, methods.values()).rules_of(name, methods[name].access if name in methods else ())
    rule = None if refused else passed(rules, identity)
    reason = refused or (why(rules, identity) if rule is None else f"the rule is: {rule}")
    if args.json:
        print(json.dumps({"allowed": rule is not None, "reason": reason, "from": origin}, indent=2))
    else:
        print(f"{'no' if rule is None else 'yes'}: {reason} (says {origin})")
    if not settings.auth.on:
        print(
            "framework: nobody is asked who they are, so everybody may call: [auth] is not set up here", file=sys.stderr
        )
    return 1 if rule is None else 0


def _policy(settings: Settings, methods: Iterable[Method[Any, Any]]) -> Policy:
    more = read(Path(settings.access.file)) if settings.access.file else None
    return Policy(settings.access, more, closed=any(one.access for one in methods))


def _identity(args: argparse.Namespace, settings: Settings) -> tuple[Identity | None, str]:
    """Who is asked about, and why nobody would believe that."""
    text: str = args.identity
    if text in ("nobody", "anonymous", "-"):
        if args.role or args.scope:
            raise ConfigError("nobody has no roles and no scopes")
        return (Identity("", "anonymous", service=args.service) if args.service else None), ""
    if text.startswith("service:"):
        name = text.removeprefix("service:")
        return Identity(name, "service", service=name), ""
    if text.startswith("key:"):
        return _of_key(text.removeprefix("key:"), settings), ""
    if text.count(".") == 2 and text.startswith("eyJ"):
        return _of_token(text, settings)
    return Identity(text, "", "", frozenset(args.role), frozenset(args.scope), args.service), ""


def _of_key(name: str, settings: Settings) -> Identity:
    from framework.security.keys import read

    if not settings.auth.keys:
        raise ConfigError("the settings name no file of API keys: [auth] keys")
    entries = read(Path(settings.auth.keys))
    if name not in entries:
        raise ConfigError(f"there is no key {name} in {settings.auth.keys}.{suggest(name, entries)}")
    return entries[name].identity


def _of_token(text: str, settings: Settings) -> tuple[Identity | None, str]:
    _needs_extra()
    from framework.security.authentication import Refused
    from framework.security.jwks import Jwks, OneKey, public_key
    from framework.security.jwt import Jwt

    said = settings.auth.jwt
    said.verify()
    source: Any = Jwks(said.jwks) if said.jwks else OneKey(public_key(Path(said.key)))
    try:
        return asyncio.run(Jwt(said, source).verify(text)), ""
    except Refused as error:
        return None, str(error)
    except RpcError as error:
        raise ConfigError(f"{error.message}: {said.jwks} does not answer") from None


# Which methods there are


def _methods(args: argparse.Namespace, settings: Settings) -> list[Method[Any, Any]]:
    if args.protos is not None:
        return _in_protos(args.protos)
    try:
        return asyncio.run(_running(args, settings))
    except (ConfigError, RpcError) as error:
        if args.registry is None and PROTOS.is_dir():
            return _in_protos(PROTOS)
        raise ConfigError(f"{error} (or read the protos: --protos DIR)") from None


def _in_protos(folder: Path) -> list[Method[Any, Any]]:
    from framework.cli.explain import pool_of
    from framework.options import method_of

    pool, files = pool_of(folder)
    services = [f"{file.package}.{one.name}".lstrip(".") for file in files.values() for one in file.service]
    return [method_of(one) for name in sorted(services) for one in pool.FindServiceByName(name).methods]


async def _running(args: argparse.Namespace, settings: Settings) -> list[Method[Any, Any]]:
    from framework.cli.call import describe, header, sending
    from framework.client.connect import connect
    from framework.discovery.targets import open_registry
    from framework.options import method_of
    from framework.reflection import Reflection

    metadata = tuple(header(text) for text in args.header)
    registry = open_registry(args.registry or settings.registry)
    found: dict[str, Method[Any, Any]] = {}
    try:
        names = sorted(name for name, instances in (await registry.services()).items() if instances)
        if not names:
            raise ConfigError(f"nothing is registered in {registry}")
        for name in names:
            async with connect(name, settings=settings, registry=registry, interceptors=[sending(metadata)]) as channel:
                for service in sorted(await Reflection(channel).services()):
                    if not service.startswith("grpc."):
                        for one in (await describe(channel, service)).methods:
                            found.setdefault(one.full_name, method_of(one))
    finally:
        await registry.aclose()
    return list(found.values())


# Keys and tokens


def new_key(args: argparse.Namespace) -> int:
    """Print a key and the line that makes it count, and return 0."""
    from framework.security.keys import line, new

    key = new(args.name)
    print(f"The key, shown this once; it is sent in x-api-key:\n\n  {key}\n")
    print("The line for the file that `keys` in [auth] names, which has its hash only:\n")
    print(f"  {line(args.name, key, tuple(args.role), tuple(args.scope))}")
    return 0


def token(args: argparse.Namespace) -> int:
    """Print a token, and return 0. Whatever else there is to say goes to the standard error."""
    _needs_extra()
    import jwt

    said = Settings.load(args.config).auth.jwt
    file = args.key or (Path(said.key) if said.key else None)
    if file is None:
        raise ConfigError("there is no key to sign with: say --key FILE, which is made when it is not there")
    key, made = _private_key(file, make=args.key is not None)
    algorithm = _algorithm(key, said.algorithms, file)
    now = int(time.time())
    life = duration(args.life, "--for")
    audience = said.audience[0] if said.audience else DEVELOPMENT
    claims: dict[str, Any] = {"iss": said.issuer or DEVELOPMENT, "aud": audience, "sub": args.subject, "iat": now}
    claims["exp"] = now + int(life)
    if args.role:
        _put(claims, said.roles, args.role)
    if args.scope:
        _put(claims, said.scopes, " ".join(args.scope))
    print(jwt.encode(claims, key, algorithm))
    if made:
        print(f"framework: {file} is a new key, for development; it is to stay on this machine", file=sys.stderr)
    if not said.on:
        lines = (
            f'issuer = "{claims["iss"]}"',
            f'audience = "{audience}"',
            f'algorithms = ["{algorithm}"]',
            f'key = "{file}"',
        )
        print("framework: for the token to count, the settings need:", file=sys.stderr)
        print("\n".join(("[auth.jwt]", *lines)), file=sys.stderr)
    return 0


def _put(claims: dict[str, Any], path: str, value: Any) -> None:
    """Set a claim, or one inside others."""
    *outer, name = path.split(".") if "/" not in path else [path]
    for part in outer:
        claims = claims.setdefault(part, {})
    claims[name] = value


def _private_key(file: Path, *, make: bool) -> tuple[Any, bool]:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    from framework.security.files import text_of

    if make and not file.exists():
        made = ed25519.Ed25519PrivateKey.generate()
        raw = made.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
                opened.write(raw)
        except OSError as error:
            raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
        return made, True
    try:
        return serialization.load_pem_private_key(text_of(file).encode(), None), False
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{file} holds no private key, which signing takes; say --key FILE") from None


def _algorithm(key: Any, allowed: tuple[str, ...], file: Path) -> str:
    from framework.security.jwks import kind_of

    kind = kind_of(key.public_key())
    found = [name for name, needed in ALGORITHMS.items() if needed == kind and (not allowed or name in allowed)]
    if not found:
        raise ConfigError(f"{file} is a key for none of the algorithms of [auth.jwt]: {', '.join(allowed)}")
    return found[0]


def _needs_extra() -> None:
    for name in ("jwt", "cryptography"):
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"{name} is not installed: pip install framework-grpc[security]")
