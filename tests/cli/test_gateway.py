"""`framework gateway` and `framework run --http`, as processes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.cli.lab import framework, serving, start, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("lab"))


def line(process: subprocess.Popen[str], pattern: str) -> re.Match[str]:
    """The next line on its standard error that is like this."""
    assert process.stderr is not None
    seen = ""
    for said in process.stderr:
        seen += said
        if match := re.search(pattern, said):
            return match
    raise AssertionError(f"nothing like {pattern}:\n{seen}")


def greet(base: str, name: str) -> Any:
    request = urllib.request.Request(
        f"{base}/lab.v1.Lab/Greet", json.dumps({"text": name}).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def test_what_is_registered_is_served(folder: Path, tmp_path: Path) -> None:
    """A service that is registered can be called over HTTP; SIGTERM drains, and the exit code is 0."""
    registry = f"sqlite:///{tmp_path}/registry.db"
    with (
        serving(folder, "-m", "framework", "run", "lab_service", "--registry", registry),
        start(folder, "-m", "framework", "gateway", "--port", "0", "--registry", registry) as gateway,
    ):
        base = line(gateway, r"serves on (http://\S+), from")[1]
        assert "lab.v1.Lab" in line(gateway, r"serves \S+ \(\d routes\)")[0]
        assert greet(base, "Ada") == {"text": "Hello, Ada!"}
        with pytest.raises(urllib.error.HTTPError) as caught:
            greet(base, "missing lamp")
        assert (caught.value.code, json.load(caught.value)["message"]) == (404, "no lamp")
        gateway.send_signal(signal.SIGTERM)
        line(gateway, "the gateway drains: it accepts for 1 s more, then calls have 30 s and streams 5 s")
        _, rest = gateway.communicate(timeout=20)
        assert gateway.returncode == 0
        assert rest.rstrip().endswith("the gateway has stopped")


def test_http_beside_grpc(folder: Path) -> None:
    """One process, two ports, one drain."""
    with start(folder, "-m", "framework", "run", "lab_service", "--registry", "none", "--http", "0") as service:
        base = line(service, r"serves HTTP on (http://\S+)")[1]
        assert greet(base, "Ada") == {"text": "Hello, Ada!"}
        service.send_signal(signal.SIGINT)
        service.send_signal(signal.SIGINT)
        service.communicate(timeout=20)


@pytest.mark.parametrize(
    ("arguments", "settings", "told"),
    [
        (["--port", "many"], "", "--port is 'many'; it must be a whole number from 0 to 65535"),
        (["--services", "a b"], "", "--services has 'a b', which is no name of a service"),
        (["--registry", "nowhere"], "", "Registry 'nowhere' is not understood"),
        (["--host", "192.0.2.1", "--plaintext"], "", "cannot listen on 192.0.2.1: it is no address of this machine"),
        ([], "[gateway]\ncorss = {}", "gateway.corss is not a setting. Did you mean cors?"),
        ([], "[gateway]\ncors = {origins = ['*'], credentials = true}", "would let every page act for the user"),
        ([], "[gateway]\ndescriptors = 'shop.binpb'", "gateway.descriptors is 'shop.binpb'; it must be a table"),
        ([], "[server.http]\nport = 70000", "server.http.port is 70000; it must be a whole number from 0 to 65535"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], settings: str, told: str) -> None:
    """Each is told in one line, with exit code 2."""
    file = tmp_path / "framework.toml"
    file.write_text(settings)
    ended = framework(tmp_path, "gateway", *arguments)
    assert told in ended.stderr
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """The message says which, and what to do; nothing is said to be there before."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = framework(tmp_path, "gateway", "--port", str(port), FRAMEWORK_ADMIN_PORT=0)
    assert ended.stderr == (
        f"framework: port {port} on 127.0.0.1 is in use or may not be used. "
        "Choose another with --port, or 0 for any free one.\n"
    )
