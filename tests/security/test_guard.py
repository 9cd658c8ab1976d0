"""What servers do about who calls them: end to end, on a network in memory and on grpc's."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from framework import (
    ConfigError,
    Identity,
    Peer,
    PermissionDenied,
    RpcError,
    Service,
    Settings,
    Unauthenticated,
    connect,
)
from framework.access import AccessSettings, AuthSettings, InternalSettings
from framework.config import QUICK_DRAIN, ServerSettings
from framework.interceptors.identity import KEY
from framework.parsing import Secret
from framework.security import guard as guards
from framework.security import keys
from framework.security.authentication import Credentials
from framework.security.guard import guarded
from framework.security.tokens import Tokens
from framework.testing import Network
from framework.tls import ServerTls
from tests.security.lab import (
    ARITIES,
    AUDIENCE,
    ISSUER,
    OTHER,
    SECRET,
    Who,
    ask,
    bearer,
    method,
    service,
    settings_of,
    token,
)


@pytest.mark.parametrize("name", ARITIES)
async def test_each_arity(network: Network, tmp_path: Path, name: str) -> None:
    """Whoever shows a token that holds is known to the handler; others are refused before it, whatever the arity."""
    who = Who()
    network.add(service("who", who, settings_of(tmp_path)))
    channel = network.connect("who")
    assert await ask(channel, name, bearer(token())) == "ann by jwt from -"
    with pytest.raises(Unauthenticated, match="credentials are needed") as nothing:
        await ask(channel, name)
    with pytest.raises(Unauthenticated, match="the credentials are not valid") as bad:
        await ask(channel, name, bearer(token(OTHER)))
    assert dict(nothing.value.metadata)["www-authenticate"] == "Bearer"
    assert dict(bad.value.metadata)["www-authenticate"] == 'Bearer error="invalid_token"'
    assert len(who.seen) == 1


async def test_identity_along_the_chain(network: Network, tmp_path: Path) -> None:
    """Behind two services the caller is still known, and each service knows which one has called it."""
    behind = Who()
    for name, then in (("front", "middle"), ("middle", "back"), ("back", "")):
        who = behind if not then else Who()
        network.add(Service(name, lifespan=leading(who, then), settings=settings_of(tmp_path)))
    for _ in range(2):  # checked, and known from before
        answer = await ask(network.connect("front"), metadata=bearer(token(scope="read")))
        assert answer == "ann by jwt from - > ann by jwt from front > ann by jwt from middle"
    seen = behind.seen[-1]
    assert seen.identity is not None
    assert seen.identity == Identity("ann", "jwt", ISSUER, frozenset({"buyer"}), frozenset({"read"}), "middle")
    assert not [key for key, _ in seen.invocation_metadata() if key in (KEY, "authorization")]


def leading(who: Who, then: str) -> Any:
    """A lifespan in which a servicer is given who is behind it."""

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        service.add(who)
        if not then:
            yield
            return
        async with connect(then) as channel:

            async def next(request: Any) -> Any:
                from framework.client.stub import UnaryReply

                return await UnaryReply(channel.bind(method()), method(), request)

            who.next = next
            yield

    return lifespan


async def test_for_nobody_and_for_itself(network: Network, tmp_path: Path) -> None:
    """A service that is called by nobody calls for nobody; what it calls of itself is for itself."""
    public: Any = {"rules": {"lab.Who/One": "public"}}
    answers: list[str] = []
    settings = settings_of(tmp_path, **public)

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        async with leading(front, "back")(service), connect("back") as channel:
            answers.append(await ask(channel))
            yield

    front = Who()
    network.add(service("back", Who(), settings))
    network.add(Service("front", lifespan=lifespan, settings=settings))
    assert await ask(network.connect("front")) == "nobody > - by anonymous from front"
    assert answers == ["front by service from front"]


async def test_what_only_services_tell_is_not_taken_from_others(network: Network, tmp_path: Path) -> None:
    """A token that is not signed by a service, or for another one, is refused; a handler never sees one."""
    who = Who()
    network.add(service("who", who, settings_of(tmp_path)))
    channel = network.connect("who")
    signer = Tokens("orders", InternalSettings(secret=Secret(SECRET)))
    good, elsewhere = (signer.token(Identity("ann"), audience, None) or "" for audience in ("who", "payments"))
    forged = Tokens("orders", InternalSettings(secret=Secret("f" * 32))).token(Identity("root"), "who", None) or ""
    assert await ask(channel, metadata=((KEY, good),)) == "ann by  from orders"
    for metadata in (
        ((KEY, forged),),
        ((KEY, elsewhere),),
        ((KEY, ""),),
        ((KEY, "ann"),),
        ((KEY, good), (KEY, good)),
        ((KEY, forged), *bearer(token())),
        (*bearer(token()), *bearer(token(sub="eve"))),
        (*bearer(good),),
        (("authorization", "Basic YW5uOnNlY3JldA=="),),
        (("authorization", token()),),
        (("x-api-key", "fwk_ci_" + "0" * 64),),
        ((KEY, token()),),
    ):
        with pytest.raises(Unauthenticated, match="the credentials are not valid"):
            await ask(channel, metadata=metadata)
    assert len(who.seen) == 1
    assert KEY not in dict(who.seen[0].invocation_metadata())


async def test_a_token_for_one_service_of_a_server(network: Network, tmp_path: Path) -> None:
    """Where only what is called is known, its token counts for that alone, on the same server and seen before too."""
    servicers = [Who(), Who("lab.Other")]
    network.add(Service("who", servicers=servicers, settings=settings_of(tmp_path)))
    channel = network.connect("who")
    told = Tokens("orders", InternalSettings(secret=Secret(SECRET))).token(Identity("ann"), "lab.Who", None) or ""
    for _ in range(2):
        assert await ask(channel, metadata=((KEY, told),)) == "ann by  from orders"
        with pytest.raises(Unauthenticated):
            await ask(channel, metadata=((KEY, told),), service="lab.Other")


async def test_who_trusts_nobody_is_told_nothing(network: Network) -> None:
    """A server that believes no service drops what they tell, unread: with authentication and without."""
    told = Tokens("orders", InternalSettings(secret=Secret(SECRET))).token(Identity("root"), "who", None) or ""
    who = Who()
    network.add(service("open", who, Settings()))
    assert await ask(network.connect("open"), metadata=((KEY, told),)) == "nobody"
    assert KEY not in dict(who.seen[0].invocation_metadata())
    network.add(service("who", Who(), Settings(), authenticators=[Doorman()]))
    with pytest.raises(Unauthenticated, match="credentials are needed"):
        await ask(network.connect("who"), metadata=((KEY, told),))


class Doorman:
    """Knows whoever says the word."""

    def __init__(self) -> None:
        self.asked: list[Credentials] = []

    async def authenticate(self, credentials: Credentials) -> Identity | None:
        self.asked.append(credentials)
        word = credentials.get("x-word")
        if word == "bug":
            raise ZeroDivisionError("secret")
        if word == "banned":
            raise PermissionDenied("not you")
        return Identity(credentials.get("x-name"), "word") if word == "sesame" else None


async def test_an_authenticator_of_ones_own(network: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is asked first, and what it does not know the others are asked for; its bugs let nobody in."""
    doorman = Doorman()
    network.add(service("who", Who(), settings_of(tmp_path), authenticators=[doorman]))
    channel = network.connect("who")
    assert await ask(channel, metadata=(("x-word", "sesame"), ("x-name", "ali"))) == "ali by word from -"
    assert await ask(channel, metadata=bearer(token())) == "ann by jwt from -"
    with pytest.raises(PermissionDenied, match="not you"):
        await ask(channel, metadata=(("x-word", "banned"),))
    with pytest.raises(RpcError, match=r"INTERNAL: internal error \w+"):
        await ask(channel, metadata=(("x-word", "bug"),))
    assert (doorman.asked[0].address, doorman.asked[0].peer) == ("memory:client", None)
    assert repr(doorman.asked[1]) == "<Credentials authorization>"
    assert "secret" in caplog.text


async def test_named_in_the_settings(network: Network) -> None:
    """An authenticator may be named by the settings."""
    settings = Settings(auth=AuthSettings(authenticators=("tests.security.test_guard:Doorman",)))
    network.add(service("who", Who(), settings))
    word = (("x-word", "sesame"), ("x-name", "ali"))
    assert await ask(network.connect("who"), metadata=word) == "ali by word from -"


async def test_keys(network: Network, tmp_path: Path) -> None:
    """A key stands for whom it was made for; the file with its hash is followed."""
    file = tmp_path / "keys.toml"
    key, other = keys.new("ci"), keys.new("other")
    file.write_text(keys.line("ci", key, ("buyer",)))
    network.add(service("who", Who(), Settings(auth=AuthSettings(keys=str(file)))))
    channel = network.connect("who")
    assert await ask(channel, metadata=(("x-api-key", key),)) == "ci by key from -"
    with pytest.raises(Unauthenticated) as caught:
        await ask(channel, metadata=(("x-api-key", other),))
    assert dict(caught.value.metadata)["www-authenticate"] == "ApiKey"


async def test_several_at_once(network: Network, tmp_path: Path) -> None:
    """The first that applies decides: your own, then what a service tells; of a token and a key both have to hold."""
    file = tmp_path / "keys.toml"
    key = keys.new("ci")
    file.write_text(keys.line("ci", key))
    settings = settings_of(tmp_path)
    both = dataclasses.replace(settings, auth=dataclasses.replace(settings.auth, keys=str(file)))
    network.add(service("none", Who(), settings, authenticators=[Doorman()]))
    network.add(service("keys", Who(), both))
    word, made_up = (("x-word", "sesame"), ("x-name", "ali")), ("x-api-key", "fwk_ci_" + "0" * 64)
    signer = Tokens("orders", InternalSettings(secret=Secret(SECRET)))
    for name, metadata, expected in (
        ("none", (*word, *bearer("x"), (KEY, "forged")), "ali by word from -"),
        ("none", ((KEY, signer.token(Identity("ann", "jwt"), "none", None)), *bearer("x")), "ann by jwt from orders"),
        ("none", (*bearer(token()), made_up), "ann by jwt from -"),
        ("keys", (*bearer(token()), ("x-api-key", key)), "ann by jwt from -"),
        ("none", (made_up,), None),
        ("keys", (*bearer(token()), made_up), None),
        ("keys", (*bearer("x"), ("x-api-key", key)), None),
    ):
        if expected is None:
            with pytest.raises(Unauthenticated, match="the credentials are not valid"):
                await ask(network.connect(name), metadata=metadata)
        else:
            assert await ask(network.connect(name), metadata=metadata) == expected


class Certified:
    """Stands for TLS: what the certificates of connections say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.peer: Peer | None = None
        monkeypatch.setattr(guards, "_peer_of", lambda call: self.peer)

    def show(self, spiffe: str) -> None:
        """Connections come with this certificate."""
        self.peer = Peer((spiffe,), spiffe)


async def test_certificates(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate names the service; a token beside it the caller; one of another service is a stolen one."""
    tls = Certified(monkeypatch)
    settings = settings_of(tmp_path, rules={"lab.Who/*": [{"services": ["orders"]}, "authenticated"]})
    auth = dataclasses.replace(settings.auth, mtls="spiffe://shop/{service}")
    settings = dataclasses.replace(settings, auth=auth, server=ServerSettings(tls=ServerTls("cert.pem", ca="ca.pem")))
    network.add(service("who", Who(), settings))
    channel = network.connect("who")
    with pytest.raises(Unauthenticated):
        await ask(channel)
    for stranger in ("spiffe://other/orders", "spiffe://shop/orders/x", "spiffe://shop/", "orders"):
        tls.show(stranger)
        with pytest.raises(Unauthenticated):
            await ask(channel)
    tls.show("spiffe://shop/orders")
    told = Tokens("orders", InternalSettings(secret=Secret(SECRET))).token(Identity("ann", "jwt"), "who", None) or ""
    for _ in range(2):
        assert await ask(channel) == "orders by mtls from orders"
        assert await ask(channel, metadata=bearer(token())) == "ann by jwt from orders"
        assert await ask(channel, metadata=((KEY, told),)) == "ann by jwt from orders"
    tls.show("spiffe://shop/catalog")
    with pytest.raises(Unauthenticated):
        await ask(channel, metadata=((KEY, told),))


async def test_rules_of_protos(network: Network, tmp_path: Path) -> None:
    """What a proto says counts once there is authentication; methods that say nothing are closed then."""
    declared: Any = {"One": ({"roles": ["buyer"]},), "Each": ({"public": True},)}
    network.add(service("who", Who(declared=declared), settings_of(tmp_path)))
    network.add(service("open", Who(declared=declared), Settings()))
    channel = network.connect("who")
    assert await ask(channel, "One", bearer(token())) == "ann by jwt from -"
    assert await ask(channel, "Each") == "nobody"
    with pytest.raises(PermissionDenied, match=r"^PERMISSION_DENIED: lab.Who/One is not for this caller \["):
        await ask(channel, "One", bearer(token(roles=["seller"])))
    with pytest.raises(PermissionDenied):
        await ask(channel, "All", bearer(token()))
    assert await ask(network.connect("open"), "One") == "nobody"


async def test_reasons_are_logged(network: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log has why somebody was refused, once a second for each reason, and nothing of what was shown."""
    network.add(service("who", Who(), settings_of(tmp_path)))
    bad = token(OTHER)
    for _ in range(5):
        with pytest.raises(Unauthenticated):
            await ask(network.connect("who"), metadata=bearer(bad))
    lines = [record.getMessage() for record in caplog.records if record.name == "framework.security"]
    expected = "lab.Who/One from memory:client is refused: the token's signature does not hold, or it is malformed"
    assert lines[0] == expected
    assert len(lines) < 5
    assert bad[:40] not in caplog.text


async def test_rules_that_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file with rules is followed; one that cannot be used is refused with one line, and the old rules hold."""
    caplog.set_level(logging.INFO)
    file = tmp_path / "access.toml"
    file.write_text('[rules]\n"lab.Who/One" = { roles = ["seller"] }\n')
    settings = settings_of(tmp_path, file=str(file))
    async with guarded("who", settings) as guard:
        assert guard is not None
        access = guard.access
        access.held(method())
        ann = Identity("ann", roles=frozenset({"buyer"}))
        with pytest.raises(PermissionDenied):
            access.check(method(), ann)
        for text in ('[rules]\n"lab.Who/One" = "all"', '[rules]\n"lab.Who/Onee" = "public"', "[rules"):
            file.write_text(text)
            await until(lambda: "; what it said before stays" in caplog.text)
            caplog.clear()
            with pytest.raises(PermissionDenied):
                access.check(method(), ann)
        file.write_text('[rules]\n"lab.Who/One" = { roles = ["buyer"] }\n')
        await until(lambda: "has changed, and is followed" in caplog.text)
        access.check(method(), ann)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at often."""
    monkeypatch.setattr("framework.security.files.INTERVAL", 0.01)
    monkeypatch.setattr("framework.reload.INTERVAL", 0.01)


async def until(condition: Any) -> None:
    """Wait for what a file causes."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # a log and a file have no event
            await asyncio.sleep(0.01)


async def test_settings_that_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Rules in the settings file itself are followed too."""
    caplog.set_level(logging.INFO)
    key = tmp_path / "issuer.pem"
    settings_of(tmp_path)
    file = tmp_path / "framework.toml"
    jwt = f'issuer = "{ISSUER}"\naudience = "{AUDIENCE}"\nalgorithms = ["EdDSA"]\nkey = "{key}"'
    start = f"[auth.jwt]\n{jwt}\n[access.rules]\n"
    file.write_text(start + '"lab.Who/One" = "deny"')
    settings = Settings.load(file, {})
    async with guarded("who", settings) as guard:
        assert guard is not None
        ann = Identity("ann", roles=frozenset({"buyer"}))
        with pytest.raises(PermissionDenied):
            guard.access.check(method(), ann)
        file.write_text(start + '"lab.Who/One" = "authenticated"')
        await until(lambda: "access.rules.lab.Who/One deny -> authenticated" in caplog.text)
        guard.access.check(method(), ann)


async def test_another_file_of_rules(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    """When the settings name another file its rules hold, and it is followed; one that is not there changes nothing."""
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    for name, rule in (("a", "public"), ("b", "deny")):
        (tmp_path / f"{name}.toml").write_text(f'[rules]\n"*" = "{rule}"')
    file = tmp_path / "framework.toml"
    start = f'[auth.internal]\nsecret = "{SECRET}"\n[access]\n'
    file.write_text(start + 'file = "a.toml"')
    async with guarded("who", Settings.load(file, {})) as guard:
        assert guard is not None
        monkeypatch.chdir("/")
        held = guard.access.held(method())
        assert (held.public, held.origin) == (True, "a.toml")
        file.write_text(start + 'file = "none.toml"')
        await until(lambda: "none.toml cannot be read: No such file or directory; the rules stay" in caplog.text)
        assert (held.public, held.origin) == (True, "a.toml")
        file.write_text(start + 'file = "b.toml"')
        await until(lambda: held.origin == "b.toml")
        assert not held.public
        (tmp_path / "b.toml").write_text('[rules]\n"*" = "public"\n')
        await until(lambda: held.public)
        file.write_text(start + 'default = "deny"')
        await until(lambda: held.origin == "access.default")
        assert not held.public


@pytest.mark.parametrize(
    ("auth", "access", "expected"),
    [
        ({"jwt": {"audience": "a"}}, {}, "auth.jwt.issuer is missing"),
        ({"jwt": {"issuer": "a"}}, {}, "auth.jwt.audience is missing"),
        ({"jwt": {"issuer": "a", "audience": "a"}}, {}, "auth.jwt.algorithms is missing"),
        ({"jwt": {"issuer": "a", "audience": "a", "algorithms": "RS256"}}, {}, "auth.jwt takes the keys of the issuer"),
        (
            {"jwt": {"issuer": "a", "audience": "a", "algorithms": "RS256", "jwks": "http://login.test/keys"}},
            {},
            "auth.jwt.jwks is http://login.test/keys: whoever is between could put in keys of their own",
        ),
        (
            {"jwt": {"issuer": "a", "audience": "a", "algorithms": "RS256", "key": "none.pem"}},
            {},
            "none.pem cannot be read: No such file",
        ),
        ({"keys": "none.toml"}, {}, "none.toml cannot be read: No such file"),
        ({"internal": {"secret": "short"}}, {}, "auth.internal.secret is shorter than 32 bytes"),
        ({"internal": {"secret": "a" * 32, "key": "a"}}, {}, "auth.internal has a shared `secret`, and"),
        ({"internal": {"previous": "a" * 32}}, {}, "auth.internal.previous counts beside `secret`"),
        ({"internal": {"lifetime": "30s"}}, {}, "auth.internal.secret is missing or empty"),
        ({"internal": {"secret": ""}}, {}, "auth.internal.secret is missing or empty"),
        ({"internal": {}}, {}, "auth.internal.secret is missing or empty"),
        ({"jwt": {"roles": "groups"}}, {}, "auth.jwt.issuer is missing"),
        ({"jwt": {"leeway": "30s"}}, {}, "auth.jwt.issuer is missing"),  # what it is anyway
        ({"keys": ""}, {}, "auth.keys is empty"),
        ({"internal": {"trusted": "none"}}, {}, "auth.internal.trusted is none, which is no folder"),
        ({"authenticators": "none.such:X"}, {}, "auth.authenticators: there is no module none.such"),
        ({"authenticators": "framework.call:X"}, {}, "auth.authenticators: framework.call has no X"),
        ({"authenticators": "framework.call:Call.get"}, {}, "auth.authenticators: framework.call:Call.get is no authe"),
        ({}, {"rules": {"*": "deny"}}, "[access] says who may call, and nothing says how callers are known"),
        ({}, {"default": "authenticated"}, "[access] says who may call, and nothing says how callers are known"),
        ({}, {"health": "deny"}, "[access] says who may call, and nothing says how callers are known"),
        ({}, {"default": "public", "reflection": "deny"}, "[access] says who may call, and nothing says how"),
        ({}, {"reflection": "authenticated"}, "[access] says who may call, and nothing says how callers are known"),
        ({"internal": {"secret": "a" * 32}}, {"file": "none.toml"}, "none.toml cannot be read"),
        ({"mtls": "spiffe://shop/{service}"}, {}, "auth.mtls goes by the certificates of callers, and nothing asks"),
    ],
)
async def test_mistakes(auth: Any, access: Any, expected: str) -> None:
    """One line says what is wrong in the settings, and what to write; a secret is not in it."""
    settings = Settings(auth=AuthSettings.parse(auth, "auth"), access=AccessSettings.parse(access, "access"))
    with pytest.raises(ConfigError) as caught:
        async with guarded("who", settings):
            pass
    assert str(caught.value).startswith(expected)
    assert "aaaa" not in str(caught.value)


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        ({"jwt": {"algorithms": ["none"]}}, "auth.jwt.algorithms has 'none', which is not allowed"),
        ({"jwt": {"algorithms": ["HS256"]}}, "auth.jwt.algorithms has HS256: who can check such a token can make one"),
        ({"jwt": {"jwks": "ftp://a"}}, "auth.jwt.jwks is 'ftp://a'; it must be an http or https URL"),
        ({"jwt": {"secret": "a"}}, "auth.jwt.secret is not a setting"),
        ({"mtls": "spiffe://shop"}, "auth.mtls is 'spiffe://shop'; write how SPIFFE ids name a service"),
        ({"internal": {"lifetime": "1h"}}, "auth.internal.lifetime is '1h'; it must be from 2s to 1m"),
        ({"authenticators": "shop"}, "auth.authenticators has 'shop', which is no module:object"),
    ],
)
def test_settings(tables: Any, expected: str) -> None:
    """Values that cannot be used are refused when they are read."""
    with pytest.raises(ConfigError) as caught:
        AuthSettings.parse(tables, "auth")
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    "access", [{}, {"default": "public"}, {"health": "public", "reflection": "public"}], ids=["", "default", "each"]
)
async def test_open_to_everybody(access: dict[str, Any]) -> None:
    """What keeps nobody from anything takes no authentication."""
    async with guarded("who", Settings(access=AccessSettings.parse(access, "access"))) as guard:
        assert guard is None


async def test_made_in_code() -> None:
    """Settings made in code are as much of a mistake without what they need; those that say nothing are none."""
    async with guarded("who", Settings(auth=AuthSettings(mtls=""))) as guard:
        assert guard is None
    with pytest.raises(ConfigError, match=r"auth.internal.secret is missing or empty"):
        async with guarded("who", Settings(auth=AuthSettings(internal=InternalSettings(lifetime=30.0)))):
            pass


async def test_a_secret_that_is_empty_in_the_environment(tmp_path: Path) -> None:
    """A variable that is set to nothing opens nothing."""
    file = tmp_path / "framework.toml"
    file.write_text("")
    settings = Settings.load(file, {"FRAMEWORK_AUTH_INTERNAL_SECRET": ""})
    with pytest.raises(ConfigError, match=r"auth.internal.secret is missing or empty"):
        async with guarded("who", settings):
            pass


def test_environment(tmp_path: Path) -> None:
    """The environment may say it too: secrets need not be in a file, and are not shown."""
    file = tmp_path / "framework.toml"
    file.write_text("")
    environ = {"FRAMEWORK_AUTH_INTERNAL_SECRET": SECRET, "FRAMEWORK_ACCESS_HEALTH": "authenticated"}
    settings = Settings.load(file, environ)
    assert settings.auth.internal.secret.reveal() == SECRET
    assert SECRET not in repr(settings)
    assert [str(rule) for rule in settings.access.health] == ["authenticated"]


async def test_a_rule_for_a_method_that_is_not_there(network: Network, tmp_path: Path) -> None:
    """A service does not start with a rule for a method that it does not have; rules for other services are theirs."""
    network.add(service("who", Who(), settings_of(tmp_path, rules={"lab.Who/Onee": "public", "lab.Else/X": "public"})))
    with pytest.raises(ConfigError, match=r"there is a rule for lab.Who/Onee, which lab.Who does not have. Did you"):
        await ask(network.connect("who"))
    with pytest.raises(ConfigError):
        await network.aclose()
    network._hosted.clear()


async def test_over_grpc(tmp_path: Path) -> None:
    """On a real connection: health is for everybody, reflection for those who are known."""
    from framework.cli.call import health_method
    from framework.client.stub import UnaryReply
    from framework.reflection import Reflection

    settings = dataclasses.replace(settings_of(tmp_path), registry="none", server=ServerSettings(drain=QUICK_DRAIN))
    async with service("who", Who(), settings).running(settings) as server:
        health = health_method()
        async with connect(server.address, settings=Settings()) as channel:
            reply: Any = await UnaryReply(channel.bind(health), health, health.request())
            assert reply.status == 1
            assert await ask(channel, metadata=bearer(token())) == "ann by jwt from -"
            with pytest.raises(Unauthenticated, match="credentials are needed"):
                await Reflection(channel).services()
            with pytest.raises(Unauthenticated):
                await ask(channel)
