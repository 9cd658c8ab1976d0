"""The orders: take an order through prices, goods and money, over the other three services.

    framework run example_services.orders:service

An order is kept before anything is done for it, and so is every state it reaches. Each step may be done twice: its
idempotency key is the order's id. So whoever repeats PlaceOrder goes on where the last attempt ended, however it ended:
a peer that was away, a deadline, a crash.

    RECEIVED --goods--> RESERVED --money--> PLACED --time--> SHIPPED
        |                   |                  |
        +------refused------+               CancelOrder
        v                                      v
    REJECTING --goods back--> REJECTED     CANCELLING --money back, goods back--> CANCELLED
"""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import cast

from google.rpc.error_details_pb2 import PreconditionFailure

from example_services.database import Database
from example_services.errors import KeyReused, refused
from example_services.shop.catalog.v1.catalog_pb2 import BatchGetProductsRequest
from example_services.shop.catalog.v1.catalog_rpc import CatalogClient
from example_services.shop.common.v1.money_pb2 import Money
from example_services.shop.inventory.v1.inventory_pb2 import CheckStockRequest, Item, ReleaseRequest, ReserveRequest
from example_services.shop.inventory.v1.inventory_rpc import InventoryClient
from example_services.shop.orders.v1.orders_pb2 import (
    Basket,
    BasketChange,
    CancelOrderRequest,
    GetOrderRequest,
    Line,
    Order,
    PlaceOrderRequest,
    WatchOrderRequest,
)
from example_services.shop.orders.v1.orders_rpc import OrdersServicer
from example_services.shop.payments.v1.payments_pb2 import ChargeRequest, RefundRequest
from example_services.shop.payments.v1.payments_rpc import PaymentsClient
from framework import AlreadyExists, Context, FailedPrecondition, NotFound, Service, Unavailable, connect

log = logging.getLogger(__name__)

PACKING = 1.0  # seconds from an order to its parcel
FINAL = (Order.SHIPPED, Order.REJECTED, Order.CANCELLED)


class Orders(OrdersServicer):
    """Orders in a database, and what has to be done for them."""

    def __init__(
        self, db: Database, catalog: CatalogClient, inventory: InventoryClient, payments: PaymentsClient
    ) -> None:
        self.db = db
        self.catalog = catalog
        self.inventory = inventory
        self.payments = payments
        self.steps = {  # what takes an order on from a state in which it cannot stay
            Order.RECEIVED: self._reserve,
            Order.RESERVED: self._charge,
            Order.REJECTING: self._release,
            Order.CANCELLING: self._refund,
        }

    async def PlaceOrder(self, request: PlaceOrderRequest, context: Context) -> Order:
        order = await self.db.read(find_by_key, request)
        if order is None:
            order = await self._price(request)
            order = await self.db.write(insert, request, order)
        order = await self._settle(order)
        if order.state == Order.REJECTED:
            because = ", ".join(f"{one.subject} {one.description}" for one in order.refusal.violations)
            raise FailedPrecondition(f"{order.id} is rejected: {because}", details=[order.refusal])
        return order

    async def GetOrder(self, request: GetOrderRequest, context: Context) -> Order:
        return await self.db.read(find, request.id)

    async def CancelOrder(self, request: CancelOrderRequest, context: Context) -> Order:
        order = await self._settle(await self.db.write(cancel, request.id))
        if order.state != Order.CANCELLED:
            raise refused("ORDER_STATE", order.id, because=f"is {Order.State.Name(order.state)}")
        return order

    async def WatchOrder(self, request: WatchOrderRequest, context: Context) -> AsyncIterator[Order]:
        shown = None
        async for _ in self.db.changes():
            order = await self.db.read(find, request.id)
            if order.state != shown:
                shown = order.state
                yield order
            if order.state in FINAL:
                return

    async def FillBasket(self, requests: AsyncIterator[BasketChange], context: Context) -> AsyncIterator[Basket]:
        quantities: dict[str, int] = {}
        async for change in requests:
            quantities[change.product_id] = change.quantity
            if not change.quantity:
                del quantities[change.product_id]
            lines, stock = await asyncio.gather(
                self._lines(quantities), self.inventory.CheckStock(CheckStockRequest(product_ids=quantities))
            )
            short = [one.product_id for one in stock.stock if one.available < quantities[one.product_id]]
            yield Basket(lines=lines, total=total(lines), short_product_ids=short)

    async def ship(self) -> None:
        """Ship what has been packed, for as long as the service runs. Every instance may do so."""
        while True:
            try:
                await self.db.write(ship_packed, time.time() - PACKING)
            except sqlite3.OperationalError:
                log.exception("nothing could be shipped; trying again")
            await asyncio.sleep(PACKING / 10)

    async def _price(self, request: PlaceOrderRequest) -> Order:
        """A new order, at the prices of this moment."""
        lines = await self._lines({item.product_id: item.quantity for item in request.items})
        order = Order(
            id=f"order-{uuid.uuid4().hex[:12]}",
            state=Order.RECEIVED,
            customer_id=request.customer_id,
            lines=lines,
            total=total(lines),
            card=request.card,
        )
        order.create_time.GetCurrentTime()
        if request.HasField("expected_total") and request.expected_total != order.total:
            raise refused("PRICE_CHANGED", order.customer_id, because=f"the total is {order.total.minor_units} by now")
        return order

    async def _lines(self, quantities: Mapping[str, int]) -> list[Line]:
        try:
            found = await self.catalog.BatchGetProducts(BatchGetProductsRequest(ids=quantities))
        except NotFound as error:  # what a peer says is passed on only on purpose
            raise NotFound(error.message, details=error.details) from error
        return [
            Line(product_id=product.id, name=product.name, quantity=quantities[product.id], unit_price=product.price)
            for product in found.products
        ]

    async def _settle(self, order: Order) -> Order:
        """Take an order, step by step, to a state in which it can stay."""
        while step := self.steps.get(order.state):
            order = await step(order)
        return order

    async def _reserve(self, order: Order) -> Order:
        items = [Item(product_id=line.product_id, quantity=line.quantity) for line in order.lines]
        try:
            await self.inventory.Reserve(ReserveRequest(reservation_id=order.id, items=items))
        except FailedPrecondition as refusal:
            return await self._reject(order, refusal)
        return await self.db.write(move, order, Order.RESERVED)

    async def _charge(self, order: Order) -> Order:
        try:
            payment = await self.payments.Charge(
                ChargeRequest(idempotency_key=order.id, card=order.card, amount=order.total)
            )
        except FailedPrecondition as refusal:
            return await self._reject(order, refusal)
        order.payment_id = payment.id
        return await self.db.write(move, order, Order.PLACED)

    async def _reject(self, order: Order, refusal: FailedPrecondition) -> Order:
        for detail in refusal.details:
            if isinstance(detail, PreconditionFailure):
                order.refusal.CopyFrom(detail)
        return await self.db.write(move, order, Order.REJECTING)

    async def _release(self, order: Order) -> Order:
        await self.inventory.Release(ReleaseRequest(reservation_id=order.id))
        return await self.db.write(move, order, Order.REJECTED)

    async def _refund(self, order: Order) -> Order:
        await self.payments.Refund(RefundRequest(id=order.payment_id))
        await self.inventory.Release(ReleaseRequest(reservation_id=order.id))
        return await self.db.write(move, order, Order.CANCELLED)


def total(lines: Sequence[Line]) -> Money:
    """What the lines cost together; the shop has one currency."""
    currency = lines[0].unit_price.currency if lines else ""
    return Money(currency=currency, minor_units=sum(line.quantity * line.unit_price.minor_units for line in lines))


def create(sql: sqlite3.Connection) -> None:
    sql.execute(
        "CREATE TABLE orders (id TEXT PRIMARY KEY, idempotency_key TEXT NOT NULL UNIQUE, request BLOB NOT NULL,"
        " state INTEGER NOT NULL, document BLOB NOT NULL, created REAL NOT NULL)"
    )
    sql.execute("CREATE INDEX orders_by_state ON orders (state, created)")


def find(sql: sqlite3.Connection, id: str) -> Order:
    row = sql.execute("SELECT document, state FROM orders WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise NotFound(f"no order {id}")
    return as_order(*row)


def find_by_key(sql: sqlite3.Connection, request: PlaceOrderRequest) -> Order | None:
    """The order that this key stands for, if it was seen before."""
    select = "SELECT document, state, request FROM orders WHERE idempotency_key = ?"
    row = sql.execute(select, (request.idempotency_key,)).fetchone()
    if row is None:
        return None
    if PlaceOrderRequest.FromString(row[2]) != request:
        raise KeyReused(request.idempotency_key)
    return as_order(*row[:2])


def as_order(document: bytes, state: int) -> Order:
    """The column says in which state it is, so that SQL can ask for it and change it."""
    order = Order.FromString(document)
    order.state = cast("Order.State.ValueType", state)
    return order


def insert(sql: sqlite3.Connection, request: PlaceOrderRequest, order: Order) -> Order:
    """Keep a new order, unless another attempt with its key came first; returns the one that is kept."""
    kept = (request.idempotency_key, request.SerializeToString(), order.state, order.SerializeToString())
    sql.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", (order.id, *kept, time.time()))
    return find_by_key(sql, request) or order


def move(sql: sqlite3.Connection, order: Order, state: Order.State.ValueType) -> Order:
    """Move an order on, unless another attempt has done so; returns it as it is now."""
    update = "UPDATE orders SET state = ?, document = ? WHERE id = ? AND state = ?"
    sql.execute(update, (state, order.SerializeToString(), order.id, order.state))
    return find(sql, order.id)


def cancel(sql: sqlite3.Connection, id: str) -> Order:
    order = find(sql, id)
    return move(sql, order, Order.CANCELLING) if order.state == Order.PLACED else order


def ship_packed(sql: sqlite3.Connection, created_before: float) -> None:
    update = "UPDATE orders SET state = ? WHERE state = ? AND created < ?"
    sql.execute(update, (Order.SHIPPED, Order.PLACED, created_before))


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    async with (
        Database.open("orders", create) as db,
        connect("catalog") as catalog,
        connect("inventory") as inventory,
        connect("payments") as payments,
    ):
        orders = Orders(db, CatalogClient(catalog), InventoryClient(inventory), PaymentsClient(payments))
        service.add(orders)
        shipping = asyncio.create_task(orders.ship())
        try:
            yield
        finally:
            shipping.cancel()


ERRORS = {
    KeyReused: AlreadyExists,
    Unavailable: Unavailable,  # of a peer: the order is kept as far as it got, and the caller may repeat the call
}
service = Service(
    "orders",
    lifespan=lifespan,
    errors=ERRORS,
    metadata={"pid": str(os.getpid())},  # the registry tells which process this is
)

if __name__ == "__main__":
    service.run()
