"""Coming up: the order of things, and one clear message for each mistake."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from grpc_health.v1 import health_pb2, health_pb2_grpc

from framework import (
    ConfigError,
    Context,
    FrameworkError,
    Instance,
    Internal,
    Method,
    ServerSettings,
    Service,
    Servicer,
    Settings,
    connect,
)
from framework.server.servicer import ServicerError
from framework.testing import Network
from tests.client.test_connect import NOT_REGISTERED, ask
from tests.invariants.conftest import NO_WAIT, collect
from tests.invariants.echo import Echo, EchoClient, EchoServicer, text

ROOT = Path(__file__).parents[2]


class Recording:
    """A registry that notes what is registered, and what the server's health was at that moment."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.instances: list[Instance] = []
        self.closed = False

    async def register(self, instance: Instance) -> Recording:
        self.instances.append(instance)
        self.closed = False
        self.events.append(f"registered while {await health(instance.address)}")
        return self

    async def close(self) -> None:
        """The lease's; harmless when done twice."""
        if not self.closed:
            self.closed = True
            self.events.append(f"deregistered while {await health(self.instances[-1].address)}")

    def watch(self, service: str) -> Any:
        raise NotImplementedError

    async def services(self) -> Any:
        raise NotImplementedError

    async def names(self) -> Any:
        raise NotImplementedError

    async def aclose(self) -> None:
        self.events.append("registry closed")


async def health(address: str) -> str:
    """What the server at an address says of itself."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status = (await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)).status
    return health_pb2.HealthCheckResponse.ServingStatus.Name(status)


def settings(**server: Any) -> Settings:
    return Settings(registry="none", server=ServerSettings(drain=NO_WAIT, **server))


async def test_order() -> None:
    """Lifespan, listen, SERVING, register; and back: NOT_SERVING, deregister, stop, leave the lifespan."""
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        events.append("lifespan entered")
        service.add(Echo())
        yield
        events.append("lifespan left")

    registry = Recording(events)
    async with Service("echo", lifespan=lifespan).running(settings(), registry=registry):
        events.append("running")
    assert events == [
        "lifespan entered",
        "registered while SERVING",
        "running",
        "deregistered while NOT_SERVING",
        "lifespan left",
    ]


async def test_what_is_registered() -> None:
    """The name, the real port, and what the service says of itself."""
    registry = Recording([])
    service = Service(
        "echo", servicers=[Echo()], version="1.2", zone="z", weight=3, tags=["a"], metadata={"owner": "us"}
    )
    async with service.running(settings(), registry=registry) as server:
        [instance] = registry.instances
        assert instance == Instance(
            instance.id, "echo", f"127.0.0.1:{server.port}", "1.2", "z", 3, "grpc", ("a",), {"owner": "us"}
        )
        assert server.port > 0


async def test_ids_are_unique() -> None:
    """Two instances of one service have ids of their own."""
    registry = Recording([])
    for _ in range(2):
        async with Service("echo", servicers=[Echo()]).running(settings(), registry=registry):
            pass
    assert len({instance.id for instance in registry.instances}) == 2


@pytest.mark.parametrize(
    ("host", "advertise", "expected"),
    [
        ("127.0.0.1", "", "127.0.0.1:{port}"),
        ("localhost", "", "localhost:{port}"),
        ("127.0.0.1", "node7", "node7:{port}"),
        ("127.0.0.1", "node7:99", "node7:99"),
        ("127.0.0.1", "10.1.2.3", "10.1.2.3:{port}"),
        ("127.0.0.1", "10.1.2.3:99", "10.1.2.3:99"),
        ("127.0.0.1", "::1", "[::1]:{port}"),
        ("127.0.0.1", "[::1]", "[::1]:{port}"),
        ("127.0.0.1", "[::1]:99", "[::1]:99"),
        ("::1", "", "[::1]:{port}"),
    ],
)
async def test_advertised_address(host: str, advertise: str, expected: str) -> None:
    """What clients are told to dial: what is listened on, or what the setting says, with the real port."""
    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    assert await _advertised(settings(host=host, advertise=advertise)) == expected


async def _advertised(settings: Settings) -> str:
    """What is registered, with `{port}` for the port."""
    instances: list[Instance] = []

    class Silent(Recording):
        async def register(self, instance: Instance) -> Recording:
            instances.append(instance)
            return self

        async def close(self) -> None:
            pass

    async with Service("echo", servicers=[Echo()]).running(settings, registry=Silent([])) as server:
        return instances[0].address.replace(str(server.port), "{port}")


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
async def test_address_of_a_server_that_listens_everywhere(host: str) -> None:
    """A server on every address tells clients one that others can dial, never the wildcard."""
    if host == "::" and not _has_ipv6():
        pytest.skip("this machine has no IPv6")
    try:
        address = await _advertised(settings(host=host, plaintext=True))
    except ConfigError as error:
        address = str(error)
    assert address.endswith((":{port}", "--advertise"))  # the latter on a machine without a network
    assert not address.startswith(("0.0.0.0", "[::]", ":"))


async def test_port_in_use() -> None:
    """A port that is taken is said to be, with what to do; two servers never share one by accident."""
    async with Service("one", servicers=[Echo()]).running(settings()) as server:
        with pytest.raises(ConfigError) as caught:
            async with Service("two", servicers=[Echo()]).running(settings(port=server.port)):
                pass
    message = str(caught.value)
    assert message.startswith(f"port {server.port} on 127.0.0.1 is in use")
    assert message.endswith("Choose another with --port, or 0 for any free one.")


async def test_host_of_another_machine() -> None:
    """An address that is not this machine's is said to be none, with what to do."""
    with pytest.raises(ConfigError) as caught:
        async with Service("echo", servicers=[Echo()]).running(settings(host="192.0.2.1", plaintext=True)):
            pass
    assert "192.0.2.1" in str(caught.value)
    assert "--host" in str(caught.value)


class Forgetful(EchoServicer):
    """Implements two methods of four."""

    async def UnaryUnary(self, request: StringValue, context: Context, /) -> StringValue:
        return request

    async def StreamUnary(self, requests: AsyncIterator[StringValue], context: Context, /) -> StringValue:
        return text("")


def test_method_not_written() -> None:
    """A servicer that leaves methods out cannot be made; the message says which and how each is written."""
    make: Callable[[], object] = Forgetful
    with pytest.raises(ServicerError) as caught:
        make()
    assert str(caught.value) == (
        "Forgetful does not implement StreamStream, UnaryStream. Write: "
        "async def UnaryStream(self, request, context): ... yield; "
        "async def StreamStream(self, requests, context): ... yield"
    )


class Blocking(Echo):
    """Has one method that is not asynchronous."""

    def UnaryUnary(self, request: StringValue, context: Context, /) -> Any:  # the mistake
        return request


class BlockingStream(Echo):
    """The same with a generator."""

    def UnaryStream(self, request: StringValue, context: Context, /) -> Any:  # the mistake
        yield request


@pytest.mark.parametrize(("kind", "name"), [(Blocking, "UnaryUnary"), (BlockingStream, "UnaryStream")])
async def test_synchronous_handler(kind: type[Servicer], name: str) -> None:
    """A handler that would block everybody else is refused; the message says how to write it."""
    with pytest.raises(ServicerError) as caught:
        async with Service("echo", servicers=[kind()]).running(settings()):
            pass
    message = str(caught.value)
    assert message.startswith(f"{kind.__name__}.{name} is not asynchronous")
    assert f"async def {name}(self, request, context)" in message
    assert "asyncio.to_thread" in message


class Returning(Echo):
    """Returns an iterator where it should have yielded."""

    async def UnaryStream(self, request: StringValue, context: Context, /) -> Any:  # type: ignore[override]  # so it is
        return self.behave(_nothing(), context)


async def _nothing() -> AsyncIterator[StringValue]:
    for _ in ():
        yield text("never")


async def test_stream_that_returns_instead_of_yielding(caplog: pytest.LogCaptureFixture) -> None:
    """A coroutine that returns its stream is a mistake that is not passed over in silence."""
    async with (
        Service("echo", servicers=[Returning()]).running(settings()) as server,
        connect(server.address, settings=NOT_REGISTERED) as channel,
    ):
        with pytest.raises(Internal):
            await collect(EchoClient(channel).UnaryStream(text("a")))
    assert "UnaryStream" in caplog.text


async def test_class_instead_of_an_object() -> None:
    """A servicer class where an object belongs is pointed out."""
    servicer: Any = Echo
    with pytest.raises(ServicerError, match=r"is not a servicer; add Echo\(\)"):
        async with Service("echo", servicers=[servicer]).running(settings()):
            pass


async def test_something_else_instead_of_a_servicer() -> None:
    """So is any other object."""
    servicer: Any = object()
    with pytest.raises(ServicerError, match="is not a servicer; add an instance of a generated servicer"):
        async with Service("echo", servicers=[servicer]).running(settings()):
            pass


async def test_same_service_twice() -> None:
    """Two servicers of one service are refused."""
    with pytest.raises(ServicerError, match=r"echo\.v1\.Echo/UnaryUnary is served already; add one servicer per"):
        async with Service("echo", servicers=[Echo(), Echo()]).running(settings()):
            pass


async def test_nothing_to_serve() -> None:
    """A service without a servicer is refused."""
    with pytest.raises(FrameworkError, match=r"echo serves nothing\. Add a servicer: `service\.add\("):
        async with Service("echo").running(settings()):
            pass


def test_adding_too_early() -> None:
    """Servicers are added in the lifespan, or given at the start."""
    with pytest.raises(FrameworkError, match=r"in its lifespan, or given as Service\(servicers=\[\.\.\.\]\)"):
        Service("echo").add(Echo())


async def test_running_twice() -> None:
    """One Service object runs once at a time."""
    service = Service("echo", servicers=[Echo()])
    async with service.running(settings()):
        with pytest.raises(FrameworkError, match="echo is running already in this process"):
            async with service.running(settings()):
                pass
    async with service.running(settings()):
        pass


async def test_lifespan_that_fails() -> None:
    """What a lifespan raises, on its way in or out, reaches whoever runs the service."""

    @asynccontextmanager
    async def fails_first(service: Service) -> AsyncIterator[None]:
        if service.name:
            raise LookupError("no database")
        yield

    @asynccontextmanager
    async def fails_last(service: Service) -> AsyncIterator[None]:
        service.add(Echo())
        yield
        raise LookupError("cannot close")

    with pytest.raises(LookupError, match="no database"):
        async with Service("echo", lifespan=fails_first).running(settings()):
            pass
    with pytest.raises(LookupError, match="cannot close"):
        async with Service("echo", lifespan=fails_last).running(settings()):
            pass


async def test_lifespan_is_left_when_the_port_is_taken() -> None:
    """A service that cannot listen leaves its lifespan before it gives up."""
    left: list[bool] = []

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        service.add(Echo())
        try:
            yield
        finally:
            left.append(True)

    async with Service("one", servicers=[Echo()]).running(settings()) as server:
        with pytest.raises(ConfigError):
            async with Service("two", lifespan=lifespan).running(settings(port=server.port)):
                pass
    assert left == [True]


async def test_registry_that_refuses() -> None:
    """A service that cannot register stops again, and says why."""

    class Refusing(Recording):
        async def register(self, instance: Instance) -> Recording:
            self.instances.append(instance)
            raise ConfigError("the registry does not want you")

    registry = Refusing([])
    with pytest.raises(ConfigError, match="does not want you"):
        async with Service("echo", servicers=[Echo()]).running(settings(), registry=registry):
            pass
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(*registry.instances[0].address.split(":"))


async def test_lifespan_in_memory() -> None:
    """In memory a lifespan that fails fails every call, and the network's end."""

    @asynccontextmanager
    async def lifespan(service: Service) -> AsyncIterator[None]:
        if service.name:
            raise LookupError("no database")
        yield

    network = Network()
    network.add(Service("echo", lifespan=lifespan))
    channel = network.connect("echo")
    for _ in range(2):
        with pytest.raises(LookupError, match="no database"):
            await ask(channel)
    with pytest.raises(LookupError, match="no database"):
        await network.aclose()


def _in_another_loop(work: Callable[[], Any]) -> BaseException | None:
    """What is raised by this work on an event loop of another thread, while this one runs."""
    raised: list[BaseException | None] = [None]

    def run() -> None:
        try:
            asyncio.run(work())
        except BaseException as error:
            raised[0] = error

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    return raised[0]


async def test_second_event_loop_that_serves() -> None:
    """grpc.aio takes one event loop per process; a second one that would serve is refused."""

    async def serve() -> None:
        async with Service("two", servicers=[Echo()]).running(settings()):
            pass

    async with Service("one", servicers=[Echo()]).running(settings()):
        error = await asyncio.to_thread(_in_another_loop, serve)
    assert isinstance(error, FrameworkError)
    assert str(error) == "grpc.aio is in use on another event loop of this process; use one loop per process"


async def test_second_event_loop_that_calls() -> None:
    """So is a second one that would make calls."""

    async with Service("one", servicers=[Echo()]).running(settings()) as server:

        async def call() -> None:
            async with connect(server.address, settings=NOT_REGISTERED) as channel:
                await ask(channel)

        error = await asyncio.to_thread(_in_another_loop, call)
    assert isinstance(error, FrameworkError)
    assert "one loop per process" in str(error)


async def test_two_services_in_one_process() -> None:
    """Two services beside each other on one loop are no problem."""
    async with (
        Service("one", servicers=[Echo()]).running(settings()) as one,
        Service("two", servicers=[Echo()]).running(settings()) as two,
        connect(one.address, settings=NOT_REGISTERED) as first,
        connect(two.address, settings=NOT_REGISTERED) as second,
    ):
        assert [await ask(first), await ask(second)] == ["a", "a"]


PROGRAM = """
from contextlib import asynccontextmanager
from framework import Service, ServerSettings, Settings, Drain
from tests.invariants.echo import Echo

@asynccontextmanager
async def lifespan(service):
    {lifespan}
    yield

Service("echo", lifespan=lifespan).run(Settings(registry="none", server=ServerSettings({server})))
"""


def run(lifespan: str = "service.add(Echo())", server: str = "") -> tuple[int, list[str]]:
    """The exit code and what a program writes on standard error."""
    program = PROGRAM.format(lifespan=lifespan, server=server)
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    return ran.returncode, ran.stderr.splitlines()


def test_program_that_cannot_listen() -> None:
    """`service.run()` ends with one line, and not with 0."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, lines = run(server=f"port={port}")
    assert (code, len(lines)) == (1, 1)
    assert lines[0].startswith(f"framework: port {port} on 127.0.0.1 is in use")


def test_program_with_nothing_to_serve() -> None:
    """Every mistake of the setup is one line."""
    code, lines = run(lifespan="pass")
    assert (code, lines) == (
        1,
        ["framework: echo serves nothing. Add a servicer: `service.add(Catalog(...))` in the lifespan"],
    )


def test_program_whose_lifespan_fails() -> None:
    """A defect of the user's own is a traceback."""
    code, lines = run(lifespan="raise LookupError('no database')")
    assert (code, lines[-1]) == (1, "LookupError: no database")
    assert "Traceback" in "\n".join(lines)


async def test_methods_may_be_added_by_hand() -> None:
    """A servicer is a class with `__methods__`; nothing else of generated code is needed."""

    class Small(Servicer):
        __methods__ = (Method("small.Small", "Say", StringValue, StringValue),)

        async def Say(self, request: StringValue, context: Context) -> StringValue:
            return text(request.value.upper())

    async with (
        Service("small", servicers=[Small()]).running(settings()) as server,
        connect(server.address, settings=NOT_REGISTERED) as channel,
    ):
        say = channel.unary_unary("/small.Small/Say", StringValue.SerializeToString, StringValue.FromString)
        assert (await say(text("a"))).value == "A"
