"""What is sent: spans and figures, to an OTLP receiver, in time and no longer."""

from __future__ import annotations

import asyncio
import builtins
import os
import socket
import sys
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from framework import ConfigError, Method, Service, Settings, connect
from framework.config import Drain, ServerSettings
from framework.observation import TelemetrySettings
from framework.rpc import UnaryReply
from framework.telemetry import sdk
from framework.telemetry.telemetry import Telemetry
from tests.invariants.echo import Echo, EchoClient, text
from tests.telemetry.receiver import receiver
from tests.telemetry.test_traces import CHARGE, ONE, Payments

OTEL = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_SDK_DISABLED", "OTEL_SERVICE_NAME", "OTEL_TRACES_SAMPLER")


@pytest.fixture(autouse=True)
def providers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process keeps what provider it has, which is none."""
    for name in OTEL:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sdk, "_ours", {})
    from opentelemetry import trace
    from opentelemetry.metrics import _internal as metrics

    monkeypatch.setattr(trace, "set_tracer_provider", lambda provider: None)
    monkeypatch.setattr(metrics, "set_meter_provider", lambda provider: None)
    monkeypatch.setattr("opentelemetry.metrics.set_meter_provider", lambda provider: None)


def settings(**telemetry: Any) -> Settings:
    """Settings of a service that sends."""
    server = ServerSettings(drain=Drain(0.0, 0.5, 0.2))
    return Settings(registry="none", server=server, telemetry=TelemetrySettings(**telemetry))


async def serve_once(chosen: Settings) -> None:
    """Run a service, call it once from within, and stop it."""
    service = Service("payments", servicers=[Payments()])
    async with service.running(chosen) as server, connect(f"127.0.0.1:{server.port}", settings=chosen) as channel:
        await UnaryReply(channel.bind(CHARGE), CHARGE, ONE)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
async def test_sent_when_it_stops(protocol: str) -> None:
    """What a service has not sent yet is sent when it stops: spans, and figures with their names and units."""
    async with receiver(protocol) as received:
        await serve_once(settings(endpoint=f"http://127.0.0.1:{received.port}", protocol=protocol))
        names = ["shop.Payments/Charge", "Attempt shop.Payments/Charge", "shop.Payments/Charge"]
        assert sorted(("payments", name) for name in names) == sorted(received.spans)
        duration = received.metrics["rpc.server.call.duration"]
        (point,) = [
            one
            for one in duration.histogram.data_points
            if "shop.Payments/Charge" in {label.value.string_value for label in one.attributes}
        ]
        assert (duration.unit, point.count, len(point.explicit_bounds)) == ("s", 1, 14)
        assert received.metrics["framework.client.attempts"].sum.is_monotonic
        assert received.metrics["process.uptime"].gauge.data_points[0].as_double > 0


async def test_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    """OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME hold, without a word in the settings."""
    async with receiver("grpc") as received:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{received.port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "cashier")
        await serve_once(settings())
        assert {"cashier"} == {service for service, _ in received.spans}


async def test_nothing_is_sent_that_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of nothing sends no span but all figures; and whoever turns the SDK off gets nothing."""
    async with receiver("grpc") as received:
        endpoint = f"http://127.0.0.1:{received.port}"
        await serve_once(settings(endpoint=endpoint, sample=0.0))
        assert (received.spans, "rpc.client.call.duration" in received.metrics) == ([], True)
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        assert not sdk.wanted(TelemetrySettings(endpoint=endpoint))


async def test_a_receiver_that_does_not_answer(caplog: pytest.LogCaptureFixture) -> None:
    """A service stops in time though nobody takes what it sends, and says what became of it."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        telemetry = Telemetry(TelemetrySettings(endpoint=endpoint, flush=0.2))
        async with telemetry.running("payments"):
            assert telemetry.tracer is not None
            telemetry.tracer.start_span("lost").end()
            began = loop.time()
        assert loop.time() - began < 2.0
    assert "telemetry was not sent within 0.2 s: what was left of it is lost" in caplog.text


CLIENT = """
import asyncio, sys
from framework import connect
from framework.rpc import UnaryReply
from tests.telemetry.test_traces import CHARGE, ONE

async def main():
    async with connect(sys.argv[1]) as channel:
        await UnaryReply(channel.bind(CHARGE), CHARGE, ONE)

asyncio.run(main())
"""


async def test_a_client_alone() -> None:
    """A program that only calls sends what it has at its end, by its own name."""
    service = Service("payments", servicers=[Payments()])
    async with receiver("grpc") as received, service.running(settings()) as server:
        environ = {**os.environ, "FRAMEWORK_TELEMETRY_ENDPOINT": f"http://127.0.0.1:{received.port}"}
        program = ("-W", "error", "-c", CLIENT, f"127.0.0.1:{server.port}")
        child = await asyncio.create_subprocess_exec(sys.executable, *program, env=environ)
        assert await child.wait() == 0
        names = ["Attempt shop.Payments/Charge", "shop.Payments/Charge"]
        assert sorted(received.spans) == [("-c", name) for name in names]
        assert "rpc.client.call.duration" in received.metrics


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("collector:4317", "telemetry.endpoint is 'collector:4317'; write a URL, for example http://127.0.0.1:4317"),
        ("tcp://x:1", "telemetry.endpoint is 'tcp://x:1'; write a URL, for example http://127.0.0.1:4317"),
    ],
)
async def test_an_endpoint_that_is_none(endpoint: str, expected: str) -> None:
    """What is no URL is refused with one line."""
    with pytest.raises(ConfigError) as caught:
        await serve_once(settings(endpoint=endpoint))
    assert expected == str(caught.value)


@pytest.fixture
def without_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra is not installed."""
    for name in [name for name in sys.modules if name.startswith("opentelemetry.sdk")]:
        monkeypatch.delitem(sys.modules, name)
    found = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("opentelemetry.sdk"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return found(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)


@pytest.mark.usefixtures("without_sdk")
async def test_without_the_sdk(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Who wants something sent is told what to install; where only the environment wants it, the service runs."""
    with pytest.raises(ConfigError) as caught:
        await serve_once(settings(endpoint="http://127.0.0.1:4317"))
    expected = "opentelemetry.sdk.resources is not installed; to send telemetry takes: pip install framework-grpc[otel]"
    assert expected == str(caught.value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    await serve_once(settings())
    assert f"{expected}; nothing is sent, though OTEL_EXPORTER_OTLP_ENDPOINT says where to" in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
async def test_contrib(streaming: bool) -> None:
    """`contrib` makes the spans of opentelemetry-instrumentation-grpc, on both sides, and none of ours."""
    async with receiver("grpc") as received:
        chosen = settings(endpoint=f"http://127.0.0.1:{received.port}", instrumentation="contrib")
        async with (
            Service("echo", servicers=[Echo()]).running(chosen) as server,
            connect(f"127.0.0.1:{server.port}", settings=chosen) as channel,
        ):
            if streaming:
                replies = [one.value async for one in EchoClient(channel).StreamStream([text("a"), text("b")])]
                assert replies == ["a", "b"]
            else:
                assert (await EchoClient(channel).UnaryUnary(text("a"))).value == "a"
        name = "/echo.v1.Echo/StreamStream" if streaming else "/echo.v1.Echo/UnaryUnary"
        assert [("echo", name)] * 2 == received.spans
        assert "rpc.server.call.duration" in received.metrics


async def test_off() -> None:
    """`off` makes no spans and no figures of calls, and the call passes."""
    telemetry = Telemetry(TelemetrySettings(instrumentation="off", metrics=False))
    method = Method("shop.Catalog", "Get", StringValue, StringValue)
    assert (telemetry.client(method, "catalog"), telemetry.server(method)) == (None, None)
