"""Virtual time: the clock jumps from timer to timer."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from framework.testing import VirtualTimeLoop, run_virtual, virtual_time


def test_an_hour_takes_no_time() -> None:
    """The clock starts at 0 and stands exactly where the sleep ended; real time hardly passes."""

    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await asyncio.sleep(3600)
        return start, loop.time()

    real = time.monotonic()
    assert run_virtual(main()) == (0.0, 3600.0)
    assert time.monotonic() - real < 1


def test_timers_run_in_their_order() -> None:
    """By when they fall due, then by when they were set; each sees its own moment."""
    seen: list[tuple[str, float]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def ring(name: str) -> None:
            seen.append((name, loop.time()))

        for name, delay in (("c", 0.3), ("a", 0.1), ("d", 60.0), ("b", 0.1), ("now", 0.0)):
            loop.call_later(delay, ring, name)
        await asyncio.sleep(61)

    run_virtual(main())
    assert seen == [("now", 0.0), ("a", 0.1), ("b", 0.1), ("c", 0.3), ("d", 60.0)]


def test_work_at_hand_comes_before_the_clock() -> None:
    """Time does not move while something can run, however many turns it takes."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(0.001, lambda: None)
        for _ in range(1000):
            await asyncio.sleep(0)
        return loop.time()

    assert run_virtual(main()) == 0.0


def test_timer_that_is_cancelled_is_not_waited_for() -> None:
    """Only what is still to come moves the clock."""

    async def main() -> float:
        loop = asyncio.get_running_loop()
        loop.call_later(10, lambda: None).cancel()
        await asyncio.sleep(20)
        return loop.time()

    assert run_virtual(main()) == 20.0


def test_timeouts_are_exact() -> None:
    """`asyncio.timeout` and `wait_for` give up at their moment and not later."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        gave_up = []
        for wait in (asyncio.wait_for(asyncio.sleep(9), 2.5), asyncio.wait_for(asyncio.Event().wait(), 0.25)):
            with pytest.raises(TimeoutError):
                await wait
            gave_up.append(loop.time())
        async with asyncio.timeout(1):
            await asyncio.sleep(0.5)
        return [*gave_up, loop.time()]

    assert run_virtual(main()) == [2.5, 2.75, 3.25]


def test_tasks_share_the_clock() -> None:
    """What sleeps at the same time does so once."""

    async def main() -> float:
        async with asyncio.TaskGroup() as tasks:
            for delay in range(100):
                tasks.create_task(asyncio.sleep(delay))
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == 99.0


def test_stuck_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that nothing can end fails instead of hanging, and what waits is cleaned up."""
    monkeypatch.setattr(virtual_time, "STUCK", 0.05)
    cleaned: list[str] = []

    async def main() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.append("yes")

    with pytest.raises(RuntimeError, match="every task waits and no timer is set"):
        run_virtual(main())
    assert cleaned == ["yes"]


def test_threads_and_sockets_work() -> None:
    """Without a timer, the loop waits for them as any other."""

    async def main() -> tuple[str, bytes, float]:
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            reading = asyncio.create_task(loop.sock_recv(ours, 5))
            said = await asyncio.to_thread(lambda: theirs.send(b"hello") and "sent")
            return str(said), await reading, loop.time()

    assert run_virtual(main()) == ("sent", b"hello", 0.0)


def test_clock_can_be_moved_by_hand() -> None:
    """`advance` makes what falls due meanwhile run in the next turn."""

    async def main() -> list[float]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        rang: list[float] = []
        loop.call_later(5, lambda: rang.append(loop.time()))
        loop.advance(7)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return rang

    assert run_virtual(main()) == [7.0]


def test_result_and_exception_of_the_coroutine() -> None:
    """`run_virtual` hands both on, as `asyncio.run` does."""

    async def fails() -> None:
        raise LookupError("nothing here")

    assert run_virtual(asyncio.sleep(1, "done")) == "done"
    with pytest.raises(LookupError, match="nothing here"):
        run_virtual(fails())
