"""The whole shop on this machine: `make run`, or `python -m example_services`."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from example_services.runner.certificates import Certificates, settings_of
from example_services.runner.customers import Customers, Tally
from example_services.runner.fleet import SERVICES, Fleet
from example_services.runner.secured import secure, token
from example_services.runner.shopfront import buy_over_http, shopfront
from example_services.runner.view import View
from example_services.shop.inventory.v1.inventory_rpc import InventoryClient
from example_services.shop.orders.v1.orders_pb2 import OrderItem
from example_services.shop.orders.v1.orders_rpc import OrdersClient
from framework import FrameworkError, RpcError, Settings, bearer, connect
from framework.logs import configure_logging
from framework.parsing import integer

ORDERS = 100  # with --once
AT_ONCE = 4  # of them at the same time
PER_SECOND = 5.0  # without
RESTOCK = 10.0  # seconds between deliveries to the warehouse
PORT = 8080  # of HTTP; any free one with --once, where nobody else asks


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m example_services", description="Run the shop, and buy from it.")
    parser.add_argument("--once", action="store_true", help=f"place {ORDERS} orders and end")
    parser.add_argument(
        "--registry",
        metavar="URL",
        default=os.environ.get("FRAMEWORK_REGISTRY"),
        help="consul://127.0.0.1:8500; default: FRAMEWORK_REGISTRY, or a file of this run's own",
    )
    parser.add_argument(
        "--port", metavar="PORT", help=f"for HTTP (default {PORT}; with --once any free one, as 0 always is)"
    )
    parser.add_argument("--tls", action="store_true", help="with mTLS between all of them, and HTTPS for customers")
    parser.add_argument("--auth", action="store_true", help="callers have to show who they are; prints how")
    args = parser.parse_args()
    try:
        default = 0 if args.once else PORT
        port = default if args.port is None else integer(0, 65535)(args.port, "PORT (--port)")
        return asyncio.run(run(args.registry, port, once=args.once, tls=args.tls, auth=args.auth))
    except FrameworkError as error:
        print(f"example_services: {error}", file=sys.stderr)
        return 1


async def run(registry: str | None, port: int, *, once: bool, tls: bool = False, auth: bool = False) -> int:
    """Start the shop, let customers buy, end it; returns the exit code. Ctrl-C ends it, a second one at once."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    tally, view = Tally(), View()
    try:
        with TemporaryDirectory(prefix="shop-") as directory, ExitStack() as exits:
            registry = registry or f"sqlite:///{directory}/registry.db"
            log_to(Path(directory, "gateway.log"), exits)
            certificates = Certificates.make(Path(directory), tuple(SERVICES)) if tls else None
            settings = settings_of(certificates)
            secured = secure(Path(directory)) if auth else None
            # The customers may order, and fill the warehouse.
            shown = token(secured, "customers", "buyer", "staff") if secured else ""
            showing = [bearer(shown)] if shown else []
            async with (
                Fleet.start(Path(directory), registry, view.say, certificates, secured) as fleet,
                shopfront(port, fleet.registry, certificates, secured) as gateway,
            ):
                url = gateway.server.url
                fleet.tell_prometheus(gateway=gateway.admin)
                await fleet.until_serving()
                async with (
                    connect("orders", settings=settings, registry=fleet.registry, interceptors=showing) as orders,
                    connect("inventory", settings=settings, registry=fleet.registry, interceptors=showing) as inventory,
                    view.showing(fleet, tally, gateway),
                ):
                    customers = Customers(OrdersClient(orders), InventoryClient(inventory), tally, view.say)
                    await fleet.during(
                        buy_once(customers, url, certificates, view, shown) if once else buy(customers, view)
                    )
    except asyncio.CancelledError:
        task.uncancel()
    view.say(str(tally))
    return 1 if tally.failed else 0


def log_to(file: Path, exits: ExitStack) -> None:
    """The gateway's lines, and what the customers' connections have to say, are not for the picture."""
    stream = exits.enter_context(file.open("w"))
    configure_logging(Settings.load().telemetry.logs, fields={"service": "gateway"}, stream=stream)


async def buy_once(customers: Customers, url: str, certificates: Certificates | None, view: View, token: str) -> None:
    """Place orders, one of them over HTTP, and use each kind of stream."""
    await customers.buy_many(ORDERS - 2, AT_ONCE)
    basket = await customers.fill_basket()
    items = [OrderItem(product_id=line.product_id, quantity=line.quantity) for line in basket.lines]
    if order := await customers.place(items, basket.total):
        await customers.follow(order)
    await buy_over_http(url, certificates, customers.tally, view.say, token)
    await customers.fill_warehouse()


async def buy(customers: Customers, view: View) -> None:
    """Place orders at a steady rate, and fill the warehouse up again, for ever."""
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(customers.buy_steadily(PER_SECOND))
        while True:
            await asyncio.sleep(RESTOCK)
            try:
                await customers.fill_warehouse()
            except RpcError as error:
                view.say(f"a delivery failed: {error}")


if __name__ == "__main__":
    sys.exit(main())
