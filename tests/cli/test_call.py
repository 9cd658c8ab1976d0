"""`framework call`: a method called with JSON, through discovery and reflection."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from framework import Instance
from framework.cli import main
from framework.cli.call import find
from framework.config import Settings
from framework.discovery.targets import open_registry
from framework.errors import ConfigError
from tests.cli.lab import Serving, framework, serving, start, write
from tests.consul_agent import ConsulAgent, free_ports


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the module `lab_service`."""
    return write(tmp_path_factory.mktemp("call"))


@pytest.fixture(scope="module")
def lab(folder: Path) -> Iterator[Serving]:
    """A service that runs, in the registry of that directory."""
    (folder / "framework.toml").write_text('registry = "sqlite:///registry.db"\n')
    with serving(folder) as server:
        yield server


Here = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """The command in this process, in that directory: its exit code and what it prints."""
    monkeypatch.chdir(folder)

    def run(*arguments: str) -> tuple[int, str, str]:
        return main(list(arguments)), *capsys.readouterr()

    return run


def call(folder: Path, *arguments: str, stdin: str = "") -> str:
    """What a call that succeeds prints."""
    ran = framework(folder, "call", *arguments, stdin=stdin)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def failed(folder: Path, *arguments: str, stdin: str = "") -> tuple[int, str]:
    """The exit code and the message of one that does not; nothing else is printed."""
    ran = framework(folder, "call", *arguments, stdin=stdin)
    assert ran.stdout == ""
    return ran.returncode, ran.stderr


def test_one_reply(lab: Serving, folder: Path) -> None:
    """It is found by the full name of the service, and the reply is JSON over several lines."""
    assert call(folder, "lab.v1.Lab/Greet", '{"text": "Ada"}') == '{\n  "text": "Hello, Ada!"\n}\n'


def test_no_request_is_an_empty_one(lab: Serving, folder: Path) -> None:
    """A method without arguments needs no JSON."""
    assert json.loads(call(folder, "lab.v1.Lab/Greet")) == {"text": "Hello, !"}


def test_many_replies(lab: Serving, folder: Path) -> None:
    """One line each; the field may be written as in the proto or as in JSON."""
    printed = '{"theNumber": 1}\n{"theNumber": 2}\n{"theNumber": 3}\n'
    assert call(folder, "lab.v1.Lab/Count", '{"theNumber": 3}') == printed
    assert call(folder, "lab.v1.Lab/Count", '{"the_number": 3}') == printed


def test_many_requests(lab: Serving, folder: Path) -> None:
    """Several arguments, lines of standard input, or both; without arguments it is the input."""
    two, lines = ('{"theNumber": 1}', '{"theNumber": 2}'), '{"theNumber": 10}\n\n{"theNumber": 20}'
    assert json.loads(call(folder, "lab.v1.Lab/Add", *two, stdin=lines)) == {"theNumber": 3}
    assert json.loads(call(folder, "lab.v1.Lab/Add", stdin=lines)) == {"theNumber": 30}
    assert json.loads(call(folder, "lab.v1.Lab/Add", *two, "-", stdin=lines)) == {"theNumber": 33}


def test_many_of_both(lab: Serving, folder: Path) -> None:
    """A reply a line, and not only for ASCII."""
    printed = call(folder, "lab.v1.Lab/Shout", '{"text": "a"}', '{"text": "ä"}')
    assert printed == '{"text": "A"}\n{"text": "Ä"}\n'


def test_replies_are_printed_as_they_come(lab: Serving, folder: Path) -> None:
    """The first is there while the stream goes on; Ctrl-C ends it silently with 130."""
    with start(folder, "-m", "framework", "call", "lab.v1.Lab/Count", '{"theNumber": 1}') as process:
        assert process.stdout is not None
        assert process.stdout.readline() == '{"theNumber": 1}\n'
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 130


def test_conversation(lab: Serving, folder: Path) -> None:
    """A line that is typed is sent at once, and its answer is seen before the next; the end of the input ends it."""
    command = ("-m", "framework", "call", "lab.v1.Lab/Shout", "-")
    with start(folder, *command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text in ("one", "two"):
            print(json.dumps({"text": text}), file=process.stdin, flush=True)
            assert json.loads(process.stdout.readline()) == {"text": text.upper()}
        assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 0


def test_headers(lab: Serving, folder: Path) -> None:
    """`name:value` as metadata, trimmed, names in lower case, a value with colons left whole."""
    arguments = ("-H", "X-Lab-One:1", "--header", "x-lab-two:  b: c ", "-H", "x-lab-none:")
    reply = json.loads(call(folder, "lab.v1.Lab/Greet", '{"text": "headers"}', *arguments))
    assert reply == {"text": str([("x-lab-one", "1"), ("x-lab-two", "b: c"), ("x-lab-none", "")])}


@pytest.mark.parametrize("header", ["no colon", ":value", "two words: x", "x-lab-bin: not base64", "x-lab: ü"])
def test_header_that_cannot_be_sent(header: str, lab: Serving, here: Here) -> None:
    """One line, exit code 2."""
    code, printed, message = here("call", "lab.v1.Lab/Greet", "-H", header)
    assert (code, printed, len(message.splitlines())) == (2, "", 1)
    assert message.startswith(f"framework: --header {header!r}")


def test_timeout_is_the_deadline(lab: Serving, folder: Path) -> None:
    """The service sees it, and when it has passed the call has failed: exit code 1."""
    assert json.loads(call(folder, "lab.v1.Lab/Greet", '{"text": "time"}', "--timeout", "77")) == {"text": "77 s"}
    code, message = failed(folder, "lab.v1.Lab/Greet", '{"text": "slow 60"}', "--timeout", "0.2")
    assert (code, message) == (
        1,
        f"framework: DEADLINE_EXCEEDED: no answer from {lab.address} before the deadline [lab.v1.Lab/Greet]\n",
    )


def test_timeout_holds_for_the_questions_before(capsys: pytest.CaptureFixture[str]) -> None:
    """A server that takes the connection and says nothing does not outlast it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        start = time.monotonic()
        assert main(["call", "lab.v1.Lab/Greet", "--target", target, "--timeout", "0.2"]) == 1
        assert time.monotonic() - start < 1


def test_error_of_the_service(lab: Serving, folder: Path) -> None:
    """Code, message and method in one line, then a line for each detail; exit code 1."""
    assert failed(folder, "lab.v1.Lab/Greet", '{"text": "missing Ada"}') == (
        1,
        'framework: NOT_FOUND: no Ada [lab.v1.Lab/Greet]\n  google.rpc.ResourceInfo {"resourceName": "Ada"}\n',
    )


def test_error_that_nobody_expected(lab: Serving, folder: Path) -> None:
    """It has an id and keeps its secret; exit code 1."""
    code, message = failed(folder, "lab.v1.Lab/Greet", '{"text": "broken"}')
    assert code == 1
    assert message.startswith("framework: INTERNAL: internal error ")
    assert "secret" not in message


def test_stream_that_fails_at_its_end(lab: Serving, folder: Path) -> None:
    """What came before the failure is printed; exit code 1."""
    ran = framework(folder, "call", "lab.v1.Lab/Count", '{"theNumber": 13}')
    assert ran.stdout == "".join(f'{{"theNumber": {number}}}\n' for number in range(1, 14))
    assert (ran.returncode, ran.stderr) == (1, "framework: NOT_FOUND: nothing after 13 [lab.v1.Lab/Count]\n")


@pytest.mark.parametrize(
    ("arguments", "stdin", "message"),
    [
        (["lab.v1.Lab/Greet", '{"text": '], "", "request 1 is no lab.v1.Text: Failed to load JSON: Expecting"),
        (["lab.v1.Lab/Greet", '{"txt": "a"}'], "", 'request 1 is no lab.v1.Text: Message type "lab.v1.Text" has'),
        (["lab.v1.Lab/Greet", '{"text": 1}'], "", "request 1 is no lab.v1.Text: Failed to parse text field"),
        (["lab.v1.Lab/Greet", "Ada"], "", "request 1 is no lab.v1.Text: Failed to load JSON: Expecting"),
        (["lab.v1.Lab/Greet", "{}", "{}"], "", "lab.v1.Lab/Greet takes one request, and 2 were given"),
        (["lab.v1.Lab/Greet", "-"], "", "lab.v1.Lab/Greet takes one request, and 0 were given"),
        (["lab.v1.Lab/Add", "-"], '{"theNumber": 1}\n\n{"number": 2}\n', "request 2 is no lab.v1.Number: Message type"),
        (["lab.v1.Lab/Shout", "{}", "{"], "", "request 2 is no lab.v1.Text: Failed to load JSON"),
        (["lab.v1.Lab/greet"], "", "lab.v1.Lab has no method greet. It has: Add, Count, Greet, Shout"),
        (["lab.v1.Bal/Greet"], "", "no registered service serves lab.v1.Bal. There are: lab"),
        (["lab/lab.v1.Bal/Greet"], "", "the server does not serve lab.v1.Bal. It serves: "),
        (["Greet"], "", "'Greet' names no method; write package.Service/Method, for example"),
        (["a/b/c/d"], "", "'a/b/c/d' names no method; write package.Service/Method"),
        (["lab.v1.Lab/Greet", "--registry", "etcd://a"], "", "Registry 'etcd://a' is not understood."),
        (["lab.v1.Lab/Greet", "--target", "no such"], "", "Target 'no such' is not understood."),
    ],
)  # fmt: skip
def test_mistake(
    arguments: list[str], stdin: str, message: str, lab: Serving, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with the request, the method or the place; exit code 2."""
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    code, printed, said = here("call", *arguments)
    assert (code, printed) == (2, "")
    assert said.startswith(f"framework: {message}")


def test_target(lab: Serving, folder: Path, here: Here) -> None:
    """An address, a URL of a registry, or a name in the registry; for health as well."""
    asked = ("grpc.health.v1.Health/Check", '{"service": "lab.v1.Lab"}')
    for target in (lab.address, f"sqlite:///{folder}/registry.db#lab", "lab", f"static://{lab.address}"):
        assert here("call", *asked, "--target", target) == (0, '{\n  "status": "SERVING"\n}\n', "")


def test_registered_name_before_the_service(lab: Serving, folder: Path) -> None:
    """`name/service/method` looks nothing up by reflection, so it works for what all services have."""
    assert json.loads(call(folder, "lab/grpc.health.v1.Health/Check")) == {"status": "SERVING"}


def test_nobody_there(here: Here, tmp_path: Path) -> None:
    """A place where nobody listens, and a registry without anybody in it."""
    target = f"127.0.0.1:{free_ports(1)[0]}"
    code, _, said = here("call", "lab.v1.Lab/Greet", "--target", target)
    assert (code, said.startswith(f"framework: UNAVAILABLE: cannot connect to {target}")) == (1, True)
    url = f"sqlite:///{tmp_path}/registry.db"
    assert here("call", "lab.v1.Lab/Greet", "--registry", url) == (
        2,
        "",
        f"framework: nothing is registered in {url}. Start a service, or say where with --target\n",
    )
    code, _, said = here("call", "other/lab.v1.Lab/Greet", "--registry", url)
    assert (code, said.startswith(f"framework: UNAVAILABLE: no instance of other in {url}")) == (1, True)


async def test_registered_and_silent(tmp_path: Path) -> None:
    """An instance that is registered and does not answer is named, with the reason."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    url = f"sqlite:///{tmp_path}/registry.db"
    registry = open_registry(url)
    async with aclosing(registry):
        await registry.register(Instance("dead-1", "dead", address))
        with pytest.raises(ConfigError) as caught:
            await find("", "lab.v1.Lab", url, Settings())
    reason = f"dead (cannot connect to dead at {address} (instances from {url}))"
    assert str(caught.value) == f"no registered service serves lab.v1.Lab. What these serve is not known: {reason}"


@pytest.mark.parametrize("form", ["lab.v1.Lab/Greet", "{name}/lab.v1.Lab/Greet"])
@pytest.mark.parametrize("settings", ["", "?interval=1"])
def test_consul(form: str, settings: str, consul: ConsulAgent, folder: Path) -> None:
    """A service is found in Consul, under its name or by what it serves."""
    name, url = f"lab-{uuid.uuid4().hex[:8]}", f"consul://{consul.address}{settings}"
    with serving(folder, FRAMEWORK_REGISTRY=url, LAB_NAME=name):
        reply = call(folder, form.format(name=name), '{"text": "Ada"}', "--registry", url)
    assert json.loads(reply) == {"text": "Hello, Ada!"}
