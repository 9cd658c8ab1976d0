"""What mypy --strict and pyright say about generated code and about people's own code that uses it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from framework.codegen import generate
from tests.tools import tool

PROTOS = Path(__file__).parent / "protos"

IMPORTS = """
from collections.abc import AsyncIterator

from google.protobuf.empty_pb2 import Empty

from framework import Channel, Context
from stubs.shop.catalog.v1.catalog_pb2 import GetProductRequest, Receipt, WatchStockRequest
from stubs.shop.catalog.v1.catalog_rpc import AdminServicer, CatalogClient, CatalogServicer
from stubs.shop.catalog.v1.product_pb2 import Product
from stubs.shop.stock.v1.stock_pb2 import Stock
from stubs.shop.stock.v1.stock_rpc import StockRoomServicer
"""

NATURAL = (
    IMPORTS
    + """
class Catalog(CatalogServicer):
    def __init__(self, products: dict[str, Product]) -> None:
        self.products = products

    async def GetProduct(self, request: GetProductRequest, context: Context) -> Product:
        return self.products[request.id]

    async def WatchStock(self, message: WatchStockRequest, _: Context) -> AsyncIterator[Stock]:
        for count in range(3):
            yield Stock(product=self.products[message.id], count=count, level=Stock.LEVEL_LOW)

    async def Upload(self, products: AsyncIterator[Product], context: Context) -> Receipt.Summary:
        return Receipt.Summary(count=len([product async for product in products]))

    async def Chat(self, requests: AsyncIterator[WatchStockRequest], context: Context) -> AsyncIterator[Stock]:
        async for request in requests:
            yield Stock(product=self.products[request.id], level=request.level)

    async def Ping(self, request: Empty, context: Context) -> Empty:
        return request


async def requests() -> AsyncIterator[WatchStockRequest]:
    yield WatchStockRequest(id="p1", level=Stock.LEVEL_LOW)


async def use(channel: Channel) -> dict[str, Product]:
    catalog = CatalogClient(channel)
    product = await catalog.GetProduct(GetProductRequest(id="p1"), timeout=0.5, metadata=(("tenant", "t1"),))
    count = product.listed.seconds
    async for stock in catalog.WatchStock(WatchStockRequest(id=product.id)):
        count += stock.count
    summary = await catalog.Upload([product])
    count += summary.count
    async for stock in catalog.Chat(requests()):
        count += stock.count
    return Catalog({str(count): product}).products


__all__ = ["AdminServicer", "StockRoomServicer"]
"""
)

WRONG = (
    IMPORTS
    + """
class Catalog(CatalogServicer):
    async def GetProduct(self, request: GetProductRequest, context: Context) -> Stock:  # wrong: the reply
        return Stock()

    async def WatchStock(self, request: Product, context: Context) -> AsyncIterator[Stock]:  # wrong: the request
        yield Stock()

    async def Upload(self, requests: Product, context: Context) -> Receipt.Summary:  # wrong: it is a stream
        return Receipt.Summary()

    async def Chat(self, requests: AsyncIterator[WatchStockRequest], context: Context) -> AsyncIterator[Stock]:
        async for request in requests:
            yield request  # wrong: the reply


class Admin(AdminServicer):
    pass


class StockRoom(StockRoomServicer):
    async def Count(self, request: Product, context: Context) -> Stock:
        return request  # wrong: the reply


async def use(channel: Channel) -> None:
    catalog = CatalogClient(channel)
    Admin()  # wrong: a method is missing
    print(catalog.GetProduct(GetProductRequest(id="p1")).name)  # wrong: nobody waits
    await catalog.GetProduct(Product())  # wrong: the request
    await catalog.GetProduct(GetProductRequest(id=1))  # wrong: the type of the field
    await catalog.GetProduct(GetProductRequest(ident="p1"))  # wrong: the field
    print((await catalog.GetProduct(GetProductRequest())).nam)  # wrong: the field
    await catalog.WatchStock(WatchStockRequest())  # wrong: it is a stream
    await catalog.Upload(Product())  # wrong: it is a stream
    await catalog.Upload([Stock()])  # wrong: the request
    await catalog.GetProduct(GetProductRequest(), timeout="1s")  # wrong: seconds
    await catalog.Ping(Empty())
"""
)

Found = set[tuple[str, int]]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated code beside a file that uses it well and one that does not."""
    folder = tmp_path_factory.mktemp("typed")
    generate(PROTOS, folder / "stubs")
    (folder / "natural.py").write_text(NATURAL)
    (folder / "wrong.py").write_text(WRONG)
    return folder


@pytest.fixture(scope="module")
def mypy(project: Path) -> Found:
    """Where mypy --strict found something, in one run over everything."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={project / 'cache'}"]
    found = _run([*command, "--explicit-package-bases", "natural.py", "wrong.py", "stubs"], project)
    return {(match[1], int(match[2])) for match in re.finditer(r"^([^:\n]+):(\d+): error:", found, re.MULTILINE)}


@pytest.fixture(scope="module")
def pyright(project: Path) -> Found:
    """Where pyright in its strict mode found something."""
    files = ["natural.py", "wrong.py", "stubs"]
    (project / "pyrightconfig.json").write_text(json.dumps({"include": files, "typeCheckingMode": "strict"}))
    found = _run([tool("pyright"), "--pythonpath", sys.executable, "--outputjson"], project)
    return {
        (Path(item["file"]).relative_to(project).as_posix(), item["range"]["start"]["line"] + 1)
        for item in json.loads(found)["generalDiagnostics"]
    }


def _run(command: list[str], cwd: Path) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert ran.returncode in (0, 1), ran.stdout + ran.stderr
    return ran.stdout


def wrong_lines() -> set[int]:
    return {number for number, line in enumerate(WRONG.splitlines(), 1) if "# wrong" in line}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_nothing_is_wrong_with_generated_and_natural_code(checker: str, request: pytest.FixtureRequest) -> None:
    """Strict checkers accept every generated file, a servicer with natural overrides, and calls of all arities."""
    found: Found = request.getfixturevalue(checker)
    assert {where for where in found if where[0] != "wrong.py"} == set()


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_each_wrong_line_is_found(checker: str, request: pytest.FixtureRequest) -> None:
    """Wrong replies, requests, fields, arities and forgotten awaits are reported, each at its line, and no other."""
    found: Found = request.getfixturevalue(checker)
    assert {line for file, line in found if file == "wrong.py"} == wrong_lines()
