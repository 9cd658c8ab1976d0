"""`make run AUTH=1`: the shop asks who calls, and whoever follows what it prints gets along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.example.running import ROOT, Running, clean_environment, running
from tests.tools import tool


@pytest.fixture(scope="module", name="shop")
def a_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One for all tests."""
    with running(tmp_path_factory.mktemp("shop"), "--auth") as shop:
        shop.until("framework access test .*Charge", 40)
        yield shop
        assert shop.end(signal.SIGINT) == 0, shop
        assert shop.lines[-1].endswith("failed: 0")


def run(command: str, **environment: str) -> tuple[int, str]:
    """What a shell says to it."""
    grpcurl = str(Path(tool("grpcurl")).parent)
    path = os.pathsep.join((grpcurl, str(Path(sys.executable).parent), os.environ["PATH"]))
    ran = subprocess.run(
        ["sh", "-c", command],
        cwd=ROOT,
        env={**clean_environment(), "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return ran.returncode, ran.stdout + ran.stderr


def printed(shop: Running, word: str) -> str:
    """The command with a word in it, of those that it prints."""
    return next(line.strip() for line in shop.lines if line.startswith("  ") and word in line)


def test_what_it_prints_can_be_copied(shop: Running) -> None:
    """Looking needs nothing; with a token one orders, lists and calls; the rules say the same."""
    assert "Pine desk lamp" in run(printed(shop, "/v1/products/"))[1]
    making = printed(shop, "access token")
    order = printed(shop, "/v1/orders")
    assert '"code":16' in run(order)[1]
    assert '"PLACED"' in run(f"{making}; {order}")[1]
    assert "shop.catalog.v1.Catalog" in run(f"{making}; {printed(shop, 'list')}")[1].splitlines()
    assert "Pine desk lamp" in run(f"{making}; {printed(shop, 'GetProduct')}")[1]
    code, shown = run(printed(shop, "access show"))
    assert code == 0
    assert "shop.payments.v1.Payments/Charge" in shown
    assert "service orders" in shown
    assert run(printed(shop, "PlaceOrder"))[0] == 0
    assert run(printed(shop, "Charge"))[0] == 1


def test_grpcurl_without_credentials_and_with_others(shop: Running) -> None:
    """Who shows nothing is Unauthenticated, and whose role is another PermissionDenied."""
    orders, payments = shop.addresses["orders-1"], shop.addresses["payments-1"]
    protos = "-plaintext -import-path protos -proto shop/orders/v1/orders.proto -proto shop/payments/v1/payments.proto"
    protos += f" -import-path framework/protos -import-path {google_protos()}"
    token = printed(shop, "access token").replace("--role buyer", "--role guest")
    shown = '-H "authorization: Bearer $TOKEN"'
    assert "code = Unauthenticated" in run(f"grpcurl -plaintext {orders} list")[1]
    get = f"{orders} shop.orders.v1.Orders/GetOrder"
    assert "Code: Unauthenticated" in run(f'grpcurl {protos} -d \'{{"id": "x"}}\' {get}')[1]
    denied = run(f'{token}; grpcurl {protos} {shown} -d \'{{"id": "x"}}\' {get}')[1]
    assert "Code: PermissionDenied" in denied
    assert "buyer" not in denied
    bought = printed(shop, "access token")
    assert "Code: NotFound" in run(f'{bought}; grpcurl {protos} {shown} -d \'{{"id": "x"}}\' {get}')[1]
    charge = f"{payments} shop.payments.v1.Payments/Charge"
    assert "Code: PermissionDenied" in run(f"{bought}; grpcurl {protos} {shown} {charge}")[1]
    forged = f"grpcurl {protos} -H 'framework-identity: orders' {charge}"
    assert "Code: Unauthenticated" in run(forged)[1]


def google_protos() -> str:
    """Where google/api and google/rpc are."""
    from importlib.metadata import files

    found = next(one for one in files("googleapis-common-protos") or () if one.name == "annotations.proto")
    return str(Path(str(found.locate())).parents[2])
