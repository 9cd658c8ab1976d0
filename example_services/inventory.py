"""The inventory: what is in the warehouse, and what of it is promised to somebody.

framework run example_services.inventory:service
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

from example_services.database import Database
from example_services.errors import KeyReused, refused
from example_services.products import PRODUCTS
from example_services.shop.inventory.v1.inventory_pb2 import (
    CheckStockRequest,
    CheckStockResponse,
    Item,
    Pallet,
    ReceiveStockResponse,
    ReleaseRequest,
    Reservation,
    ReserveRequest,
    Stock,
    WatchStockRequest,
)
from example_services.shop.inventory.v1.inventory_rpc import InventoryServicer
from framework import AlreadyExists, Context, Service

FULL = 500  # pieces of each product that a new warehouse has


class Inventory(InventoryServicer):
    """Stock and reservations in a database."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def CheckStock(self, request: CheckStockRequest, context: Context) -> CheckStockResponse:
        return CheckStockResponse(stock=await self.db.read(stock, request.product_ids))

    async def Reserve(self, request: ReserveRequest, context: Context) -> Reservation:
        return await self.db.write(reserve, request)

    async def Release(self, request: ReleaseRequest, context: Context) -> Reservation:
        return await self.db.write(release, request.reservation_id)

    async def WatchStock(self, request: WatchStockRequest, context: Context) -> AsyncIterator[Stock]:
        shown: dict[str, int] = {}
        async for _ in self.db.changes():
            for now in await self.db.read(stock, request.product_ids):
                if shown.get(now.product_id) != now.available:
                    shown[now.product_id] = now.available
                    yield now

    async def ReceiveStock(self, requests: AsyncIterator[Pallet], context: Context) -> ReceiveStockResponse:
        pallets = [pallet async for pallet in requests]
        await self.db.write(put_back, pallets)  # only now: an upload that broke off did not get here
        return ReceiveStockResponse(pallets=len(pallets), pieces=sum(pallet.quantity for pallet in pallets))


def create(sql: sqlite3.Connection) -> None:
    sql.execute("CREATE TABLE stock (product_id TEXT PRIMARY KEY, available INTEGER NOT NULL)")
    sql.execute("CREATE TABLE reservations (id TEXT PRIMARY KEY, reservation BLOB NOT NULL)")
    sql.executemany("INSERT INTO stock VALUES (?, ?)", ((product.id, FULL) for product in PRODUCTS))


def stock(sql: sqlite3.Connection, product_ids: Sequence[str]) -> list[Stock]:
    select = f"SELECT product_id, available FROM stock WHERE product_id IN ({', '.join('?' * len(product_ids))})"  # noqa: S608  # question marks
    found: dict[str, int] = dict(sql.execute(select, tuple(product_ids)))
    return [Stock(product_id=id, available=found.get(id, 0)) for id in product_ids]


def reserve(sql: sqlite3.Connection, request: ReserveRequest) -> Reservation:
    reservation = find(sql, request.reservation_id)
    if reservation is None:
        if short := [item.product_id for item in request.items if not take(sql, item)]:
            raise refused("OUT_OF_STOCK", *short, because="too few are left")
        return save(sql, Reservation(id=request.reservation_id, state=Reservation.HELD, items=request.items))
    if reservation.state == Reservation.RELEASED:
        raise refused("RESERVATION", reservation.id, because="is released, and an id is used once")
    if reservation.items != request.items:
        raise KeyReused(reservation.id)
    return reservation


def release(sql: sqlite3.Connection, id: str) -> Reservation:
    reservation = find(sql, id) or Reservation(id=id)
    if reservation.state != Reservation.RELEASED:
        put_back(sql, reservation.items)
        reservation.state = Reservation.RELEASED
        save(sql, reservation)
    return reservation


def take(sql: sqlite3.Connection, item: Item) -> bool:
    """Whether there was enough of it to take."""
    update = "UPDATE stock SET available = available - :n WHERE product_id = :id AND available >= :n"
    return sql.execute(update, {"id": item.product_id, "n": item.quantity}).rowcount == 1


def put_back(sql: sqlite3.Connection, items: Iterable[Item | Pallet]) -> None:
    sql.executemany(
        "INSERT INTO stock VALUES (?, ?) ON CONFLICT DO UPDATE SET available = available + excluded.available",
        ((item.product_id, item.quantity) for item in items),
    )


def find(sql: sqlite3.Connection, id: str) -> Reservation | None:
    row = sql.execute("SELECT reservation FROM reservations WHERE id = ?", (id,)).fetchone()
    return Reservation.FromString(row[0]) if row else None


def save(sql: sqlite3.Connection, reservation: Reservation) -> Reservation:
    if not reservation.HasField("create_time"):
        reservation.create_time.GetCurrentTime()
    sql.execute("INSERT OR REPLACE INTO reservations VALUES (?, ?)", (reservation.id, reservation.SerializeToString()))
    return reservation


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    async with Database.open("inventory", create) as db:
        service.add(Inventory(db))
        yield


service = Service(
    "inventory",
    lifespan=lifespan,
    errors={KeyReused: AlreadyExists},
    metadata={"pid": str(os.getpid())},  # the registry tells which process this is
)

if __name__ == "__main__":
    service.run()
