"""A service of four arities, generated and written into a directory, and the command line run on it as a user would."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from framework.codegen import generate

PROTO = """\
syntax = "proto3";
package lab.v1;

service Lab {
  rpc Greet(Text) returns (Text);
  rpc Count(Number) returns (stream Number);
  rpc Add(stream Number) returns (Number);
  rpc Shout(stream Text) returns (stream Text);
}
message Text { string text = 1; }
message Number { int32 the_number = 1; }
"""

SERVICE = '''\
"""Does what the text of a request says."""

import asyncio
import os

from google.rpc.error_details_pb2 import ResourceInfo

from framework import NotFound, Service
from lab.v1.lab_pb2 import Number, Text
from lab.v1.lab_rpc import LabServicer


class Lab(LabServicer):
    async def Greet(self, request, context):
        match request.text.split():
            case ["missing", name]:
                raise NotFound(f"no {name}", details=[ResourceInfo(resource_name=name)])
            case ["broken"]:
                raise ValueError("a secret")
            case ["slow", seconds]:
                await asyncio.sleep(float(seconds))
            case ["headers"]:
                sent = [tuple(pair) for pair in context.invocation_metadata()]
                return Text(text=str([pair for pair in sent if pair[0].startswith("x-lab")]))
            case ["time"]:
                return Text(text=f"{context.time_remaining():.0f} s")
        return Text(text=f"Hello, {request.text}!")

    async def Count(self, request, context):
        for number in range(1, request.the_number + 1):
            yield Number(the_number=number)
        if request.the_number == 1:
            await asyncio.sleep(60)
        if request.the_number == 13:
            raise NotFound("nothing after 13")

    async def Add(self, requests, context):
        return Number(the_number=sum([request.the_number async for request in requests]))

    async def Shout(self, requests, context):
        async for request in requests:
            yield Text(text=request.text.upper())


service = Service(os.environ.get("LAB_NAME", "lab"), servicers=[Lab()], version="1.2", zone="here", tags=["a", "b"])

if __name__ == "__main__":
    service.run()
'''

PLAIN = {
    "FRAMEWORK_ADMIN_PORT": "none",
    "FRAMEWORK_TELEMETRY_LOGS_FORMAT": "text",
    "FRAMEWORK_TELEMETRY_LOGS_SERVER": "none",
    "FRAMEWORK_TELEMETRY_LOGS_CLIENT": "none",
}
"""Logs as people read them, without those lines that calls have."""

SERVES = re.compile(r"serves on (\S+), (?:registered in (\S+) as (\S+)|not registered)\n")


def write(folder: Path, proto: str = PROTO) -> Path:
    """Put `lab_service.py`, the proto and what is generated from it into a directory, which is returned."""
    protos = folder / "protos" / "lab" / "v1"
    protos.mkdir(parents=True)
    (protos / "lab.proto").write_text(proto)
    generate(folder / "protos", folder)
    (folder / "lab_service.py").write_text(SERVICE)
    return folder


def environment(**variables: Any) -> dict[str, str]:
    """A user's shell, with these variables; logs are for people, and begin with that it serves."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("FRAMEWORK_", "GRPC_"))}
    return own | PLAIN | {name: str(value) for name, value in variables.items()}


def start(
    folder: Path,
    *command: str,
    stdin: int = subprocess.DEVNULL,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    **variables: Any,
) -> subprocess.Popen[str]:
    """A Python process in a directory."""
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment(**variables),
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        text=True,
    )


def framework(folder: Path, *arguments: str, stdin: str = "", **variables: Any) -> subprocess.CompletedProcess[str]:
    """The command, run to its end."""
    return subprocess.run(
        [sys.executable, "-m", "framework", *arguments],
        cwd=folder,
        env=environment(**variables),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


class Serving:
    """A server process that is up.

    Attributes:
        address: what it listens on.
        id: what it is registered as.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        match = SERVES.search(self.line("serves on"))
        assert match is not None
        self.address, self.id = match[1], match[3]

    def line(self, text: str) -> str:
        """The next line on its standard error, which has this text."""
        assert self.process.stderr is not None
        line = self.process.stderr.readline()
        assert text in line, line + self.process.stderr.read()
        return line

    def end(self, by: signal.Signals = signal.SIGTERM) -> tuple[int, list[str]]:
        """Send a signal; the exit code, and what it said after that, without dates."""
        self.process.send_signal(by)
        return self.ended()

    def ended(self) -> tuple[int, list[str]]:
        """The exit code, and what it said that was not read yet, without dates."""
        _, said = self.process.communicate(timeout=20)
        return self.process.returncode, [re.sub(r"^[0-9:.]+ \[\w+ *\] ", "", line) for line in said.splitlines()]


@contextlib.contextmanager
def serving(folder: Path, *command: str, **variables: Any) -> Iterator[Serving]:
    """`framework run lab_service`, or another command, once it serves; killed at the end if it is still there."""
    command = command or ("-m", "framework", "run", "lab_service")
    variables.setdefault("FRAMEWORK_SERVER_DRAIN_DELAY", 0)
    with start(folder, *command, **variables) as process:
        try:
            yield Serving(process)
        finally:
            process.kill()
