"""A trace goes on through everything that a request goes through, whoever it meets on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from opentelemetry.instrumentation import grpc as contrib

from framework import Context, Method, Service, Servicer, Settings, Unavailable, connect
from framework.call import Idempotency
from framework.config import Drain, ServerSettings
from framework.policy import BackoffSettings, ClientSettings, HedgeSettings, RetrySettings
from framework.rpc import UnaryReply
from framework.telemetry.names import ATTEMPTS, HTTP_DURATION, PICKS
from framework.telemetry.propagation import continued, inject, traceparent_of
from framework.telemetry.telemetry import Telemetry, active
from framework.testing import Network
from tests.gateway.lab import Shop, town
from tests.invariants.conftest import until
from tests.telemetry.lab import Recorder, ids, lineage, told

CHARGE = Method("shop.Payments", "Charge", StringValue, StringValue, idempotency=Idempotency.NO_SIDE_EFFECTS)
TRACE = 0x4BF92F3577B34DA6A3CE929D0E0E4736
PARENT = 0x00F067AA0BA902B7
SENT = f"00-{TRACE:032x}-{PARENT:016x}-01"
ALONE = Settings(registry="none", server=ServerSettings(drain=Drain(0.0, 0.5, 0.2)))
ONE = StringValue(value="one")
untyped: Any = contrib


class Payments(Servicer):
    """Charges, and keeps what it is sent along."""

    __methods__ = (CHARGE,)

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []

    async def Charge(self, request: StringValue, context: Context) -> StringValue:
        self.metadata.append(dict(context.invocation_metadata()))
        return request


class Orders(Shop):
    """Has what is bought charged, and says so in an event."""

    def __init__(self, payments: Any, bus: asyncio.Queue[dict[str, str]]) -> None:
        super().__init__()
        self._charge = payments.bind(CHARGE)
        self._bus = bus

    async def Buy(self, request: Any, context: Context) -> Any:
        await UnaryReply(self._charge, CHARGE, StringValue(value=request.name))
        headers: dict[str, str] = {"ce-type": "bought"}
        inject(headers)
        self._bus.put_nowait(headers)
        return request


async def consume(bus: asyncio.Queue[dict[str, str]], recorder: Recorder) -> None:
    """A scripted consumer of the next event."""
    headers = await bus.get()
    with continued(headers, "consume bought", tracer=recorder.provider.get_tracer("consumer")):
        await asyncio.sleep(0)


async def test_from_the_gateway_to_an_event(recorder: Recorder, tmp_path: Path) -> None:
    """HTTP client, gateway, orders, payments, and the consumer of an event: one trace, each below its cause."""
    active.set(recorder.telemetry)
    bus: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    async with (
        town(tmp_path) as lab,
        Service("payments", servicers=[Payments()]).running(ALONE) as payments,
        connect(f"127.0.0.1:{payments.port}", settings=ALONE) as channel,
    ):
        await lab.add("orders", servicer=Orders(channel, bus))
        client = await lab.client(await lab.gateway())
        answer = await client.post("/v1/things", json={"name": "p1"}, headers={"traceparent": SENT})
        assert (answer.status_code, answer.json()) == (200, {"name": "p1"})
        await consume(bus, recorder)
        await until(lambda: sum(ids(span)[0] == TRACE for span in recorder.spans) >= 8)
    mine = [span for span in recorder.spans if ids(span)[0] == TRACE]
    assert lineage(mine, PARENT) == [
        "SERVER POST /v1/things",
        "  CLIENT lab.Shop/Buy",
        "    INTERNAL Attempt lab.Shop/Buy",
        "      SERVER lab.Shop/Buy",
        "        CLIENT shop.Payments/Charge",
        "          INTERNAL Attempt shop.Payments/Charge",
        "            SERVER shop.Payments/Charge",
        "        CONSUMER consume bought",
    ]
    assert (told(mine[0])["http.route"], told(mine[0])["http.response.status_code"]) == ("/v1/things", 200)
    assert recorder.value(HTTP_DURATION, http_route="/v1/things", http_response_status_code="200") == 1
    assert (told(mine[1])["server.address"], told(mine[4])["server.address"]) == ("orders", "127.0.0.1")


@asynccontextmanager
async def bare_payments(recorder: Recorder) -> AsyncIterator[int]:
    """A server of bare grpc.aio that is traced by opentelemetry-instrumentation-grpc; gives its port."""

    async def charge(request: StringValue, context: Any) -> StringValue:
        return request

    handler = grpc.unary_unary_rpc_method_handler(charge, StringValue.FromString, StringValue.SerializeToString)
    interceptors = [untyped.aio_server_interceptor(tracer_provider=recorder.provider)]
    server = grpc.aio.server(interceptors=interceptors, options=(("grpc.so_reuseport", 0),))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(CHARGE.service, {"Charge": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


async def test_a_peer_that_is_traced_otherwise(recorder: Recorder, tmp_path: Path) -> None:
    """A trace begun by a client of bare grpc.aio goes on through our server and client to a server of bare grpc.aio."""
    active.set(recorder.telemetry)
    bus: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    theirs = untyped.aio_client_interceptors(tracer_provider=recorder.provider)
    async with bare_payments(recorder) as port, connect(f"127.0.0.1:{port}", settings=ALONE) as payments:
        servicer = Orders(payments, bus)
        async with Service("orders", servicers=[servicer]).running(ALONE) as server:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}", interceptors=theirs) as channel:
                buy: Any = channel.unary_unary("/lab.Shop/Buy")
                await buy(b"\n\x02p1")
            await until(lambda: len(recorder.spans) >= 5)
    assert lineage(recorder.spans) == [
        "CLIENT /lab.Shop/Buy",
        "  SERVER lab.Shop/Buy",
        "    CLIENT shop.Payments/Charge",
        "      INTERNAL Attempt shop.Payments/Charge",
        "        SERVER /shop.Payments/Charge",
    ]


async def test_retries(recorder: Recorder) -> None:
    """Every attempt is a span of its own, and a count by its kind."""
    retry = RetrySettings(backoff=BackoffSettings(initial=0.001))
    async with Network(telemetry=recorder.telemetry) as network:
        scripted = network.script("payments")
        scripted.on(CHARGE).fail(Unavailable("busy")).fail(Unavailable("busy")).reply(ONE)
        channel = network.connect("payments", settings=ClientSettings(retry=retry))
        assert await UnaryReply(channel.bind(CHARGE), CHARGE, ONE) == ONE
        await until(lambda: len(recorder.spans) >= 7)
    attempts = recorder.named("Attempt shop.Payments/Charge")
    arrived = [[value for key, value in call.metadata if key == "traceparent"] for call in scripted.calls]
    assert arrived == [[traceparent_of(context)] for span in attempts if (context := span.get_span_context())]
    assert [(told(span).get("framework.attempt"), told(span).get("framework.attempt.kind")) for span in attempts] == [
        (None, None),
        (2, "retry"),
        (3, "retry"),
    ]
    assert [span.status.is_unset for span in attempts] == [False, False, True]
    (call,) = recorder.named("shop.Payments/Charge")[:1]
    assert call.status.is_unset
    assert [
        "CLIENT shop.Payments/Charge",
        *["  INTERNAL Attempt shop.Payments/Charge", "    SERVER shop.Payments/Charge"] * 3,
    ] == lineage(recorder.spans)
    assert (
        recorder.value(ATTEMPTS, kind="first", rpc_response_status_code="UNAVAILABLE"),
        recorder.value(ATTEMPTS, kind="retry", rpc_response_status_code="UNAVAILABLE"),
        recorder.value(ATTEMPTS, kind="retry", rpc_response_status_code="OK"),
    ) == (1, 1, 1)
    assert recorder.value(PICKS, service="payments") == 3


async def test_hedges(recorder: Recorder) -> None:
    """A hedge is an attempt beside the first, whose span ends as cancelled when the hedge is faster."""
    settings = ClientSettings(hedge=HedgeSettings(delay=0.01))
    async with Network(telemetry=recorder.telemetry) as network:
        first, second = network.script("payments"), network.script("payments")
        for scripted in (first, second):
            scripted.on(CHARGE).hang()
        channel = network.connect("payments", settings=settings)
        call = asyncio.ensure_future(UnaryReply(channel.bind(CHARGE), CHARGE, ONE))
        await until(lambda: first.calls and second.calls)
        assert recorder.spans == []
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: len(recorder.spans) >= 5)
    attempts = recorder.named("Attempt shop.Payments/Charge")
    assert [told(span).get("framework.attempt.kind") for span in attempts] == [None, "hedge"]
    assert [told(span)["rpc.response.status_code"] for span in attempts] == ["CANCELLED"] * 2
    assert (recorder.value(ATTEMPTS, kind="first"), recorder.value(ATTEMPTS, kind="hedge")) == (1, 1)


def sampled(metadata: dict[str, Any]) -> bool:
    """Whether a peer was told that its trace is recorded."""
    return bool(int(metadata["traceparent"][-2:], 16) & 1)


async def call_through(recorder: Recorder, metadata: Any = ()) -> list[dict[str, Any]]:
    """Make a call of a service that is watched; returns what arrived along with it."""
    payments = Payments()
    async with Network(telemetry=recorder.telemetry) as network:
        network.add(Service("payments", servicers=[payments]))
        channel = network.connect("payments")
        await UnaryReply(channel.bind(CHARGE), CHARGE, ONE, metadata=metadata)
    return payments.metadata


async def test_what_is_not_sampled(maker: str) -> None:
    """A trace that is not recorded where it begins is recorded nowhere, and the peer is told so."""
    recorder = Recorder(0.0, maker=maker)
    (arrived,) = await call_through(recorder)
    assert recorder.spans == []
    assert not sampled(arrived)


async def test_what_another_has_decided(maker: str) -> None:
    """Who began a trace has decided, whatever is recorded of those that begin here."""
    nothing, everything = Recorder(0.0, maker=maker), Recorder(1.0, maker=maker)
    (arrived,) = await call_through(nothing, (("traceparent", SENT),))
    assert {TRACE} == {ids(span)[0] for span in nothing.spans}
    assert len(nothing.spans) == 3
    assert arrived["traceparent"].startswith(SENT[:36])
    (arrived,) = await call_through(everything, (("traceparent", f"{SENT[:-2]}00"),))
    assert everything.spans == []
    assert (SENT[:35], "00") == (arrived["traceparent"][:35], arrived["traceparent"][-2:])


async def test_a_share(maker: str) -> None:
    """A share of the traces is recorded, and of each all or nothing."""
    recorder = Recorder(0.5, maker=maker)
    payments = Payments()
    async with Network(telemetry=recorder.telemetry) as network:
        network.add(Service("payments", servicers=[payments]))
        handler = network.connect("payments").bind(CHARGE)
        for _ in range(200):
            await UnaryReply(handler, CHARGE, ONE)
    traces = {ids(span)[0] for span in recorder.spans}
    assert 50 < len(traces) < 150  # 14 standard deviations
    assert 3 * len(traces) == len(recorder.spans)
    assert len(traces) == sum(map(sampled, payments.metadata))


@pytest.mark.parametrize("tracing", [True, False])
async def test_state_and_baggage(recorder: Recorder, tracing: bool) -> None:
    """What vendors and applications say along with a trace goes on, with and without tracing in this process."""
    said = (("traceparent", SENT), ("tracestate", "vendor=1"), ("baggage", "tenant=a"))
    payments = Payments()
    bus: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    telemetry = recorder.telemetry if tracing else Telemetry()
    async with Network(telemetry=telemetry) as network:
        network.add(Service("payments", servicers=[payments]))
        network.add(Service("orders", servicers=[Orders(network.connect("payments"), bus)]))
        orders = network.connect("orders")
        (buy,) = [method for method in Orders(orders, bus).__methods__ if method.name == "Buy"]
        await UnaryReply(orders.bind(buy), buy, buy.request(name="p1"), metadata=said)
    (arrived,) = payments.metadata
    assert (arrived["tracestate"], arrived["baggage"]) == ("vendor=1", "tenant=a")
    assert (SENT[:36], tracing) == (arrived["traceparent"][:36], arrived["traceparent"] != SENT)
