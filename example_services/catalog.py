"""The catalog: what the shop sells, and for how much.

framework run example_services.catalog:service
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from google.rpc.error_details_pb2 import ResourceInfo

from example_services.database import Database
from example_services.products import PRODUCTS
from example_services.shop.catalog.v1.catalog_pb2 import (
    BatchGetProductsRequest,
    BatchGetProductsResponse,
    GetProductRequest,
    ListProductsRequest,
    ListProductsResponse,
    Product,
    SetPriceRequest,
)
from example_services.shop.catalog.v1.catalog_rpc import CatalogServicer
from framework import Context, NotFound, Service

PAGE = 20


class Catalog(CatalogServicer):
    """Products in a database."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def GetProduct(self, request: GetProductRequest, context: Context) -> Product:
        [product] = await self.db.read(find, [request.id])
        return product

    async def BatchGetProducts(self, request: BatchGetProductsRequest, context: Context) -> BatchGetProductsResponse:
        return BatchGetProductsResponse(products=await self.db.read(find, request.ids))

    async def ListProducts(self, request: ListProductsRequest, context: Context) -> ListProductsResponse:
        size = request.page_size or PAGE
        products = await self.db.read(page, request.page_token, request.category, size + 1)
        more = len(products) > size
        return ListProductsResponse(products=products[:size], next_page_token=products[size - 1].id if more else "")

    async def SetPrice(self, request: SetPriceRequest, context: Context) -> Product:
        return await self.db.write(set_price, request)


def create(sql: sqlite3.Connection) -> None:
    sql.execute("CREATE TABLE products (id TEXT PRIMARY KEY, category TEXT NOT NULL, product BLOB NOT NULL)")
    rows = ((product.id, product.category, product.SerializeToString()) for product in PRODUCTS)
    sql.executemany("INSERT INTO products VALUES (?, ?, ?)", rows)


def find(sql: sqlite3.Connection, ids: Sequence[str]) -> list[Product]:
    """The products of these ids, in this order."""
    select = f"SELECT id, product FROM products WHERE id IN ({', '.join('?' * len(ids))})"  # noqa: S608  # question marks
    found = {id: Product.FromString(product) for id, product in sql.execute(select, tuple(ids))}
    if missing := [id for id in ids if id not in found]:
        details = [ResourceInfo(resource_type="product", resource_name=id) for id in missing]
        raise NotFound(f"no product {', '.join(missing)}", details=details)
    return [found[id] for id in ids]


def page(sql: sqlite3.Connection, after: str, category: str, size: int) -> list[Product]:
    """Up to `size` products with ids behind `after`."""
    select = "SELECT product FROM products WHERE id > ? AND (? = '' OR category = ?) ORDER BY id LIMIT ?"
    return [Product.FromString(product) for [product] in sql.execute(select, (after, category, category, size))]


def set_price(sql: sqlite3.Connection, request: SetPriceRequest) -> Product:
    [product] = find(sql, [request.id])
    product.price.CopyFrom(request.price)
    sql.execute("UPDATE products SET product = ? WHERE id = ?", (product.SerializeToString(), product.id))
    return product


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    async with Database.open("catalog", create) as db:
        service.add(Catalog(db))
        yield


service = Service(
    "catalog",
    lifespan=lifespan,
    metadata={"pid": str(os.getpid())},  # the registry tells which process this is
)

if __name__ == "__main__":
    service.run()
