"""One process of the shop: `framework run`, for as long as the process that started it lives.

    python -m example_services.runner.instance example_services.catalog:service

Its standard input is a pipe that nobody writes to. The pipe ends when the parent does, even when that was killed.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from framework.cli import main

PATIENCE = 3.0  # seconds to drain


def leave_with_parent() -> None:
    """Drain when the parent is gone."""
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=leave_with_parent, daemon=True).start()
    sys.exit(main(["run", *sys.argv[1:]]))
