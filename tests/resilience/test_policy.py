"""How a method is called: what its settings, its proto and those of the service say, in this order."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

from framework import ClientSettings, ConfigError, MethodSettings, Settings
from framework.call import Idempotency, Method
from framework.client.channel import ServiceChannel
from framework.client.pool import Pool
from framework.errors import Code
from framework.policy import (
    FAILURES,
    BackoffSettings,
    BreakerSettings,
    BudgetSettings,
    BulkheadSettings,
    HedgeSettings,
    KeepaliveSettings,
    OutlierSettings,
    RetrySettings,
    policy_of,
)
from tests.client.simulation import FakeTransport
from tests.client.test_pool import Told

ARITIES: dict[str, Any] = {
    "unary": {},
    "download": {"server_streaming": True},
    "upload": {"client_streaming": True},
    "chat": {"client_streaming": True, "server_streaming": True},
}


def method(
    arity: str = "unary", *, options: dict[str, Any] | None = None, idempotent: bool = True, **fields: Any
) -> Any:
    """A method as its proto declares it."""
    level = Idempotency.IDEMPOTENT if idempotent else Idempotency.UNKNOWN
    return Method("shop.Catalog", "Get", str, str, idempotency=level, options=options or {}, **ARITIES[arity], **fields)


def own(**settings: Any) -> ClientSettings:
    """Settings of the service that say this about the method."""
    return ClientSettings(methods={"Get": MethodSettings(**settings)})


def load(path: Path, content: str, **environ: str) -> ClientSettings:
    """The settings for `catalog` of a file and an environment."""
    file = path / "framework.toml"
    file.write_text(content, encoding="utf-8")
    return Settings.load(file, environ).client_for("catalog")


def mistake(path: Path, content: str, **environ: str) -> str:
    """What is said of a mistake."""
    with pytest.raises(ConfigError) as caught:
        load(path, content, **environ)
    return str(caught.value).replace(f"{path / 'framework.toml'}: ", "")


def test_defaults() -> None:
    """Nothing has to be said: three attempts, a hedge for 2%, a bulkhead of 1000, a breaker."""
    policy = policy_of(method(), ClientSettings())
    assert (policy.timeout, policy.idle, policy.attempt_timeout) == (10.0, None, None)
    assert policy.retry == RetrySettings(3, FAILURES, BackoffSettings(0.1, 2.0, 1.0))
    assert policy.hedge == HedgeSettings(0.02, None, 2)
    assert policy.bulkhead == BulkheadSettings(1000, 1000)
    assert (policy.idempotent, policy.breaker, policy.criticality) == (True, True, None)


def test_defaults_of_the_service() -> None:
    """Those of the sources: A6, A50, Finagle and Linkerd."""
    settings = ClientSettings()
    assert settings.retry_budget == BudgetSettings(ratio=0.2, per_second=10, ttl=10)
    assert settings.breaker == BreakerSettings(
        consecutive=5, failure_rate=0.5, minimum=20, window=10, open=5, open_max=300, probes=1, probe_wait=10
    )
    assert settings.outlier == OutlierSettings(
        interval=10, ejection=30, ejection_max=300, max_ejected=10, minimum_hosts=5, deviations=1.9,
        success_rate_calls=100, failure_percentage=85, failure_percentage_calls=50,
    )  # fmt: skip
    assert (settings.balancer, settings.subset, settings.keepalive) == ("peak_ewma", 1000, KeepaliveSettings(10, 5))


@pytest.mark.parametrize("arity", ARITIES)
@pytest.mark.parametrize("idempotent", [True, False])
def test_what_depends_on_the_arity(arity: str, idempotent: bool) -> None:
    """Streams of replies have no deadline of their own, no attempt timeout and no bulkhead, but are watched."""
    settings = ClientSettings(timeout=3, attempt_timeout=1, idle=7)
    policy = policy_of(method(arity, idempotent=idempotent), settings)
    one = arity in ("unary", "upload")
    assert (policy.timeout, policy.attempt_timeout) == ((3, 1) if one else (None, None))
    assert policy.idle == (None if one else 7)
    assert (policy.bulkhead is not None) == one
    assert (policy.hedge is not None) == (arity == "unary" and idempotent)
    assert policy.idempotent is idempotent


def test_idempotency() -> None:
    """What the proto says, unless the settings say otherwise; either way."""
    for level in (Idempotency.NO_SIDE_EFFECTS, Idempotency.IDEMPOTENT):
        assert policy_of(Method("a.A", "Get", str, str, idempotency=level), ClientSettings()).idempotent
    assert policy_of(method(idempotent=False), own(idempotent=True)).idempotent
    assert not policy_of(method(idempotent=True), own(idempotent=False)).idempotent
    assert policy_of(method(idempotent=True), own(idempotent=False)).hedge is None
    assert policy_of(method(idempotent=False, options={"idempotent": True}), ClientSettings()).hedge is not None


@pytest.mark.parametrize(
    ("name", "mine", "proto", "service", "default"),
    [
        ("retry", RetrySettings(attempts=5), {"attempts": 4}, RetrySettings(attempts=2), RetrySettings()),
        ("hedge", HedgeSettings(attempts=5), {"attempts": 4}, HedgeSettings(attempts=3), HedgeSettings()),
        ("bulkhead", BulkheadSettings(5), {"calls": 4}, BulkheadSettings(3), BulkheadSettings()),
        ("attempt_timeout", 5.0, "4s", 3.0, None),
    ],
)
def test_order_of_say(name: str, mine: Any, proto: Any, service: Any, default: Any) -> None:
    """The method's own settings, then its proto, then the service, then what holds for everybody."""
    parsed = {"retry": RetrySettings(attempts=4), "hedge": HedgeSettings(attempts=4), "bulkhead": BulkheadSettings(4)}
    told, plain = method(options={name: proto}), method()
    everything = ClientSettings(**{name: service}, methods={"Get": MethodSettings(**{name: mine})})
    assert getattr(policy_of(told, everything), name) == mine
    assert getattr(policy_of(told, ClientSettings(**{name: service})), name) == parsed.get(name, 4.0)
    assert getattr(policy_of(plain, ClientSettings(**{name: service})), name) == service
    assert getattr(policy_of(plain, ClientSettings()), name) == default


def test_order_of_say_about_the_timeout() -> None:
    """The same, with the field that the method has for it."""
    told = method(timeout=4.0)
    assert policy_of(told, ClientSettings(timeout=3, methods={"Get": MethodSettings(timeout=5)})).timeout == 5
    assert policy_of(told, ClientSettings(timeout=3)).timeout == 4
    assert policy_of(method(), ClientSettings(timeout=3)).timeout == 3
    assert policy_of(method("download", timeout=4.0), ClientSettings(timeout=3)).timeout == 4


def test_order_of_say_about_single_values() -> None:
    """Also where only the method or its proto has a say."""
    told = method("download", options={"idle": "4s", "breaker": False, "criticality": "SHEDDABLE"})
    proto = policy_of(told, ClientSettings(idle=3))
    assert (proto.idle, proto.breaker, proto.criticality) == (4.0, False, "SHEDDABLE")
    mine = policy_of(told, own(idle=5.0, breaker=True, criticality="CRITICAL_PLUS"))
    assert (mine.idle, mine.breaker, mine.criticality) == (5.0, True, "CRITICAL_PLUS")


def test_for_ever() -> None:
    """What the method says to be endless is so, whatever the service says."""
    settings = ClientSettings(attempt_timeout=1, idle=1, methods={"Get": MethodSettings(attempt_timeout=math.inf)})
    assert policy_of(method(), settings).attempt_timeout is None
    assert (
        policy_of(method("download"), ClientSettings(idle=1, methods={"Get": MethodSettings(idle=math.inf)})).idle
        is None
    )
    assert policy_of(method("download", options={"idle": "none"}), ClientSettings(idle=1)).idle is None


def test_nested_table_of_the_proto_is_over_the_service() -> None:
    """What it leaves out is as for the service."""
    service = ClientSettings(retry=RetrySettings(attempts=4, backoff=BackoffSettings(initial=0.5)))
    assert policy_of(method(options={"retry": {"attempts": 2}}), service).retry == RetrySettings(
        attempts=2, backoff=BackoffSettings(initial=0.5)
    )
    assert policy_of(method(options={"retry": {"backoff": {"maximum": "3s"}}}), service).retry == RetrySettings(
        attempts=4, backoff=BackoffSettings(initial=0.5, maximum=3)
    )


@pytest.mark.parametrize("service", [HedgeSettings(), HedgeSettings(delay=0.1), HedgeSettings(extra_load=0.5, delay=1)])
def test_hedging_off(service: HedgeSettings) -> None:
    """ "off" is off, whatever it is over."""
    assert policy_of(method(options={"hedge": "off"}), ClientSettings(hedge=service)).hedge is None
    parsed = ClientSettings.parse({"methods": {"Get": {"hedge": "off"}}}, "client", ClientSettings(hedge=service))
    assert policy_of(method(), parsed).hedge is None
    assert (
        policy_of(method(), ClientSettings.parse({"hedge": "off"}, "client", ClientSettings(hedge=service))).hedge
        is None
    )


def test_everything_off(tmp_path: Path) -> None:
    """One word for each, for a service and for a method."""
    file = """
    [client.catalog]
    retry = "off"
    hedge = "off"
    bulkhead = "off"
    breaker = "off"
    outlier = "off"
    """
    settings = load(tmp_path, file)
    policy = policy_of(method(), settings)
    assert (policy.retry.attempts, policy.hedge, policy.bulkhead) == (1, None, None)
    assert (settings.breaker.consecutive, settings.breaker.failure_rate, settings.breaker.slow) == (0, 0, None)
    assert settings.outlier.max_ejected == 0
    off = load(
        tmp_path, '[client.catalog.methods.Get]\nretry = "off"\nhedge = "off"\nbulkhead = "off"\nbreaker = false'
    )
    policy = policy_of(method(), off)
    assert (policy.retry.attempts, policy.hedge, policy.bulkhead, policy.breaker) == (1, None, None, False)
    other = policy_of(Method("shop.Catalog", "Find", str, str, idempotency=Idempotency.IDEMPOTENT), off)
    assert (other.retry.attempts, other.breaker, other.hedge is None) == (3, True, False)


def test_file(tmp_path: Path) -> None:
    """A table of a service is over that of all, and one of a method over that of its service, name by name."""
    file = """
    [client]
    retry = { attempts = 5, backoff = { initial = "20ms" } }
    retry_budget = { ratio = 0.1 }
    hedge = { extra_load = 0.05 }

    [client.catalog]
    attempt_timeout = "2s"
    retry = { codes = ["UNAVAILABLE", "aborted"] }
    breaker = { consecutive = 3, slow = "500ms" }
    outlier = { max_ejected = 20 }
    keepalive = { interval = "20s" }
    subset = 25
    balancer = "least_loaded"

    [client.catalog.methods.Get]
    attempt_timeout = "none"
    idempotent = true
    criticality = "SHEDDABLE_PLUS"
    retry = { backoff = { maximum = "3s" } }
    hedge = { delay = "50ms" }
    """
    settings = load(tmp_path, file)
    assert settings.retry_budget == BudgetSettings(ratio=0.1)
    assert settings.breaker == BreakerSettings(consecutive=3, slow=0.5)
    assert (settings.outlier.max_ejected, settings.subset, settings.balancer) == (20, 25, "least_loaded")
    assert settings.keepalive == KeepaliveSettings(interval=20)
    policy = policy_of(method(idempotent=False), settings)
    codes = frozenset({Code.UNAVAILABLE, Code.ABORTED})
    assert policy.retry == RetrySettings(5, codes, BackoffSettings(initial=0.02, maximum=3))
    assert policy.hedge == HedgeSettings(extra_load=0.05, delay=0.05)
    assert (policy.attempt_timeout, policy.criticality) == (None, "SHEDDABLE_PLUS")
    other = policy_of(Method("shop.Catalog", "Find", str, str), settings)
    assert (other.attempt_timeout, other.retry.backoff.maximum) == (2.0, 1.0)


def test_environment(tmp_path: Path) -> None:
    """Every value can be set there, nested ones by their path; it is over the file, for every service."""
    settings = load(
        tmp_path,
        "[client.catalog]\nretry = { attempts = 4 }",
        FRAMEWORK_CLIENT_RETRY_ATTEMPTS="2",
        FRAMEWORK_CLIENT_RETRY_CODES="UNAVAILABLE,ABORTED",
        FRAMEWORK_CLIENT_RETRY_BACKOFF_INITIAL="50ms",
        FRAMEWORK_CLIENT_BREAKER_SLOW="none",
        FRAMEWORK_CLIENT_HEDGE_DELAY="20ms",
        FRAMEWORK_CLIENT_BALANCER="weighted",
    )
    codes = frozenset({Code.UNAVAILABLE, Code.ABORTED})
    assert settings.retry == RetrySettings(2, codes, BackoffSettings(initial=0.05))
    assert (settings.hedge.delay, settings.balancer) == (0.02, "weighted")


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("[client]\nretry = { attempts = 0 }", "client.retry.attempts is 0; it must be a whole number from 1 to 10"),
        ("[client]\nretry = 3", 'client.retry is 3; it must be a table, or "off"'),
        ('[client]\nretry = "no"', "client.retry is 'no'; it must be a table, or \"off\""),
        ('[client]\nretry_budget = "off"', "client.retry_budget is 'off'; it must be a table"),
        ("[client]\nretry = { atempts = 1 }", "client.retry.atempts is not a setting. Did you mean attempts?"),
        (
            '[client]\nretry = { codes = ["UNAVAILBLE"] }',
            "client.retry.codes has 'UNAVAILBLE', which is no code of a failure. Did you mean UNAVAILABLE?",
        ),
        (
            "[client]\nretry = { codes = 14 }",
            'client.retry.codes is 14; it must be a list of codes, for example ["UNAVAILABLE"]',
        ),
        (
            '[client]\nretry = { backoff = { initial = "2s" } }',
            "backoff.initial is 2s, more than backoff.maximum, 1s",
        ),
        (
            "[client.catalog.methods.Get]\nhedge = { attempts = 1 }",
            "client.catalog.methods.Get.hedge.attempts is 1; it must be a whole number from 2 to 10",
        ),
        (
            '[client.catalog.methods.Get]\nbreaker = "off"',
            "client.catalog.methods.Get.breaker is 'off'; it must be true or false",
        ),
        (
            '[client.catalog.methods.Get]\ncriticality = "HIGH"',
            "client.catalog.methods.Get.criticality is 'HIGH';"
            " choose one of CRITICAL_PLUS, CRITICAL, SHEDDABLE_PLUS, SHEDDABLE",
        ),
        ("[client.catalog]\nmethods = 3", "client.catalog.methods is 3; it must be a table"),
        ("[client.catalog.methods]\nGet = 3", "client.catalog.methods.Get is 3; it must be a table"),
        (
            '[client]\nbalancer = "random"',
            "client.balancer is 'random'; choose one of peak_ewma, least_loaded, round_robin, weighted",
        ),
        ("[client]\nsubset = 0", "client.subset is 0; it must be a whole number from 1 to 1000000"),
        ("[client]\nhedge = { extra_load = 0.6 }", "client.hedge.extra_load is 0.6; it must be a number from 0 to 0.5"),
        (
            '[client]\nkeepalive = { timeout = "10ms" }',
            "client.keepalive.timeout is '10ms'; it must be from 100ms to 1h",
        ),
        ('[client]\nattempt_timeout = "0s"', "client.attempt_timeout is '0s'; it must be more than 0"),
        ("[client]\nidle = 0", "client.idle is 0; it must be more than 0"),
        ("[client.catalog.methods.Get]\nidle = 0", "client.catalog.methods.Get.idle is 0; it must be more than 0"),
        ("[client]\nconnect_timeout = 0", "client.connect_timeout is 0; it must be from 10ms to 1h"),
        ('[client]\nconnect_timeout = "1000h"', "client.connect_timeout is '1000h'; it must be from 10ms to 1h"),
    ],
)
def test_mistakes(tmp_path: Path, file: str, said: str) -> None:
    """One line says where, what, and what it may be."""
    assert mistake(tmp_path, file) == said


def test_mistake_in_a_proto() -> None:
    """It names the method."""
    with pytest.raises(ConfigError) as caught:
        policy_of(method(options={"retry": {"attempts": 0}}), ClientSettings())
    assert str(caught.value) == (
        "the options of shop.Catalog/Get.retry.attempts is 0; it must be a whole number from 1 to 10"
    )


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (RetrySettings, "attempts", 0),
        (RetrySettings, "codes", frozenset({Code.OK})),
        (HedgeSettings, "extra_load", -0.1),
        (HedgeSettings, "delay", -1.0),
        (BulkheadSettings, "calls", -1),
        (MethodSettings, "attempt_timeout", -1.0),
        (MethodSettings, "idle", 0.0),
        (ClientSettings, "idle", 0.0),
        (ClientSettings, "connect_timeout", 0.0001),
        (ClientSettings, "connect_timeout", 3.6e6),
        (MethodSettings, "criticality", "HIGH"),
        (ClientSettings, "subset", 0),
        (ClientSettings, "balancer", "random"),
        (KeepaliveSettings, "interval", 0.0),
    ],
)
def test_settings_made_in_code(kind: Any, name: str, value: Any) -> None:
    """They are held to the same rules."""
    with pytest.raises(ConfigError, match=rf"^{kind.__name__}\.{name} (is|has) "):
        kind(**{name: value})


async def test_settings_that_do_not_fit_change_nothing() -> None:
    """A channel goes on as before when it is given settings that a method in use cannot go by."""
    before = ClientSettings()
    pool = Pool("catalog", Told(), lambda one: FakeTransport(), before, where="here", rng=random.Random(1))
    channel = ServiceChannel(pool, before)
    odd = method(options={"retry": {"backoff": {"initial": "500ms"}}})
    handler = channel.bind(odd)
    bad = ClientSettings(retry=RetrySettings(backoff=BackoffSettings(initial=0.1, maximum=0.2)), balancer="weighted")
    with pytest.raises(ConfigError, match=r"backoff.initial is 0.5s, more than backoff.maximum, 0.2s"):
        channel.apply(bad)
    assert channel.settings is before
    assert channel.bind(odd) is handler
    assert pool._settings is before
    await channel.close()
