"""SIGHUP while a program starts: what it means, a reload or the end, is known only when its settings are.

It imports next to nothing, because it is asked for before anything else is.
"""

import contextlib
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def holding() -> Iterator[None]:
    """Let SIGHUP wait, until `release` or the end of the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release() -> None:
    """Take SIGHUP, and one that has waited, as it is handled now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP])
