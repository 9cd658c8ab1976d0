"""The pytest plugin, in projects of users: each test here runs a pytest of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
import asyncio, time
import pytest
from google.protobuf.wrappers_pb2 import StringValue
from framework import DeadlineExceeded, Method
from framework.rpc import UnaryReply
from framework.testing import Network

SAY = Method("say.v1.Say", "Say", StringValue, StringValue)


async def say(network: Network, timeout: float = 1.0) -> str:
    reply = await UnaryReply(network.connect("say").bind(SAY), SAY, StringValue(), timeout)
    return reply.value


@pytest.mark.asyncio
async def test_network(network: Network) -> None:
    network.script("say").on(SAY).reply(StringValue(value="hello"))
    assert await say(network) == "hello"


@pytest.mark.asyncio
@pytest.mark.virtual_time
async def test_virtual(network: Network) -> None:
    network.script("say").on(SAY).hang()
    real = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await say(network, 3600)
    assert asyncio.get_running_loop().time() == 3600
    assert time.monotonic() - real < 5


@pytest.mark.virtual_time
class TestAll:
    @pytest.mark.asyncio
    @pytest.mark.parametrize("seconds", [60, 600])
    async def test_of_a_class(self, seconds: int) -> None:
        await asyncio.sleep(seconds)
        assert asyncio.get_running_loop().time() == seconds


@pytest.mark.asyncio
async def test_real(network: Network) -> None:
    assert type(asyncio.get_running_loop()).__module__ == "asyncio.unix_events"


def test_plain() -> None:
    pass
"""


def test_fixture_and_marker(pytester: pytest.Pytester) -> None:
    """Both are there without a word of configuration, in strict mode and with markers checked."""
    pytester.makepyfile(TESTS)
    pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function\n")  # or pytest-asyncio warns
    ran = pytester.runpytest_subprocess("-v", "--strict-markers", "-W", "error", "-p", "no:cacheprovider")
    ran.assert_outcomes(passed=6)
    ran.stdout.fnmatch_lines(["*::test_network PASSED*", "*::test_of_a_class[[]600[]] PASSED*"])


def test_a_lifespan_that_fails_fails_the_test(pytester: pytest.Pytester) -> None:
    """Even when the test itself did not notice."""
    pytester.makepyfile("""
        from contextlib import asynccontextmanager
        import asyncio, pytest
        from framework import Service

        @asynccontextmanager
        async def lifespan(service):
            raise LookupError("no database")
            yield

        @pytest.mark.asyncio
        async def test_it(network):
            network.add(Service("say", lifespan=lifespan))
            await asyncio.sleep(0)
        """)
    ran = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    ran.assert_outcomes(passed=1, errors=1)
    ran.stdout.fnmatch_lines(["E *LookupError: no database"])


def test_fixture_is_documented(pytester: pytest.Pytester) -> None:
    """pytest can tell a user what it is."""
    ran = pytester.runpytest_subprocess("--fixtures")
    ran.stdout.fnmatch_lines(["network*", "*A network in memory:*"])


def test_without_pytest_asyncio(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Other tests run as ever; only the fixture says what is missing."""
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "pytest_asyncio.py").write_text('raise ImportError("not installed")\n')
    monkeypatch.setenv("PYTHONPATH", str(blocked))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile("def test_plain(): pass\ndef test_network(network): pass\n")
    ran = pytester.runpytest_subprocess("-p", "framework.testing.plugin")
    ran.assert_outcomes(passed=1, errors=1)
    ran.stdout.fnmatch_lines(["*the fixture `network` needs pytest-asyncio: pip install 'framework-grpc[[]test[]]'"])


def test_plugin_costs_nothing_where_it_is_not_used(pytester: pytest.Pytester) -> None:
    """Neither grpc nor protobuf is imported by a run that does not ask for the fixture."""
    pytester.makepyfile("import sys\ndef test_plain(): assert not {'grpc', 'google.protobuf'} & set(sys.modules)\n")
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_loop_of_the_user_is_kept(pytester: pytest.Pytester) -> None:
    """A project that chose its event loop runs its other tests on it."""
    pytester.makepyfile("""
        import asyncio, pytest

        class Mine(asyncio.SelectorEventLoop):
            pass

        class Policy(asyncio.DefaultEventLoopPolicy):
            def new_event_loop(self):
                return Mine()

        @pytest.fixture
        def event_loop_policy():
            return Policy()

        @pytest.mark.asyncio
        async def test_it():
            assert type(asyncio.get_running_loop()) is Mine
        """)
    pytester.runpytest_subprocess().assert_outcomes(passed=1)
