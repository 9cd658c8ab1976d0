"""`python -m example_services` as a process of its own, for tests that look at it from outside."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVES = re.compile(r"(\w+-\d) \(pid (\d+)\) serves on (\S+)")


class Running:
    """The process, and what it printed.

    Attributes:
        lines: what it printed so far.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.lines: list[str] = []
        self._coming: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def until(self, pattern: str, seconds: float = 20.0) -> re.Match[str]:
        """Wait until it has printed a line like this one."""
        give_up = time.monotonic() + seconds
        seen = 0
        while True:
            for printed in self.lines[seen:]:
                if match := re.search(pattern, printed):
                    return match
            seen = len(self.lines)
            try:
                line = self._coming.get(timeout=max(0.0, give_up - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"nothing like {pattern!r} in {seconds:g} s:\n{self}") from None
            if line is None:
                raise AssertionError(f"it ended without {pattern!r}:\n{self}")
            self.lines.append(line)

    def end(self, by: signal.Signals | None = None, seconds: float = 20.0) -> int:
        """Send a signal, if any, and wait for the end; returns the exit code."""
        if by is not None:
            self.process.send_signal(by)
        code = self.process.wait(seconds)
        self._reader.join()
        while (line := self._coming.get()) is not None:
            self.lines.append(line)
        return code

    @property
    def pids(self) -> dict[str, int]:
        """The latest process of each instance, by its name."""
        return {match[1]: int(match[2]) for match in map(SERVES.match, self.lines) if match}

    @property
    def addresses(self) -> dict[str, str]:
        """Where each instance serves."""
        return {match[1]: match[3] for match in map(SERVES.match, self.lines) if match}

    def left(self) -> list[str]:
        """The instances whose processes are still there."""
        return [name for name, pid in self.pids.items() if _runs(pid)]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._coming.put(line.rstrip("\n"))
        self._coming.put(None)

    def __str__(self) -> str:
        return "\n".join(self.lines)


def _runs(pid: int) -> bool:
    try:
        return b"example_services" in Path(f"/proc/{pid}/cmdline").read_bytes()  # a zombie has none
    except (FileNotFoundError, ProcessLookupError):
        return False


def clean_environment() -> dict[str, str]:
    """Ours, without what would change the shop."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("FRAMEWORK_", "SHOP_"))}


@contextlib.contextmanager
def running(tmp_path: Path, *arguments: str, **environment: str) -> Iterator[Running]:
    """Start it with `tmp_path` as the temporary directory; kills it when the test has not ended it."""
    with subprocess.Popen(
        [sys.executable, "-m", "example_services", *(("--port", "0") if "--port" not in arguments else ()), *arguments],
        cwd=ROOT,
        env=clean_environment() | {"TMPDIR": str(tmp_path)} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        shop = Running(process)
        try:
            yield shop
        finally:
            if process.poll() is None:
                shop.end(signal.SIGKILL)
