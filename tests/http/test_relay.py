"""Which methods are passed on as bytes, and that they are."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from framework import Method
from framework.call import Call, Handler
from framework.http.app import HttpApp
from framework.http.methods import services_in
from tests.http.driver import ask
from tests.http.fuzz import target
from tests.http.fuzz_inputs import Seeds, input_of
from tests.http.lab import compile_text

PROTO = """
syntax = "proto2";
package relay;
import "framework/options.proto";
import "google/api/annotations.proto";
import "google/api/httpbody.proto";
import "google/protobuf/any.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/timestamp.proto";
message Flat { optional string text = 1; repeated Part parts = 2; map<string, Part> named = 3; }
message Part { optional int64 n = 1; optional google.protobuf.Timestamp at = 2; }
message Tree { repeated Tree children = 1; }
message Needed { required string text = 1; }
message Anything { optional google.protobuf.Any any = 1; }
message Open { extensions 100 to 200; }
message Loose { optional google.protobuf.Struct data = 1; }
message File { optional google.api.HttpBody body = 1; }
service Relay {
  rpc Flats(Flat) returns (Flat) {
    option (google.api.http) = { put: "/flats/{text}" body: "*" additional_bindings { get: "/flats" } };
  }
  rpc Watch(Flat) returns (stream Flat);
  rpc Upload(stream Flat) returns (Flat);
  rpc Cut(Flat) returns (Flat) { option (google.api.http) = { get: "/cut" response_body: "text" }; }
  rpc Make(Flat) returns (Flat) {
    option (google.api.http) = { post: "/flats" body: "*" };
    option (framework.http) = { status: 201 location: "/flats/{text}" };
  }
  rpc Trees(Flat) returns (Tree);
  rpc Grow(Tree) returns (Flat);
  rpc Need(Needed) returns (Flat);
  rpc Any(Flat) returns (Anything);
  rpc Opened(Open) returns (Flat);
  rpc Loosen(Loose) returns (Flat);
  rpc Read(Flat) returns (File);
}
"""
SERVICES = services_in(compile_text(PROTO), ["relay.Relay"])


class Peer:
    """Answers with the bytes of what it was asked, and remembers both."""

    def __init__(self) -> None:
        self.methods: dict[str, Method[Any, Any]] = {}
        self.calls: list[Call] = []
        self.app = HttpApp(SERVICES, self._bind, relays=lambda method: True)

    def _bind(self, method: Method[Any, Any]) -> Handler:
        self.methods[method.name] = method

        async def handler(call: Call) -> Any:
            self.calls.append(call)
            assert method.encode is not None
            return method.encode(call.request)

        return handler


def test_which_methods() -> None:
    methods = Peer().methods
    assert {name for name, method in methods.items() if method.decode is not None} == {"Flats", "Watch"}
    assert HttpApp(SERVICES, lambda method: Peer()._bind(method)).methods["/relay.Relay/Flats"].method.decode is None


async def test_a_body_that_is_the_whole_request() -> None:
    peer = Peer()
    body = b'{"text":"a","parts":[{"n":"1","at":"2026-01-02T03:04:05Z"},{}],"named":{"x":{"n":2}}}'
    response = await ask(peer.app, "POST /relay.Relay/Flats", body)
    assert type(peer.calls[0].request) is bytes
    assert peer.methods["Flats"].request.FromString(peer.calls[0].request).parts[0].at.seconds == 1767323045
    assert json.loads(response.body) == json.loads(body.replace(b'"n":2', b'"n":"2"'))


@pytest.mark.parametrize(
    ("what", "body", "answer"),
    [
        ("PUT /flats/b", b'{"parts":[{"n":1}]}', {"text": "b", "parts": [{"n": "1"}]}),
        ("GET /flats?text=c", b"", {"text": "c"}),
    ],
)
async def test_a_request_that_is_put_together(what: str, body: bytes, answer: Any) -> None:
    peer = Peer()
    response = await ask(peer.app, what, body)
    assert (response.status, json.loads(response.body)) == (200, answer)
    assert type(peer.calls[0].request) is peer.methods["Flats"].request


async def test_no_body() -> None:
    response = await ask(Peer().app, "POST /relay.Relay/Flats")
    assert (response.status, response.body) == (200, b"{}")


async def test_a_body_that_is_wrong_is_not_passed_on() -> None:
    peer = Peer()
    response = await ask(peer.app, "POST /relay.Relay/Flats", b'{"parts":[{"n":"x"}]}')
    assert (response.status, peer.calls) == (400, [])


async def test_a_reply_that_is_none() -> None:
    async def garbage(call: Call) -> Any:
        return b"\xff"

    app = HttpApp(SERVICES, lambda method: garbage, relays=lambda method: True)
    response = await ask(app, "POST /relay.Relay/Flats", b"{}")
    assert (response.status, json.loads(response.body)["code"]) == (500, 13)
    response = await ask(app, "POST /relay.Relay/Flats", b"", content_type="application/proto")
    assert (response.status, json.loads(response.body)["code"]) == (500, "internal")


async def test_no_client_can_tell() -> None:
    """Whatever is asked in JSON, and however broken, it is answered as when messages are passed on."""
    statuses: Counter[int] = Counter()
    async with target("channel") as messages, target("relay") as relayed:
        seeds = Seeds(relayed.app, "lab.v1.FlatMirror")
        for number in range(8_000):
            made = input_of(seeds, 7, number)
            encoded = any(name == b"accept-encoding" for name, _ in made.headers)
            if made.http == "WS" or made.leaves or encoded or not made.path.startswith((b"/m/flat", b"/lab.v1.FlatM")):
                continue
            expected, found = [await one.answer(made) for one in (messages, relayed)]
            assert (found.status, found.headers) == (expected.status, expected.headers), made
            if found.headers.get("content-type") in ("application/json", "application/x-ndjson"):
                assert found.lines == expected.lines, made  # maps have no order
                statuses[found.status] += 1
    assert statuses[200] > 400
    assert statuses[400] > 100
