"""What the engine pyvoy imports into Envoy: the service that `framework run` was asked for, as ASGI."""

from __future__ import annotations

import argparse

from framework.cli import run
from framework.config import Settings
from framework.pyvoy.embedded import Embedded, Order
from framework.service import Service


def _load(order: Order) -> tuple[Service, Settings]:
    parser = argparse.ArgumentParser()
    run.add_parser(parser.add_subparsers())
    return run.asked(parser.parse_args(["run", *order.arguments]))


app = Embedded(_load)
