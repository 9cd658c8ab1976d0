"""Instances come and go while customers buy: every order is placed once and paid once, on either registry."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from example_services.inventory import FULL
from example_services.products import PRODUCTS
from example_services.runner.customers import Customers, Tally
from example_services.runner.fleet import INSTANCES, SERVICES, Fleet, Instance, StartError
from example_services.shop.inventory.v1.inventory_rpc import InventoryClient
from example_services.shop.orders.v1.orders_pb2 import Order
from example_services.shop.orders.v1.orders_rpc import OrdersClient
from framework import connect
from tests.consul_agent import MakeAgent

CUSTOMERS = 2  # who buy at the same time, one order after the other
PAUSE = 0.1  # seconds between two orders of one of them: the machine has instances to start, too


@pytest.fixture(params=["local", pytest.param("consul", marks=pytest.mark.long)])
def registry(request: pytest.FixtureRequest, data: Path) -> str:
    """The URL of a registry that nobody else uses."""
    if request.param == "local":
        return f"sqlite:///{data}/registry.db"
    agent: MakeAgent = request.getfixturevalue("consul_agent")
    return f"consul://{agent().address}"


@asynccontextmanager
async def open_shop(data: Path, registry: str) -> AsyncIterator[tuple[Fleet, Customers]]:
    """All instances, serving, and customers who can buy."""
    async with Fleet.start(data, registry, print) as fleet:
        await fleet.until_serving()
        async with (
            connect("orders", registry=fleet.registry) as orders,
            connect("inventory", registry=fleet.registry) as inventory,
        ):
            yield fleet, Customers(OrdersClient(orders), InventoryClient(inventory), Tally(), print)


async def buy_during(customers: Customers, outage: Coroutine[Any, Any, None]) -> None:
    """Customers buy without a pause until the outage is over."""
    over = asyncio.create_task(outage)

    async def customer() -> None:
        while not over.done():
            await customers.buy()
            await asyncio.sleep(PAUSE)

    await asyncio.gather(over, *(customer() for _ in range(CUSTOMERS)))


def rows(database: Path, select: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database)) as sql:
        return sql.execute(select).fetchall()


def check_books(data: Path, customers: Customers) -> None:
    """What the customers were told is what the three databases say."""
    tally = customers.tally
    print(f"{tally}, repeated: {tally.repeated}")
    assert tally.failed == 0
    assert tally.placed >= 5  # how many there are is a matter of the machine
    states = rows(data / "orders.db", "SELECT DISTINCT state FROM orders")
    assert {state for [state] in states} <= {Order.PLACED, Order.SHIPPED}
    totals = rows(data / "orders.db", "SELECT id, document FROM orders")
    assert len(totals) == tally.placed
    charges = rows(
        data / "payments.db",
        "SELECT idempotency_key, minor_units FROM payments JOIN ledger ON ledger.payment_id = payments.id",
    )
    due = sorted((id, Order.FromString(document).total.minor_units) for id, document in totals)
    assert sorted(charges) == due
    [[left]] = rows(data / "inventory.db", "SELECT sum(available) FROM stock")
    assert left == FULL * len(PRODUCTS) - tally.sold.total()


def restarted(instances: Sequence[Instance]) -> bool:
    return all(instance.starts == 2 and instance.state == "serving" for instance in instances)


async def test_a_rolling_restart_loses_no_order(data: Path, registry: str) -> None:
    """Every instance is replaced, one by one; nobody even has to repeat a call."""
    async with open_shop(data, registry) as (fleet, customers):

        async def restart_all() -> None:
            for instance in fleet.instances:
                await fleet.replace(instance)

        await buy_during(customers, restart_all())
        assert restarted(fleet.instances)
    check_books(data, customers)
    assert customers.tally.repeated == 0


async def test_kill_9_charges_nobody_twice(data: Path, registry: str) -> None:
    """One instance of each service dies, then the other; orders are repeated with their keys, and placed once."""
    async with open_shop(data, registry) as (fleet, customers):

        async def kill_all() -> None:
            for number in range(INSTANCES):
                victims = [fleet.of(service)[number] for service in SERVICES]
                for victim in victims:
                    victim.kill(signal.SIGKILL)
                await fleet.until(partial(restarted, victims))

        await buy_during(customers, kill_all())
    check_books(data, customers)


async def test_an_instance_that_cannot_start(data: Path) -> None:
    """The shop does not start without it, and its own words say why."""
    (data / "payments.db").write_text("this is no database, and it is long enough for SQLite to see that " * 20)
    with pytest.raises(StartError, match=r"payments-\d ended with exit code 1(.|\n)*file is not a database"):
        async with open_shop(data, f"sqlite:///{data}/registry.db"):
            pass
