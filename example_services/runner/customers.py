"""The customers: they place orders, and repeat an order under its key until it is answered."""

from __future__ import annotations

import asyncio
import random
import statistics
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from example_services.products import PRODUCTS
from example_services.shop.common.v1.money_pb2 import Money
from example_services.shop.inventory.v1.inventory_pb2 import Pallet, WatchStockRequest
from example_services.shop.inventory.v1.inventory_rpc import InventoryClient
from example_services.shop.orders.v1.orders_pb2 import (
    Basket,
    BasketChange,
    Order,
    OrderItem,
    PlaceOrderRequest,
    WatchOrderRequest,
)
from example_services.shop.orders.v1.orders_rpc import OrdersClient
from framework import DeadlineExceeded, RpcError, Unavailable

TIMEOUT = 2.0  # seconds that one attempt may take
PATIENCE = 15.0  # seconds after which a customer gives up
PAUSE = 0.05  # seconds before the first repetition; doubled each time


@dataclass
class Tally:
    """What has happened so far.

    Attributes:
        sold: pieces by product, since the warehouse was last filled up.
        latencies: seconds that the latest orders took, with all their attempts.
        recent: the latest orders.
    """

    placed: int = 0
    failed: int = 0
    repeated: int = 0
    sold: Counter[str] = field(default_factory=Counter)
    latencies: deque[float] = field(default_factory=lambda: deque(maxlen=500))
    recent: deque[Order] = field(default_factory=lambda: deque(maxlen=6))

    def percentile(self, percent: int) -> float:
        """Milliseconds that so many percent of the latest orders took at most."""
        if len(self.latencies) < 2:
            return 1000 * sum(self.latencies)
        return 1000 * statistics.quantiles(self.latencies, n=100, method="inclusive")[percent - 1]

    def __str__(self) -> str:
        return f"orders placed: {self.placed}, failed: {self.failed}"


class Customers:
    """Customers of the shop.

    Args:
        orders, inventory: clients of its services.
        tally: what they do is counted here.
        say: is told what they do.
    """

    def __init__(
        self, orders: OrdersClient, inventory: InventoryClient, tally: Tally, say: Callable[[str], None]
    ) -> None:
        self.tally = tally
        self._orders = orders
        self._inventory = inventory
        self._say = say
        self._random = random.Random(1)

    async def buy(self) -> Order | None:
        """Buy a few things."""
        products = self._random.sample(PRODUCTS, self._random.randint(1, 3))
        items = [OrderItem(product_id=product.id, quantity=self._random.randint(1, 3)) for product in products]
        return await self.place(items)

    async def buy_many(self, count: int, at_once: int) -> None:
        """Place so many orders, a few at the same time."""
        turns = iter(range(count))

        async def customer() -> None:
            for _ in turns:
                await self.buy()

        await asyncio.gather(*(customer() for _ in range(at_once)))

    async def buy_steadily(self, per_second: float) -> None:
        """Place orders at a steady rate, until cancelled."""
        async with asyncio.TaskGroup() as customers:
            while True:
                customers.create_task(self.buy())
                await asyncio.sleep(1 / per_second)

    async def place(self, items: Iterable[OrderItem], expected_total: Money | None = None) -> Order | None:
        """Place an order: the same request with the same key, until somebody answers. None when it failed."""
        request = PlaceOrderRequest(
            idempotency_key=str(uuid.uuid4()),
            customer_id=f"customer-{self._random.randint(1, 50)}",
            items=items,
            card="card-visa",
            expected_total=expected_total,
        )
        now = asyncio.get_running_loop().time
        start = now()
        pause = PAUSE
        while True:
            try:
                order = await self._orders.PlaceOrder(request, timeout=TIMEOUT)
            except RpcError as error:
                if not isinstance(error, Unavailable | DeadlineExceeded) or now() - start > PATIENCE:
                    self.tally.failed += 1
                    self._say(f"an order failed: {error}")
                    return None
                self.tally.repeated += 1
                self._say(f"an order is repeated: {error}")
                await asyncio.sleep(pause * self._random.uniform(0.5, 1.0))
                pause *= 2
            else:
                self.tally.placed += 1
                self.tally.latencies.append(now() - start)
                self.tally.recent.appendleft(order)
                self.tally.sold.update({line.product_id: line.quantity for line in order.lines})
                return order

    async def fill_basket(self) -> Basket:
        """Put things into a basket and take one out again; each change is answered with the total."""
        a, b = self._random.sample(PRODUCTS, 2)
        changes = [
            BasketChange(product_id=a.id, quantity=2),
            BasketChange(product_id=b.id, quantity=1),
            BasketChange(product_id=a.id, quantity=0),
        ]
        basket = Basket()
        async for basket in self._orders.FillBasket(changes):
            self._say(f"a basket costs {price(basket.total)}")
        return basket

    async def follow(self, order: Order) -> None:
        """Watch an order until it is shipped."""
        async for now in self._orders.WatchOrder(WatchOrderRequest(id=order.id)):
            self._say(f"{now.id} is {Order.State.Name(now.state)}")

    async def fill_warehouse(self) -> None:
        """Bring what was sold, and see the first of it arrive on the shelf."""
        sold, self.tally.sold = self.tally.sold, Counter()
        if not sold:
            return
        watched = WatchStockRequest(product_ids=[next(iter(sold))])
        async with self._inventory.WatchStock(watched) as stock:
            before = await anext(stock)
            pallets = (Pallet(product_id=product_id, quantity=quantity) for product_id, quantity in sold.items())
            received = await self._inventory.ReceiveStock(pallets)
            after = await anext(stock)
        self._say(
            f"{received.pieces} pieces arrived: of {after.product_id} {after.available} now, {before.available} before"
        )


def price(amount: Money) -> str:
    """`19.99 EUR`."""
    return f"{amount.minor_units / 100:.2f} {amount.currency}"
