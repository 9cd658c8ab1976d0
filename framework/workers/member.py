"""A worker process, as the supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence

from framework.workers.worker import LEAVE, LONGEST_MESSAGE, RETIRE, VARIABLE, Report


class Member:
    """A worker process that has been started.

    Args:
        number: its place among the workers, from 1.
        command: what to run.
        where: the host and the port to listen on.
        first: no other serves yet.
        changed: called when it serves, leaves or has ended.

    Attributes:
        report: what it said when it served.
        leaves: it answers NOT_SERVING.
        mistakes: why it cannot serve, if that is the user's to put right.
    """

    def __init__(
        self, number: int, command: Sequence[str], where: tuple[str, int], first: bool, changed: Callable[[], None]
    ) -> None:
        self.number = number
        self.report: Report | None = None
        self.leaves = False
        self.mistakes: list[str] = []
        self._tried = asyncio.Event()
        self._ended = asyncio.Event()
        self._changed = changed
        self._loop = asyncio.get_running_loop()
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            told = {"control": theirs.fileno(), "host": where[0], "port": where[1], "first": first}
            # In a process group of its own, so that Ctrl-C on a terminal reaches the supervisor alone.
            try:
                self._process = subprocess.Popen(
                    command,
                    pass_fds=[theirs.fileno()],
                    env={**os.environ, VARIABLE: json.dumps(told)},
                    stdin=subprocess.DEVNULL,
                    process_group=0,
                )
            except OSError:
                self._control.close()
                raise
        self._control.setblocking(False)
        self._end = os.pidfd_open(self._process.pid)
        self._loop.add_reader(self._control, self._hear)
        self._loop.add_reader(self._end, self._gone)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def serves(self) -> bool:
        """It answers calls, and SERVING."""
        return self.report is not None and not self.leaves and not self._ended.is_set()

    async def starts(self) -> bool:
        """Whether it serves, as soon as that is known."""
        await self._tried.wait()
        return self.serves

    async def ended(self) -> None:
        """Wait until the process is gone."""
        await self._ended.wait()

    def tell(self, order: str) -> None:
        """Give an order; one that has ended needs none."""
        if order in (LEAVE, RETIRE):
            self.leaves = True
        with contextlib.suppress(OSError):
            self._control.send(order.encode())

    def kill(self) -> None:
        """End it, whatever it does."""
        if not self._ended.is_set():
            self._process.kill()

    def fate(self) -> str:
        """How it ended."""
        code = self._process.returncode
        if self.mistakes:
            return f"cannot serve ({'; '.join(self.mistakes)})"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _hear(self) -> bool:
        try:
            message = self._control.recv(LONGEST_MESSAGE)
        except OSError:
            return False
        if not message:
            self._loop.remove_reader(self._control)
            return False
        said = json.loads(message)
        self.leaves = self.leaves or said.get("leaves", False)
        self.mistakes += said.get("mistakes", [])
        if "serves" in said:
            self.report = Report.decode(said["serves"])
            self._tried.set()
        self._changed()
        return True

    def _gone(self) -> None:
        while self._hear():
            pass  # what it said last
        self._process.wait()
        self._loop.remove_reader(self._control)
        self._loop.remove_reader(self._end)
        self._control.close()
        os.close(self._end)
        self._ended.set()
        self._tried.set()
        self._changed()

    def __repr__(self) -> str:
        state = "ended" if self._ended.is_set() else "serves" if self.serves else "leaves" if self.leaves else "starts"
        return f"<Member {self.number} pid {self.pid} {state}>"
