"""The services of the example on a network in memory; each test has data of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from example_services import catalog as catalog_module
from example_services import inventory as inventory_module
from example_services import payments as payments_module
from example_services.shop.catalog.v1.catalog_rpc import CatalogClient
from example_services.shop.inventory.v1.inventory_rpc import InventoryClient
from example_services.shop.payments.v1.payments_rpc import PaymentsClient
from framework.testing import Network


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the services keep their databases."""
    monkeypatch.setenv("SHOP_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
async def catalog(network: Network) -> CatalogClient:
    """The catalog, with the products that the shop starts with."""
    network.add(catalog_module.service)
    return CatalogClient(network.connect("catalog"))


@pytest.fixture
async def inventory(network: Network) -> InventoryClient:
    """The inventory, with 500 pieces of each product."""
    network.add(inventory_module.service)
    return InventoryClient(network.connect("inventory"))


@pytest.fixture
async def payments(network: Network) -> PaymentsClient:
    """The payments; none was made yet."""
    network.add(payments_module.service)
    return PaymentsClient(network.connect("payments"))
