"""The orders of the example: with the other three services beside them, and with peers that fail as a script says."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.rpc.error_details_pb2 import PreconditionFailure, ResourceInfo

from example_services import orders as orders_module
from example_services.database import Database
from example_services.errors import refused
from example_services.orders import ERRORS, Orders
from example_services.shop.catalog.v1.catalog_rpc import CatalogClient, CatalogMethods
from example_services.shop.common.v1.money_pb2 import Money
from example_services.shop.inventory.v1.inventory_pb2 import CheckStockRequest, Item, Reservation, ReserveRequest
from example_services.shop.inventory.v1.inventory_rpc import InventoryClient, InventoryMethods
from example_services.shop.orders.v1.orders_pb2 import (
    BasketChange,
    CancelOrderRequest,
    GetOrderRequest,
    Order,
    OrderItem,
    PlaceOrderRequest,
    WatchOrderRequest,
)
from example_services.shop.orders.v1.orders_rpc import OrdersClient
from example_services.shop.payments.v1.payments_pb2 import GetPaymentRequest, Payment
from example_services.shop.payments.v1.payments_rpc import PaymentsClient, PaymentsMethods
from framework import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    RpcError,
    Service,
    Unavailable,
)
from framework.testing import Hosted, Network


class Instances:
    """Instances of orders on a network, all on one database.

    Attributes:
        client: calls any of them.
    """

    def __init__(self, network: Network, exits: AsyncExitStack) -> None:
        self.client = OrdersClient(network.connect("orders"))
        self._network = network
        self._exits = exits

    async def add(self) -> Hosted:
        """One more."""
        db = await self._exits.enter_async_context(Database.open("orders", orders_module.create))
        connect = self._network.connect
        servicer = Orders(
            db,
            CatalogClient(connect("catalog")),
            InventoryClient(connect("inventory")),
            PaymentsClient(connect("payments")),
        )
        shipping = asyncio.create_task(servicer.ship())
        self._exits.callback(shipping.cancel)
        return self._network.add(Service("orders", servicers=[servicer], errors=ERRORS))


@pytest_asyncio.fixture
async def instances(network: Network, data: Path) -> AsyncIterator[Instances]:
    """None yet; what they call is up to the test."""
    async with AsyncExitStack() as exits:
        yield Instances(network, exits)


@pytest_asyncio.fixture
async def orders(instances: Instances) -> OrdersClient:
    """A client of one instance."""
    await instances.add()
    return instances.client


def order(key: str = "k", card: str = "card-visa", quantity: int = 2, **more: Any) -> PlaceOrderRequest:
    """Some pine desk lamps at 27.99 EUR."""
    items = [OrderItem(product_id="p-0001", quantity=quantity)]
    return PlaceOrderRequest(idempotency_key=key, customer_id="c", items=items, card=card, **more)


def euros(cents: int) -> Money:
    return Money(currency="EUR", minor_units=cents)


async def lamps(inventory: InventoryClient) -> int:
    """How many are left of 500."""
    reply = await inventory.CheckStock(CheckStockRequest(product_ids=["p-0001"]))
    return reply.stock[0].available


def ledger(data: Path) -> list[int]:
    """All the money that moved."""
    with closing(sqlite3.connect(data / "payments.db")) as sql:
        return [cents for [cents] in sql.execute("SELECT minor_units FROM ledger ORDER BY rowid")]


def violations(error: RpcError) -> list[tuple[str, str]]:
    """What the details of a refusal say."""
    [failure] = error.details
    assert isinstance(failure, PreconditionFailure)
    return [(one.type, one.subject) for one in failure.violations]


async def test_an_order_takes_goods_and_money(
    orders: OrdersClient, catalog: CatalogClient, inventory: InventoryClient, payments: PaymentsClient
) -> None:
    """A placed order is priced by the catalog, reserved in the inventory and paid."""
    placed = await orders.PlaceOrder(order())
    assert placed.state == Order.PLACED
    assert [(line.name, line.quantity) for line in placed.lines] == [("Pine desk lamp", 2)]
    assert placed.total == euros(5598)
    assert await lamps(inventory) == 498
    payment = await payments.GetPayment(GetPaymentRequest(id=placed.payment_id))
    assert (payment.state, payment.amount) == (Payment.CHARGED, euros(5598))
    assert await orders.GetOrder(GetOrderRequest(id=placed.id)) == placed


@pytest.mark.usefixtures("catalog", "payments")
async def test_the_same_key_is_the_same_order(instances: Instances, inventory: InventoryClient, data: Path) -> None:
    """Ten attempts at the same moment on two instances: one order, one reservation, one charge."""
    await instances.add()
    await instances.add()
    placed = await asyncio.gather(*(instances.client.PlaceOrder(order()) for _ in range(10)))
    assert len({one.id for one in placed}) == 1
    assert await lamps(inventory) == 498
    assert ledger(data) == [5598]


@pytest.mark.usefixtures("catalog", "inventory", "payments")
async def test_a_key_stands_for_one_order(orders: OrdersClient) -> None:
    """Another basket under the same key is refused."""
    await orders.PlaceOrder(order())
    with pytest.raises(AlreadyExists):
        await orders.PlaceOrder(order(quantity=3))


@pytest.mark.usefixtures("catalog", "payments")
async def test_a_declined_card_gives_the_goods_back(
    orders: OrdersClient, inventory: InventoryClient, data: Path
) -> None:
    """What was reserved is released, the details say why, and the key stands for that answer from then on."""
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="the bank declined it") as caught:
            await orders.PlaceOrder(order(card="card-declined"))
        assert violations(caught.value) == [("CARD_DECLINED", "card-declined")]
        assert await lamps(inventory) == 500
    assert ledger(data) == []


@pytest.mark.usefixtures("catalog")
async def test_out_of_stock_is_not_charged(orders: OrdersClient, network: Network) -> None:
    """The refusal of the inventory reaches the customer with its details, and the payments hear nothing."""
    inventory, payments = network.script("inventory"), network.script("payments")
    inventory.on(InventoryMethods.Reserve).fail(refused("OUT_OF_STOCK", "p-0001", because="too few are left"))
    inventory.on(InventoryMethods.Release).reply(Reservation(state=Reservation.RELEASED))
    with pytest.raises(FailedPrecondition, match="too few are left") as caught:
        await orders.PlaceOrder(order())
    assert violations(caught.value) == [("OUT_OF_STOCK", "p-0001")]
    assert [call.method.name for call in inventory.calls] == ["Reserve", "Release"]
    assert payments.calls == []


@pytest.mark.usefixtures("catalog", "payments")
async def test_a_total_that_the_customer_was_not_shown(orders: OrdersClient, inventory: InventoryClient) -> None:
    """When prices have changed, nothing is bought; at the right total it is."""
    with pytest.raises(FailedPrecondition) as caught:
        await orders.PlaceOrder(order(expected_total=euros(1)))
    assert violations(caught.value) == [("PRICE_CHANGED", "c")]
    assert await lamps(inventory) == 500
    assert (await orders.PlaceOrder(order(expected_total=euros(5598)))).state == Order.PLACED


@pytest.mark.usefixtures("catalog", "inventory", "payments")
async def test_an_unknown_product(orders: OrdersClient) -> None:
    """What the catalog says about it is passed on, details and all."""
    request = order()
    request.items.add(product_id="p-9999", quantity=1)
    with pytest.raises(NotFound, match="no product p-9999") as caught:
        await orders.PlaceOrder(request)
    assert caught.value.details == (ResourceInfo(resource_type="product", resource_name="p-9999"),)


@pytest.mark.usefixtures("catalog")
async def test_a_peer_that_is_away_comes_back(
    orders: OrdersClient, inventory: InventoryClient, network: Network
) -> None:
    """A charge that fails is repeated with the same key, and nothing is reserved again."""
    payments = network.script("payments")
    charge = payments.on(PaymentsMethods.Charge)
    charge.fail(Unavailable("in maintenance")).reply(Payment(id="pay-1", state=Payment.CHARGED))
    placed = await orders.PlaceOrder(order())
    assert (placed.state, placed.payment_id) == (Order.PLACED, "pay-1")
    assert await lamps(inventory) == 498
    assert [call.requests[0].idempotency_key for call in payments.calls] == [placed.id, placed.id]


@pytest.mark.usefixtures("catalog")
async def test_a_crash_between_goods_and_money_is_healed(
    instances: Instances, inventory: InventoryClient, network: Network
) -> None:
    """The instance dies while it waits for the payment; the call goes to another one, which finishes the order."""
    payments = network.script("payments")
    payments.on(PaymentsMethods.Charge).hang().reply(Payment(id="pay-1", state=Payment.CHARGED))
    first = await instances.add()
    attempt = asyncio.ensure_future(instances.client.PlaceOrder(order()))
    async with asyncio.timeout(5):
        while not payments.calls:  # noqa: ASYNC110  # a script has no event to wait for
            await asyncio.sleep(0)
    await instances.add()
    first.disconnect()
    placed = await attempt
    assert placed.state == Order.PLACED
    assert await lamps(inventory) == 498


@pytest.mark.usefixtures("catalog")
async def test_a_refused_order_is_taken_back_after_a_crash_too(orders: OrdersClient, network: Network) -> None:
    """The release is owed, and the next attempt with the key pays it."""
    inventory, payments = network.script("inventory"), network.script("payments")
    inventory.on(InventoryMethods.Reserve).reply(Reservation(state=Reservation.HELD))
    inventory.on(InventoryMethods.Release).fail(Unavailable("away")).reply(Reservation(state=Reservation.RELEASED))
    payments.on(PaymentsMethods.Charge).fail(refused("CARD_DECLINED", "card-visa", because="declined"))
    with pytest.raises(FailedPrecondition):
        await orders.PlaceOrder(order())
    assert [call.method.name for call in inventory.calls] == ["Reserve", "Release", "Release"]
    assert len(payments.calls) == 1


async def test_a_call_passes_its_deadline_on(orders: OrdersClient, network: Network) -> None:
    """No peer is given more time than the customer gives."""
    catalog = network.script("catalog")
    catalog.on(CatalogMethods.BatchGetProducts).fail(Unavailable("busy"))
    with pytest.raises(Unavailable):
        await orders.PlaceOrder(order(), timeout=5)  # less than any default
    assert catalog.calls
    for call in catalog.calls:
        assert call.time_remaining is not None
        assert 0 < call.time_remaining < 5


@pytest.mark.usefixtures("catalog", "payments")
async def test_cancelling_gives_everything_back(orders: OrdersClient, inventory: InventoryClient, data: Path) -> None:
    """Money and goods go back once, however often it is asked."""
    placed = await orders.PlaceOrder(order())
    for _ in range(2):
        assert (await orders.CancelOrder(CancelOrderRequest(id=placed.id))).state == Order.CANCELLED
    assert await lamps(inventory) == 500
    assert ledger(data) == [5598, -5598]


@pytest.mark.usefixtures("catalog", "inventory", "payments")
async def test_an_order_is_watched_until_it_is_shipped(orders: OrdersClient) -> None:
    """The stream tells each state and then ends; what is shipped cannot be cancelled."""
    placed = await orders.PlaceOrder(order())
    watched = orders.WatchOrder(WatchOrderRequest(id=placed.id))
    assert [one.state async for one in watched] == [Order.PLACED, Order.SHIPPED]
    with pytest.raises(FailedPrecondition, match="is SHIPPED"):
        await orders.CancelOrder(CancelOrderRequest(id=placed.id))


async def test_watching_nothing(orders: OrdersClient) -> None:
    """An order that does not exist is NOT_FOUND, in a stream too."""
    with pytest.raises(NotFound):
        await anext(orders.WatchOrder(WatchOrderRequest(id="nope")))


@pytest.mark.usefixtures("catalog", "inventory")
async def test_a_basket_is_answered_at_every_change(orders: OrdersClient) -> None:
    """Each change comes back as the whole basket: the next is decided with the answer to the last."""
    answered = asyncio.Event()
    answered.set()

    async def changes() -> AsyncIterator[BasketChange]:
        for product_id, quantity in [("p-0001", 2), ("p-0002", 1), ("p-0001", 0), ("p-0002", 0)]:
            await answered.wait()
            answered.clear()
            yield BasketChange(product_id=product_id, quantity=quantity)

    totals = []
    async for basket in orders.FillBasket(changes()):
        totals.append((len(basket.lines), basket.total.minor_units))
        answered.set()
    assert totals == [(1, 5598), (2, 8597), (1, 2999), (0, 0)]


async def test_a_basket_tells_what_is_short(
    orders: OrdersClient, catalog: CatalogClient, inventory: InventoryClient
) -> None:
    """More than the warehouse has is named, before anybody orders it."""
    items = [Item(product_id="p-0001", quantity=499)]
    await inventory.Reserve(ReserveRequest(reservation_id="r", items=items))
    change = BasketChange(product_id="p-0001", quantity=2)
    assert [list(basket.short_product_ids) async for basket in orders.FillBasket([change])] == [["p-0001"]]


async def test_wrong_orders(orders: OrdersClient) -> None:
    """Each is refused before anybody is asked."""
    twice = order()
    twice.items.add(product_id="p-0001", quantity=1)
    for wrong in (order(key=""), order(quantity=0), order(quantity=101), twice, PlaceOrderRequest(idempotency_key="k")):
        with pytest.raises(InvalidArgument):
            await orders.PlaceOrder(wrong)
