"""The inventory of the example."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from google.rpc.error_details_pb2 import PreconditionFailure

from example_services.shop.inventory.v1.inventory_pb2 import (
    CheckStockRequest,
    Item,
    Pallet,
    ReceiveStockResponse,
    ReleaseRequest,
    Reservation,
    ReserveRequest,
    WatchStockRequest,
)
from example_services.shop.inventory.v1.inventory_rpc import InventoryClient
from framework import AlreadyExists, FailedPrecondition, InvalidArgument


async def available(inventory: InventoryClient, *product_ids: str) -> list[int]:
    reply = await inventory.CheckStock(CheckStockRequest(product_ids=product_ids))
    return [stock.available for stock in reply.stock]


def reserve(id: str, **quantities: int) -> ReserveRequest:
    items = [Item(product_id=product.replace("_", "-"), quantity=quantity) for product, quantity in quantities.items()]
    return ReserveRequest(reservation_id=id, items=items)


async def test_reserved_goods_are_off_the_shelf(inventory: InventoryClient) -> None:
    """What is reserved cannot be sold again; a product that nobody has heard of is not there."""
    reservation = await inventory.Reserve(reserve("r", p_0001=3, p_0002=500))
    assert reservation.state == Reservation.HELD
    assert await available(inventory, "p-0001", "p-0002", "unknown") == [497, 0, 0]


async def test_a_repeated_reservation_takes_nothing(inventory: InventoryClient) -> None:
    """The same id is the same reservation."""
    first = await inventory.Reserve(reserve("r", p_0001=3))
    assert await inventory.Reserve(reserve("r", p_0001=3)) == first
    assert await available(inventory, "p-0001") == [497]


async def test_an_id_stands_for_one_reservation(inventory: InventoryClient) -> None:
    """Other goods under the same id are refused."""
    await inventory.Reserve(reserve("r", p_0001=3))
    with pytest.raises(AlreadyExists):
        await inventory.Reserve(reserve("r", p_0001=4))


async def test_all_lines_or_none(inventory: InventoryClient) -> None:
    """Where one product is short nothing is taken, and the details name each that is short."""
    with pytest.raises(FailedPrecondition) as caught:
        await inventory.Reserve(reserve("r", p_0001=3, p_0002=501, p_0003=999))
    [failure] = caught.value.details
    assert isinstance(failure, PreconditionFailure)
    assert [(one.type, one.subject) for one in failure.violations] == [
        ("OUT_OF_STOCK", "p-0002"),
        ("OUT_OF_STOCK", "p-0003"),
    ]
    assert await available(inventory, "p-0001", "p-0002", "p-0003") == [500, 500, 500]


async def test_released_goods_are_back_once(inventory: InventoryClient) -> None:
    """A release may be repeated, and puts the goods back one time."""
    await inventory.Reserve(reserve("r", p_0001=3))
    for _ in range(2):
        reservation = await inventory.Release(ReleaseRequest(reservation_id="r"))
        assert reservation.state == Reservation.RELEASED
    assert await available(inventory, "p-0001") == [500]


async def test_a_reservation_that_comes_after_its_release_is_refused(inventory: InventoryClient) -> None:
    """Messages overtake each other: what was released is never held again."""
    await inventory.Release(ReleaseRequest(reservation_id="r"))
    with pytest.raises(FailedPrecondition):
        await inventory.Reserve(reserve("r", p_0001=3))
    assert await available(inventory, "p-0001") == [500]


async def test_two_at_once_do_not_take_the_same_piece(inventory: InventoryClient) -> None:
    """Of ten who want 100 of 500 pieces at the same moment, five get them."""
    wanted = (inventory.Reserve(reserve(f"r{number}", p_0001=100)) for number in range(10))
    results = await asyncio.gather(*wanted, return_exceptions=True)
    assert sum(isinstance(result, Reservation) for result in results) == 5
    assert await available(inventory, "p-0001") == [0]


async def test_a_load_of_pallets_is_booked(inventory: InventoryClient) -> None:
    """A stream of requests is answered with what it came to; new products are as welcome as old."""
    pallets = [Pallet(product_id="p-0001", quantity=10), Pallet(product_id="new", quantity=5)]
    assert await inventory.ReceiveStock(pallets) == ReceiveStockResponse(pallets=2, pieces=15)
    assert await available(inventory, "p-0001", "new") == [510, 5]


async def test_half_a_load_does_not_count(inventory: InventoryClient) -> None:
    """An upload that breaks off, or has something wrong in it, changes nothing."""

    async def broken() -> AsyncIterator[Pallet]:
        yield Pallet(product_id="p-0001", quantity=10)
        raise OSError("the lorry broke down")

    with pytest.raises(OSError, match="broke down"):
        await inventory.ReceiveStock(broken())
    with pytest.raises(InvalidArgument):
        await inventory.ReceiveStock([Pallet(product_id="p-0001", quantity=10), Pallet(product_id="p-0001")])
    assert await available(inventory, "p-0001") == [500]


async def test_watching_stock(inventory: InventoryClient) -> None:
    """The stock comes at once, and again when it changes; other products are not heard of."""
    watched = WatchStockRequest(product_ids=["p-0001", "p-0002"])
    async with inventory.WatchStock(watched) as stock:
        first = [await anext(stock), await anext(stock)]
        assert [(one.product_id, one.available) for one in first] == [("p-0001", 500), ("p-0002", 500)]
        await inventory.Reserve(reserve("r", p_0002=1, p_0003=1))
        change = await anext(stock)
        assert (change.product_id, change.available) == ("p-0002", 499)


async def test_wrong_reservations(inventory: InventoryClient) -> None:
    """An id and goods are needed."""
    for wrong in (reserve(""), reserve("r"), reserve("r", p_0001=0), reserve("", p_0001=1)):
        with pytest.raises(InvalidArgument):
            await inventory.Reserve(wrong)
