"""Who may call what: rules, which of them holds, and what a file may change."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from framework.access import AccessSettings, rules, rules_declared
from framework.call import Call, Method, Reply
from framework.errors import ConfigError, PermissionDenied, RpcError, Unauthenticated
from framework.identity import Identity
from framework.security.access import Access, Policy, read

ANN = Identity("ann", "jwt", roles=frozenset({"buyer"}), scopes=frozenset({"read", "write"}))
VIA_ORDERS = Identity("ann", "jwt", roles=frozenset({"buyer"}), service="orders")
NOBODY_VIA_ORDERS = Identity("", "anonymous", service="orders")

WHO = {"ann": ANN, "ann through orders": VIA_ORDERS, "nobody through orders": NOBODY_VIA_ORDERS, "nobody": None}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("public", {"ann", "ann through orders", "nobody through orders", "nobody"}),
        ("authenticated", {"ann", "ann through orders"}),
        ("deny", set()),
        ({"roles": ["buyer"]}, {"ann", "ann through orders"}),
        ({"roles": "buyer, seller"}, {"ann", "ann through orders"}),
        ({"roles": ["seller"]}, set()),
        ({"scopes": ["read"]}, {"ann"}),
        ({"scopes": ["read", "delete"]}, set()),
        ({"services": ["orders"]}, {"ann through orders", "nobody through orders"}),
        ({"services": ["orders"], "roles": ["buyer"]}, {"ann through orders"}),
        ({"subjects": ["ann"]}, {"ann", "ann through orders"}),
        ({"subjects": ["bob"]}, set()),
        ([{"roles": ["seller"]}, {"services": ["orders"]}], {"ann through orders", "nobody through orders"}),
        ([], set()),
    ],
)
def test_rules(said: Any, expected: set[str]) -> None:
    """A rule allows whoever meets all that it names, and several whoever one of them allows."""
    found = rules(said, "rule")
    assert expected == {name for name, who in WHO.items() if any(rule.allows(who) for rule in found)}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("everybody", "rule is 'everybody'; write public, authenticated, deny, or who may: { roles = [\"buyer\"] }"),
        (5, 'rule is 5; write public, authenticated, deny, or who may: { roles = ["buyer"] }'),
        ({"role": ["a"]}, "rule.role is no condition. Did you mean roles?"),
        ({}, 'rule names nobody; write "deny" for that, or "authenticated" for every known caller'),
        ({"roles": []}, 'rule.roles names nobody; write "deny" for that, or "authenticated" for every known caller'),
        ({"roles": [5]}, "rule.roles is [5]; it must be a list of texts"),
        ({"roles": ["a b"]}, "rule.roles has 'a b', which is no name"),
        (["public", "nobody"], "rule is 'nobody'; write public"),
    ],
)
def test_mistakes_in_rules(said: Any, expected: str) -> None:
    """What is no rule is refused, by name; an empty one would allow more than it seems to."""
    with pytest.raises(ConfigError) as caught:
        rules(said, "rule")
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize("pattern", ["", "shop", "shop.v1.Orders", "*.Orders", "shop.v1.Orders/Place*", "a b/*", "/"])
def test_mistakes_in_patterns(pattern: str) -> None:
    """What names no method, service or package is refused."""
    with pytest.raises(ConfigError, match="which is no method; write"):
        AccessSettings.parse({"rules": {pattern: "public"}}, "access")


DECLARED = ({"roles": ["declared"]},)


@pytest.mark.parametrize(
    ("patterns", "declared", "expected"),
    [
        (["a.b.C/M", "a.b.C/*", "a.b.*", "a.*", "*"], DECLARED, "a.b.C/M"),
        (["a.b.C/*", "a.b.*", "a.*", "*"], DECLARED, "declared"),
        (["a.b.C/*", "a.b.*", "a.*", "*"], (), "a.b.C/*"),
        (["a.b.*", "a.*", "*"], (), "a.b.*"),
        (["a.*", "*"], (), "a.*"),
        (["*"], (), "*"),
        (["a.b.D/*", "a.b.C.*", "ab.*"], (), "deny"),
    ],
)
def test_the_most_specific_rule_holds(patterns: list[str], declared: Any, expected: str) -> None:
    """A method before the proto, the proto before a service, that before packages, and those before everything."""
    settings = AccessSettings.parse({"rules": {one: {"roles": [_role(one)]} for one in patterns}}, "access")
    found, _ = Policy(settings).rules_of("a.b.C/M", declared)
    assert [f"role {_role(expected)}"] == [str(rule) for rule in found] or (expected == "deny" and found == ())


def _role(pattern: str) -> str:
    return pattern.replace("*", "all")


@pytest.mark.parametrize(
    ("said", "closed", "expected"),
    [
        ({}, False, "authenticated"),
        ({}, True, "deny"),
        ({"rules": {"x.Y/Z": "public"}}, False, "deny"),
        ({"rules": {"x.Y/Z": "public"}, "default": "authenticated"}, True, "authenticated"),
        ({"default": "public"}, False, "public"),
        ({"default": "deny"}, False, "deny"),
    ],
)
def test_methods_without_a_rule(said: Any, closed: bool, expected: str) -> None:
    """They are denied once there is any rule, and need a known caller before; the settings may say otherwise."""
    found, _ = Policy(AccessSettings.parse(said, "access"), closed=closed).rules_of("a.B/C")
    assert rules(expected, "") == found


@pytest.mark.parametrize(
    ("method", "said", "expected"),
    [
        ("grpc.health.v1.Health/Check", {}, "public"),
        ("grpc.health.v1.Health/Check", {"health": "authenticated"}, "authenticated"),
        ("grpc.health.v1.Health/Check", {"rules": {"*": "deny"}}, "public"),
        ("grpc.health.v1.Health/Check", {"rules": {"grpc.health.v1.Health/*": "deny"}}, "deny"),
        ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", {}, "authenticated"),
        ("grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", {"reflection": "public"}, "public"),
    ],
)
def test_health_and_reflection(method: str, said: Any, expected: str) -> None:
    """Everybody may ask for health, and everybody who is known what there is; settings say so by name."""
    whole = {"rules": {"a.B/C": "public"}, **said}
    found, _ = Policy(AccessSettings.parse(whole, "access")).rules_of(method)
    assert rules(expected, "") == found


def test_declared() -> None:
    """A proto says it in the same words; one that says everybody and somebody at once is refused."""
    assert rules_declared(({"public": True},)) == rules("public", "")
    assert rules_declared(({"authenticated": True},)) == rules("authenticated", "")
    assert rules_declared(({"roles": ["a"], "scopes": ["b"]},)) == rules({"roles": ["a"], "scopes": ["b"]}, "")
    for wrong in ({"public": True, "roles": ["a"]}, {}):
        with pytest.raises(ConfigError, match=r"\(framework.method\).access"):
            rules_declared((wrong,))


def declaring(name: str = "M", **said: Any) -> Method[Any, Any]:
    """A method whose proto says who may call it."""
    return Method("a.b.C", name, object, object, access=(said,) if said else ())


def access(said: Any = None) -> Access:
    """Access by settings."""
    return Access(AccessSettings.parse(said or {}, "access"), missing=lambda: Unauthenticated("who are you?"))


async def tried(access: Access, method: Method[Any, Any], identity: Identity | None) -> type[RpcError] | None:
    """What a call ends with."""

    async def handler(call: Call) -> Reply:
        return "reply"

    call = Call(method, None)
    call.identity = identity
    try:
        await access.interceptor(method, handler)(call)
    except RpcError as error:
        return type(error) if "buyer" not in error.message else None
    return None


async def test_statuses() -> None:
    """Nobody is asked who they are; who is known and may not is told so; neither is told what it would take."""
    rule = access({"rules": {"a.b.C/M": {"roles": ["buyer"]}, "a.b.C/N": "deny", "a.b.C/O": "public"}})
    eve = Identity("eve", "jwt")
    assert await tried(rule, declaring("M"), None) is Unauthenticated
    assert await tried(rule, declaring("M"), NOBODY_VIA_ORDERS) is Unauthenticated
    assert await tried(rule, declaring("M"), eve) is PermissionDenied
    assert await tried(rule, declaring("M"), ANN) is None
    assert await tried(rule, declaring("N"), None) is PermissionDenied
    assert await tried(rule, declaring("N"), ANN) is PermissionDenied
    assert await tried(rule, declaring("O"), None) is None
    assert await tried(rule, declaring("P"), ANN) is PermissionDenied


def test_a_flood_of_calls_that_may_not(caplog: pytest.LogCaptureFixture) -> None:
    """The log tells of a few each second, and how many there were besides."""
    caplog.set_level(logging.INFO)
    seconds = [7.0]
    settings = AccessSettings(default="deny")
    rule = Access(settings, missing=lambda: Unauthenticated("who are you?"), now=lambda: seconds[0])
    for at in (7.0, 8.0):
        seconds[0] = at
        for _ in range(1000):
            with pytest.raises(PermissionDenied):
                rule.check(declaring(), ANN)
    lines = [record.getMessage() for record in caplog.records]
    told = f"{ANN} may not call a.b.C/M: nobody may"
    expected = [told] * 10 + [f"{told} (990 more since the last line)"] + [told] * 9
    assert expected == lines


async def test_one_declared_rule_closes_the_rest() -> None:
    """Once one proto says who may call a method, those that say nothing are denied, bound before it or after."""
    rule = access()
    before, after = declaring("Before"), declaring("After")
    assert await tried(rule, before, ANN) is None
    assert await tried(rule, declaring("M", roles=["buyer"]), ANN) is None
    assert await tried(rule, before, ANN) is PermissionDenied
    assert await tried(rule, after, ANN) is PermissionDenied


async def test_replaced() -> None:
    """Other rules hold from the next call on; ones that cannot be used change nothing."""
    rule = access({"rules": {"a.b.C/M": {"roles": ["seller"]}}})
    assert await tried(rule, declaring("M"), ANN) is PermissionDenied
    rule.apply(AccessSettings.parse({"rules": {"a.b.C/M": {"roles": ["buyer"]}}}, "access"))
    assert await tried(rule, declaring("M"), ANN) is None
    with pytest.raises(ConfigError, match=r"^there is a rule for a.b.C/N, which a.b.C does not have. There are: M$"):
        rule.apply(AccessSettings.parse({"rules": {"a.b.C/N": "public"}}, "access"))
    assert await tried(rule, declaring("M"), ANN) is None
    assert repr(rule) == "<Access with 1 rules for 1 methods>"


def test_file(tmp_path: Path) -> None:
    """A file has rules in the same words; mistakes in it name the file."""
    file = tmp_path / "access.toml"
    file.write_text('[rules]\n"a.B/C" = "public"\n')
    assert dict(read(file)) == {"a.B/C": rules("public", "")}
    for text, expected in (
        ("[rules", "Expected"),
        ('[rule]\n"a.B/C" = "public"', "rule is not a setting. Did you mean rules?"),
        ('[rules]\n"a.B/C" = "all"', "rules.\"a.B/C\" is 'all'; write public"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            read(file)
        assert str(caught.value).startswith(f"{file}: {expected}")
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "none.toml")
