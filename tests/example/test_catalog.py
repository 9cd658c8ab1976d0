"""The catalog of the example."""

from __future__ import annotations

import pytest
from google.rpc.error_details_pb2 import BadRequest, ResourceInfo

from example_services.products import PRODUCTS
from example_services.shop.catalog.v1.catalog_pb2 import (
    BatchGetProductsRequest,
    GetProductRequest,
    ListProductsRequest,
    SetPriceRequest,
)
from example_services.shop.catalog.v1.catalog_rpc import CatalogClient
from example_services.shop.common.v1.money_pb2 import Money
from framework import InvalidArgument, NotFound


async def test_a_product_has_a_name_and_a_price(catalog: CatalogClient) -> None:
    """A product is found by its id."""
    product = await catalog.GetProduct(GetProductRequest(id="p-0001"))
    assert (product.name, product.category) == ("Pine desk lamp", "lighting")
    assert product.price == Money(currency="EUR", minor_units=2799)


async def test_missing_product(catalog: CatalogClient) -> None:
    """A product that nobody sells is NOT_FOUND, and the details name it."""
    with pytest.raises(NotFound, match="no product p-9999") as caught:
        await catalog.GetProduct(GetProductRequest(id="p-9999"))
    assert caught.value.details == (ResourceInfo(resource_type="product", resource_name="p-9999"),)


async def test_several_products_come_in_the_order_asked_for(catalog: CatalogClient) -> None:
    """One call fetches many."""
    ids = ["p-0300", "p-0001", "p-0042"]
    found = await catalog.BatchGetProducts(BatchGetProductsRequest(ids=ids))
    assert [product.id for product in found.products] == ids


async def test_one_missing_of_several(catalog: CatalogClient) -> None:
    """All that are missing are named."""
    with pytest.raises(NotFound) as caught:
        await catalog.BatchGetProducts(BatchGetProductsRequest(ids=["p-0001", "a", "b"]))
    assert [detail.resource_name for detail in caught.value.details] == ["a", "b"]


async def test_pages_hold_every_product_once(catalog: CatalogClient) -> None:
    """Page after page, all 300 come in the order of their ids."""
    found = []
    request = ListProductsRequest(page_size=70)
    while True:
        page = await catalog.ListProducts(request)
        found += [product.id for product in page.products]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert found == sorted(product.id for product in PRODUCTS)
    assert len(found) == 300


async def test_pages_of_a_category(catalog: CatalogClient) -> None:
    """Only what is asked for is on the page, and there is a next one exactly when more is left."""
    page = await catalog.ListProducts(ListProductsRequest(category="storage", page_size=45))
    assert {product.category for product in page.products} == {"storage"}
    assert len(page.products) == 45
    assert page.next_page_token == ""


async def test_price_changes(catalog: CatalogClient) -> None:
    """A new price holds from then on."""
    price = Money(currency="EUR", minor_units=1)
    await catalog.SetPrice(SetPriceRequest(id="p-0001", price=price))
    assert (await catalog.GetProduct(GetProductRequest(id="p-0001"))).price == price


async def test_a_wrong_request_names_its_field(catalog: CatalogClient) -> None:
    """INVALID_ARGUMENT comes with the field and what is wrong with it."""
    with pytest.raises(InvalidArgument) as caught:
        await catalog.SetPrice(SetPriceRequest(id="p-0001"))
    [detail] = caught.value.details
    assert isinstance(detail, BadRequest)
    assert detail.field_violations[0].field == "price"
