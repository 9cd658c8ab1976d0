"""Figures: how they add up, and how Prometheus is told."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace

from google.protobuf.wrappers_pb2 import StringValue

from framework import Context, ResourceExhausted, Service, Servicer, Settings, Unavailable, connect
from framework.config import Drain, ServerSettings
from framework.discovery import Instance
from framework.policy import BreakerSettings, ClientSettings, LimiterSettings, RetrySettings
from framework.rpc import Method, UnaryReply
from framework.server.wire import _Handlers
from framework.telemetry.figures import MOST, Figures, Histogram, Instrument, Sample
from framework.telemetry.names import (
    BREAKER_CHANGES,
    BREAKER_STATE,
    CLIENT_DURATION,
    CLIENT_IN_FLIGHT,
    DISCOVERY_AGE,
    DISCOVERY_UPDATES,
    LOOP_LAG,
    OTHER,
    PICKS,
    SERVER_DURATION,
    SERVER_IN_FLIGHT,
    SERVER_LIMIT,
    SERVER_QUEUE,
    SERVER_SHED,
)
from framework.telemetry.process import lag_watched
from framework.telemetry.telemetry import Telemetry, active
from framework.telemetry.text import exposition, name_of
from framework.testing import Network
from tests.invariants.conftest import soon, until
from tests.telemetry.lab import Recorder

COUNTER = Instrument("calls", "counter", "{call}", "Calls.")
GAUGE = Instrument("state", "gauge", "", "A state.", merge=max)
SECONDS = Instrument("took", "histogram", "s", 'How "long".', (0.1, 1.0))
GET = Method("shop.Catalog", "Get", StringValue, StringValue)
ONE = StringValue(value="one")


class Source:
    """Knows a few figures."""

    def __init__(self, *samples: Sample) -> None:
        self.samples = samples

    def figures(self) -> Iterable[Sample]:
        return self.samples


def test_text() -> None:
    """What Prometheus reads: names with units, cumulative buckets, escaped labels, sorted."""
    figures = Figures()
    source = Source((COUNTER, (("rpc.method", 'a"b\n'),), 3.0), (GAUGE, (), 0.5))
    figures.add(source)
    histogram = figures.histogram(SECONDS, (("code", "OK"),))
    for value in (0.1, 0.5, 7.0):
        histogram.record(value)
    expected = r"""# HELP target_info Target metadata
# TYPE target_info gauge
target_info{service_name="orders"} 1
# HELP calls_total Calls.
# TYPE calls_total counter
calls_total{rpc_method="a\"b\n"} 3
# HELP state A state.
# TYPE state gauge
state 0.5
# HELP took_seconds How \"long\".
# TYPE took_seconds histogram
took_seconds_bucket{code="OK",le="0.1"} 1
took_seconds_bucket{code="OK",le="1"} 2
took_seconds_bucket{code="OK",le="+Inf"} 3
took_seconds_sum{code="OK"} 7.6
took_seconds_count{code="OK"} 3
"""
    assert expected == exposition(figures.read(), (("service.name", "orders"),)).decode()


def test_names() -> None:
    """Names are those that OpenTelemetry's exporter for Prometheus gives."""
    assert [name_of(one) for one in (CLIENT_DURATION, BREAKER_STATE, SERVER_SHED, DISCOVERY_AGE)] == [
        "rpc_client_call_duration_seconds",
        "framework_breaker_state",
        "framework_server_shed_total",
        "framework_discovery_age_seconds",
    ]


def test_what_several_say() -> None:
    """Counts of the same thing add up, states of it are the worst; who leaves takes only the latter along."""
    figures = Figures()
    first, second = Source((COUNTER, (), 3.0), (GAUGE, (), 2.0)), Source((COUNTER, (), 4.0), (GAUGE, (), 1.0))
    figures.add(first)
    figures.add(second)
    assert figures.read() == {COUNTER: {(): 7.0}, GAUGE: {(): 2.0}}
    figures.leave(first)
    assert figures.read() == {COUNTER: {(): 7.0}, GAUGE: {(): 1.0}}
    figures.leave(first)
    assert figures.read() == {COUNTER: {(): 7.0}, GAUGE: {(): 1.0}}


async def test_an_endpoint_that_breaks() -> None:
    """The state of a breaker and its changes, picks and calls in flight are told by service and endpoint."""
    recorder = Recorder()
    settings = ClientSettings(breaker=BreakerSettings(consecutive=2, open=60.0), retry=RetrySettings(attempts=1))
    async with Network(telemetry=recorder.telemetry) as network:
        scripted = network.script("catalog")
        scripted.on(GET).fail(Unavailable("busy")).fail(Unavailable("busy")).hang()
        handler = network.connect("catalog", settings=settings).bind(GET)
        for _ in range(2):
            await asyncio.gather(UnaryReply(handler, GET, ONE), return_exceptions=True)
        where = {"service": "catalog", "endpoint": "memory:catalog-1"}
        assert (recorder.value(BREAKER_STATE, **where), recorder.value(PICKS, **where)) == (2, 2)
        assert (recorder.value(BREAKER_CHANGES, state="open"), recorder.value(BREAKER_CHANGES, state="closed")) == (
            1,
            0,
        )
        assert recorder.value(DISCOVERY_UPDATES, service="catalog") >= 1
        assert recorder.value(DISCOVERY_AGE, service="catalog") == 0
        call = asyncio.ensure_future(UnaryReply(handler, GET, ONE))
        await until(lambda: len(scripted.calls) == 3)
        assert (recorder.value(CLIENT_IN_FLIGHT), recorder.value(SERVER_IN_FLIGHT)) == (1, 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: recorder.value(SERVER_IN_FLIGHT) == 0)
        assert (recorder.value(CLIENT_IN_FLIGHT), recorder.value(PICKS)) == (0, 3)
    assert (recorder.value(BREAKER_STATE), recorder.value(PICKS, endpoint=OTHER)) == (0, 3)


async def test_many_endpoints() -> None:
    """A hundred endpoints are told apart; the others are one."""
    recorder = Recorder()
    async with Network(telemetry=recorder.telemetry) as network:
        channel = network.connect("catalog")
        hosted = network.script("catalog")
        addresses = next(iter(channel.pool.endpoints)).instance.address
        channel.pool.apply({str(n): Instance(str(n), "catalog", addresses) for n in range(150)})
        for endpoint in channel.pool.endpoints:
            endpoint.begin(0.0)
        points = recorder.telemetry.figures.read()
        assert sum(value for value in points[PICKS].values() if not isinstance(value, Histogram)) == 150
        assert recorder.value(PICKS, endpoint=OTHER) == 50
        assert hosted.calls == []
        for endpoint in channel.pool.endpoints:
            endpoint.pending -= 1


class Slow(Servicer):
    """Answers when it is told to."""

    __methods__ = (GET,)

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def Get(self, request: StringValue, context: Context) -> StringValue:
        await self.go_on.wait()
        return request


async def test_a_server_that_is_full() -> None:
    """What a server refuses is counted by criticality, and in the duration of calls; the limit is told."""
    recorder = Recorder()
    active.set(recorder.telemetry)
    slow = Slow()
    limiter = LimiterSettings(minimum=1, initial=1, maximum=1)
    settings = Settings(registry="none", server=ServerSettings(limiter=limiter, drain=Drain(0.0, 0.5, 0.2)))
    client = ClientSettings(retry=RetrySettings(attempts=1))
    async with (
        Service("catalog", servicers=[slow]).running(settings) as server,
        connect(f"127.0.0.1:{server.port}", settings=Settings(client=client)) as channel,
    ):
        handler = channel.bind(GET)
        first = asyncio.ensure_future(UnaryReply(handler, GET, ONE))
        await until(lambda: server.pipeline.calls)
        refused = (await asyncio.gather(UnaryReply(handler, GET, ONE), return_exceptions=True))[0]
        assert isinstance(refused, ResourceExhausted)
        assert (recorder.value(SERVER_SHED, criticality="CRITICAL"), recorder.value(SERVER_LIMIT)) == (1, 1)
        slow.go_on.set()
        await soon(first)
        method = {"rpc_method": GET.full_name}
        await until(lambda: recorder.value(SERVER_DURATION, rpc_response_status_code="OK", **method) == 1)
        assert recorder.value(SERVER_DURATION, rpc_response_status_code="RESOURCE_EXHAUSTED", **method) == 1
        assert recorder.value(SERVER_QUEUE) == 1
        raw = Method("shop.Catalog", "Nothing", StringValue, StringValue)
        await asyncio.gather(UnaryReply(channel.bind(raw), raw, ONE), return_exceptions=True)
        assert recorder.value(SERVER_DURATION, rpc_method=OTHER, error_type="UNIMPLEMENTED") == 1
        hostile = SimpleNamespace(method=GET.path, invocation_metadata=(("x-odd", "line\nend"),))
        _Handlers(server.pipeline, 8192, alone=True).service(hostile)
        refused_for = {"rpc_method": OTHER, "rpc_response_status_code": "INVALID_ARGUMENT"}
        assert recorder.value(SERVER_DURATION, **refused_for) == 1
    assert recorder.value(SERVER_SHED, criticality="CRITICAL") == 1
    assert b'target_info{service_name="catalog"} 1' in recorder.telemetry.text()


async def test_loop_lag() -> None:
    """How late the loop is, is measured while it is watched, and no longer."""
    telemetry = Telemetry()
    with lag_watched(telemetry.figures, every=0.001):
        await until(lambda: telemetry.figures.histogram(LOOP_LAG, ()).count >= 2)
    before = telemetry.figures.histogram(LOOP_LAG, ()).count
    await asyncio.sleep(0.01)
    assert before == telemetry.figures.histogram(LOOP_LAG, ()).count


def test_the_process() -> None:
    """CPU, memory, files and uptime of the process are told without anybody counting."""
    text = Telemetry().text().decode()
    names = ["process_cpu_time_seconds_total", "process_memory_usage_bytes", "process_open_file_descriptor_count"]
    assert [f"# TYPE {name} " in text for name in (*names, "process_uptime_seconds")] == [True] * 4


def test_targets_without_end() -> None:
    """Of ever new targets so many are told apart and then no more; what is counted of the others is in one place."""
    figures = Figures()
    for number in range(3 * MOST):
        service = ("service", f"10.0.{number >> 8}.{number & 255}:80")
        source = Source(
            (COUNTER, (service, ("endpoint", service[1])), 1.0), (COUNTER, (service, ("kind", "first")), 1.0)
        )
        figures.add(source)
        figures.leave(source)
        host, _, port = service[1].partition(":")
        figures.histogram(SECONDS, (("rpc.method", "a"), ("server.address", host), ("server.port", port))).record(0.5)
    points = figures.read()
    assert len(points[COUNTER]) + len(points[SECONDS]) < MOST + 10
    assert sum(value for value in points[COUNTER].values() if isinstance(value, float)) == 6.0 * MOST
    assert sum(one.count for one in points[SECONDS].values() if isinstance(one, Histogram)) == 3 * MOST
    assert points[COUNTER][(("service", OTHER), ("kind", "first"))]


def test_endpoints_without_end_of_one_service() -> None:
    """The service is told apart still."""
    figures = Figures()
    for number in range(3 * MOST):
        source = Source((COUNTER, (("service", "catalog"), ("endpoint", str(number))), 1.0))
        figures.add(source)
        figures.leave(source)
        figures.histogram(SECONDS, (("server.address", "catalog"),))
    points = figures.read()
    assert points[COUNTER][(("service", "catalog"), ("endpoint", OTHER))]
    assert list(points[SECONDS]) == [(("server.address", "catalog"),)]
