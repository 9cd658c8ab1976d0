"""Rules of `buf/validate/validate.proto`, on a server, behind a gateway and in a chain."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import message_factory
from google.rpc.error_details_pb2 import BadRequest

import framework
from framework import Call, ConfigError, InvalidArgument, Method, Service, Settings, StreamReply
from framework.config import ServerSettings
from framework.gateway import Gateway
from framework.options import method_of
from framework.security.rules import has_rules
from framework.security.validation import checker, validating
from framework.testing import Network
from tests.gateway.lab import Shop, pool, town
from tests.http.lab import compile_text

RULES = """
syntax = "proto3";
package lab;
import "buf/validate/validate.proto";
import "google/api/annotations.proto";

service Shop {
  rpc Get(Thing) returns (Thing) { option (google.api.http) = { get: "/v1/things/{name}" }; }
  rpc Buy(Thing) returns (Thing) { option (google.api.http) = { post: "/v1/things" body: "*" }; }
  rpc Watch(Thing) returns (stream Thing) { option (google.api.http) = { get: "/v1/things/{name}:watch" }; }
  rpc Talk(stream Thing) returns (stream Thing) { option (google.api.http) = { post: "/v1/talk" body: "*" }; }
}

message Thing {
  string name = 1 [(buf.validate.field).string = {min_len: 1 max_len: 20}];
  int32 number = 2 [(buf.validate.field).int32 = {gte: 0 lt: 100}];
  map<string, int32> sizes = 3 [(buf.validate.field).map.values.int32.gt = 0];
  repeated Thing parts = 4;
}
"""


@cache
def thing() -> Any:
    """The message class."""
    return message_factory.GetMessageClass(pool(RULES).FindMessageTypeByName("lab.Thing"))


def violations(error: InvalidArgument) -> list[tuple[str, str, str]]:
    """Field, description and reason of each."""
    [details] = error.details
    assert isinstance(details, BadRequest)
    return [(one.field, one.description, one.reason) for one in details.field_violations]


async def _handler(call: Call) -> Any:
    return call.request


def test_every_violation_is_told() -> None:
    """The first is the message; all are details, with the path of the field, in lists and maps too."""
    with pytest.raises(InvalidArgument) as caught:
        checker(thing())(thing()(name="x", number=100, sizes={"a b": 0}, parts=[{"name": "y"}, {}]))
    assert violations(caught.value) == [
        ("number", "must be greater than or equal to 0 and less than 100", "INT32_GTE_LT"),
        ('sizes["a b"]', "must be greater than 0", "INT32_GT"),
        ("parts[1].name", "must be at least 1 characters", "STRING_MIN_LEN"),
    ]
    assert caught.value.message == "number: must be greater than or equal to 0 and less than 100 (and 2 more)"


def test_a_large_request_of_nothing_but_mistakes_is_cheap_to_refuse() -> None:
    """Beyond a size one violation is enough; every one of a million would take a minute."""
    wrong = thing()(name="x", parts=[{}] * 50_000)
    check = checker(thing())
    start = time.process_time()
    with pytest.raises(InvalidArgument) as caught:
        check(wrong)
    assert len(violations(caught.value)) == 1
    assert time.process_time() - start < 1.0


def test_a_small_request_tells_no_more_violations_than_anybody_reads() -> None:
    """Twenty of them; the message has their number."""
    with pytest.raises(InvalidArgument) as caught:
        checker(thing())(thing()(name="x", parts=[{}] * 100))
    assert len(violations(caught.value)) == 20
    assert caught.value.message.endswith("(and 99 more)")


def test_messages_without_rules_cost_nothing() -> None:
    """The handler of their methods stays as it is; one that may hold a message with rules is looked at."""
    plain = compile_text('syntax = "proto3"; package p; message Plain { Plain inner = 1; string text = 2; }')
    nested = compile_text(
        'syntax = "proto3"; package p; import "buf/validate/validate.proto";'
        "message Outer { map<string, Inner> inner = 1; }"
        "message Inner { oneof one { option (buf.validate.oneof).required = true; string text = 2; } }"
    )
    kind: Any = message_factory.GetMessageClass(plain.FindMessageTypeByName("p.Plain"))
    assert validating()(Method("p.S", "Get", kind, kind), _handler) is _handler
    assert has_rules(nested.FindMessageTypeByName("p.Outer"))


async def test_every_arity_on_a_server(network: Network) -> None:
    """A wrong message is refused before a handler has it, the second of a stream too."""
    servicer = Shop(RULES)
    get, buy, watch, talk = (method_of(one) for one in pool(RULES).FindServiceByName("lab.Shop").methods)
    network.add(Service("shop", servicers=[servicer]))
    channel = network.connect("shop")
    right, wrong = thing()(name="x"), thing()(number=1)
    expected = [("name", "must be at least 1 characters", "STRING_MIN_LEN")]
    for method in (get, buy):
        assert (await channel.bind(method)(Call(method, right))).name == "x"
        with pytest.raises(InvalidArgument) as caught:
            await channel.bind(method)(Call(method, wrong))
        assert expected == violations(caught.value)
    with pytest.raises(InvalidArgument) as caught:
        await channel.bind(watch)(Call(watch, wrong))
    assert expected == violations(caught.value)
    replies: StreamReply[Any] = await channel.bind(talk)(Call(talk, [right, wrong]))
    assert (await anext(replies)).number == 1
    with pytest.raises(InvalidArgument) as caught:
        await anext(replies)
    assert expected == violations(caught.value)


async def test_it_can_be_turned_off(network: Network) -> None:
    """`validate = false`, for a service that looks for itself."""
    buy = method_of(pool(RULES).FindServiceByName("lab.Shop").methods_by_name["Buy"])
    settings = Settings(server=ServerSettings(validate=False))
    network.add(Service("shop", servicers=[Shop(RULES)], settings=settings))
    assert (await network.connect("shop").bind(buy)(Call(buy, thing()(number=1000)))).number == 1000


async def test_a_gateway_refuses_before_a_service_is_called(tmp_path: Path) -> None:
    """On every protocol and arity, with descriptors that it learnt by reflection; the service need not check."""
    async with town(tmp_path) as here:
        careless = Settings(registry="none", server=ServerSettings(validate=False))
        servicer, _ = await here.add("shop", RULES, settings=careless)
        client = await here.client(await here.gateway(gateway=Gateway()))
        refused = await client.post("/v1/things", json={"name": "x", "number": 100})
        assert refused.status_code == 400
        [detail] = refused.json()["details"]
        assert detail["fieldViolations"] == [
            {
                "field": "number",
                "description": "must be greater than or equal to 0 and less than 100",
                "reason": "INT32_GTE_LT",
            }
        ]
        assert (await client.get("/v1/things/x", params={"number": -1})).status_code == 400
        assert (await client.get(f"/v1/things/{'x' * 21}:watch")).status_code == 400
        assert not servicer.entered.is_set()
        assert (await client.post("/v1/things", json={"name": "x", "number": 99})).status_code == 200
        connect = await client.post("/lab.Shop/Buy", json={}, headers={"connect-protocol-version": "1"})
        assert (connect.status_code, connect.json()["code"]) == (400, "invalid_argument")
        talk = await client.post("/v1/talk", content='{"name":"x"}\n{"name":""}\n')
        assert '"code":3,"message":"name: must be at least 1 characters"' in talk.text.splitlines()[-1]


def test_rules_that_do_not_compile_are_a_mistake_in_the_setup() -> None:
    """A server says which message it is about, in one line, when it starts."""
    broken = compile_text(
        'syntax = "proto3"; package p; import "buf/validate/validate.proto";'
        'message Odd { int32 a = 1 [(buf.validate.field).cel = {id: "x" expression: "this +"}]; }'
    )
    kind: Any = message_factory.GetMessageClass(broken.FindMessageTypeByName("p.Odd"))
    with pytest.raises(ConfigError, match=r"^the rules of p\.Odd cannot be used: "):
        validating()(Method("p.S", "Get", kind, kind), _handler)


def test_without_the_library_a_server_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rules that nothing checks would be a surprise; where others check them, as behind a gateway, the log tells."""
    monkeypatch.setitem(sys.modules, "protovalidate", None)
    method: Method[Any, Any] = Method("lab.Shop", "Get", thing(), thing())
    told = "lab.Thing has rules of buf.validate, and nothing here checks them: pip install framework-grpc[security]"
    with pytest.raises(ConfigError) as caught:
        validating()(method, _handler)
    assert f"{told}, or set validate = false" == str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert validating(required=False)(method, _handler) is _handler
    assert [told] == caplog.messages


GENERATED = """
import sys
sys.modules["protovalidate"] = None  # not installed
from shop.v1 import shop_pb2
from google.protobuf import descriptor_pool
field = shop_pb2.Thing.DESCRIPTOR.fields_by_name["name"]
extension = descriptor_pool.Default().FindExtensionByName("buf.validate.field")
print(field.GetOptions().Extensions[extension].string.min_len)
"""


def test_the_rules_are_found_without_a_copy(tmp_path: Path) -> None:
    """`framework generate` finds buf/validate; what it makes imports without protovalidate."""
    proto = tmp_path / "protos/shop/v1/shop.proto"
    proto.parent.mkdir(parents=True)
    proto.write_text(
        'syntax = "proto3"; package shop.v1; import "buf/validate/validate.proto";'
        "message Thing { string name = 1 [(buf.validate.field).string.min_len = 3]; }"
    )
    root = Path(framework.__file__).parent.parent
    printed = ""
    for command in (["-m", "framework", "generate", "protos", "--out", "src"], ["-c", GENERATED]):
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={"PYTHONPATH": f"{root}:{tmp_path / 'src'}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ran.returncode, ran.stderr) == (0, "")
        printed = ran.stdout
    assert printed == "3\n"
