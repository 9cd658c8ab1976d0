"""`make run`, as a person at a terminal meets it: what it prints, what it takes to end it, and what is left."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from example_services.runner.customers import Tally
from example_services.runner.fleet import Fleet
from example_services.runner.view import picture
from example_services.shop.orders.v1.orders_pb2 import Line, Order
from tests.consul_agent import MakeAgent
from tests.example.running import ROOT, Running, clean_environment, running
from tests.tools import tool


@pytest.mark.parametrize(("registry", "tls"), [("local", False), ("local", True), ("consul", False)])
def test_once_places_its_orders_and_ends(
    tmp_path: Path, registry: str, tls: bool, request: pytest.FixtureRequest
) -> None:
    """100 orders, none failed, every kind of stream used, and nothing left behind; in plain text and with mTLS."""
    arguments = ["--once", *(["--tls"] if tls else [])]
    if registry == "consul":
        agent: MakeAgent = request.getfixturevalue("consul_agent")
        arguments += ["--registry", f"consul://{agent().address}"]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    start = time.monotonic()
    with running(temporary, *arguments) as shop:
        assert shop.end() == 0, shop
    assert time.monotonic() - start < 15
    assert shop.lines[-1] == "orders placed: 100, failed: 0"
    assert len(shop.pids) == 8
    assert shop.left() == []
    assert list(temporary.iterdir()) == []
    for said in ("a basket costs", "is SHIPPED", "pieces arrived", "over HTTP: order-"):
        assert said in str(shop)


def test_ctrl_c_while_it_starts(tmp_path: Path) -> None:
    """It ends as well as later: at once, in order, with nothing left."""
    with running(tmp_path) as shop:
        shop.until("serves on")
        start = time.monotonic()
        assert shop.end(signal.SIGINT) == 0, shop
    assert time.monotonic() - start < 3
    assert shop.lines[-1] == "orders placed: 0, failed: 0"
    assert shop.left() == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "variable"), [("consul://127.0.0.1:1", "consul://127.0.0.1:2"), ("", "consul://127.0.0.1:1")]
)
def test_a_registry_that_is_not_there(tmp_path: Path, argument: str, variable: str) -> None:
    """One line says so at once, and how to name another. What is given to make counts for more than the environment."""
    arguments = ["--registry", argument] if argument else []
    with running(tmp_path, *arguments, FRAMEWORK_REGISTRY=variable) as shop:
        assert shop.end() == 1
    [line] = shop.lines
    assert "Consul at http://127.0.0.1:1 does not answer" in line
    assert "REGISTRY=URL" in line
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """One line says so at once, and how to choose another."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running(tmp_path, "--port", str(port)) as shop:
            assert shop.end() == 1
    [line] = shop.lines
    assert line == (
        f"example_services: port {port} on 127.0.0.1 is in use or may not be used. Choose another with --port, "
        "or 0 for any free one. For make run that is PORT=."
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("port", ["99999", "many"])
def test_a_port_that_is_none(tmp_path: Path, port: str) -> None:
    """One line says so, by the name under which make has it."""
    with running(tmp_path, "--port", port) as shop:
        assert shop.end() == 1
    wanted = "it must be a whole number from 0 to 65535"
    assert [f"example_services: PORT (--port) is {port!r}; {wanted}"] == shop.lines


def test_nobody_reads_on(tmp_path: Path) -> None:
    """`make run | head -1` ends soon, without a word of complaint."""
    ran = subprocess.run(
        ["bash", "-c", f"{shlex.quote(sys.executable)} -m example_services --once | head -1; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env=clean_environment() | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, len(ran.stdout.splitlines()), ran.stderr) == (0, 1, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("width", "height"), [(78, 10), (78, 17), (118, 40)])
async def test_the_picture_fits_its_terminal(tmp_path: Path, width: int, height: int) -> None:
    """The figures first, then the instances; orders and news as far as there is room, each in one line."""
    fleet = Fleet(tmp_path, "static://127.0.0.1:1", print)
    tally = Tally(placed=7)
    lines = [Line(name=f"a thing with [brackets] {number}", quantity=number) for number in range(1, 9)]
    tally.recent.extend(Order(id=f"order-{number:012}", customer_id="customer-50", lines=lines) for number in range(6))
    shown = picture(fleet, tally, deque(f"news {number} {'and more ' * 20}" for number in range(6)), width, height)
    rows = shown.plain.splitlines()
    assert rows[0].startswith("orders placed: 7, failed: 0, repeated: 0")
    assert [row.split()[0] for row in rows[2:10]] == [instance.name for instance in fleet.instances]
    assert len(rows) == min(height, 22)
    assert max(map(len, rows)) <= width
    if len(rows) > 10:
        assert rows[10].startswith("order-000000000000  customer-50 ")
        assert rows[10].endswith("…")
        assert rows[-1].startswith("news 5 ")


def test_children_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 of the parent ends the whole shop."""
    with running(tmp_path) as shop:
        shop.until("kill -9")
        assert shop.end(signal.SIGKILL) == -signal.SIGKILL
        give_up = time.monotonic() + 5
        while shop.left():
            assert time.monotonic() < give_up, shop.left()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The shop, running; ended with Ctrl-C."""
    directory = tmp_path_factory.mktemp("shop")
    with running(directory) as shop:
        shop.until("kill -9")
        yield shop
        start = time.monotonic()
        assert shop.end(signal.SIGINT) == 0, shop
        assert time.monotonic() - start < 3
        assert shop.lines[-1].endswith("failed: 0")
        assert shop.left() == []
        assert list(directory.iterdir()) == []


def grpcurl(*arguments: str, stdin: str | None = None) -> str:
    """What it prints."""
    command = [tool("grpcurl"), "-plaintext", *arguments]
    ran = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=20, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_commands_with_certificates_can_be_copied(tmp_path: Path) -> None:
    """So do those that it prints with mTLS; without their certificates they do not."""
    with running(tmp_path, "--tls") as shop:
        shop.until("kill -9")
        copy_commands(shop)
        ran = subprocess.run(
            [tool("grpcurl"), "-plaintext", "-max-time", "3", shop.addresses["catalog-1"], "list"],
            capture_output=True, timeout=20, check=False,
        )  # fmt: skip
        assert ran.returncode != 0
        assert shop.end(signal.SIGINT) == 0, shop


def test_the_commands_it_prints_can_be_copied(shop: Running) -> None:
    """Each works in a shell as it stands, but for the last: that one kills."""
    copy_commands(shop)


def test_the_page_shows_what_the_protos_say(shop: Running) -> None:
    """Services, methods and fields of the gateway are described, though it learnt of them by reflection."""
    url = shop.until(r"https?://127\.0\.0\.1:\d+")[0]
    give_up = time.monotonic() + 10
    document: dict[str, Any] = {"tags": []}
    while len(document["tags"]) < 3:  # the gateway takes each service up when it is there
        assert time.monotonic() < give_up, document["tags"]
        with urllib.request.urlopen(f"{url}/openapi.json", timeout=10) as answer:
            document = json.load(answer)
    assert {one["name"]: bool(one.get("description")) for one in document["tags"]} == {
        "shop.catalog.v1.Catalog": True,
        "shop.inventory.v1.Inventory": True,
        "shop.orders.v1.Orders": True,
    }
    assert document["paths"]["/v1/orders"]["post"]["summary"]
    assert document["components"]["schemas"]["shop.catalog.v1.Product"]["description"]


def copy_commands(shop: Running) -> None:
    printed = [line.strip() for line in shop.lines if line.startswith("  ")]
    path = os.pathsep.join((str(Path(tool("grpcurl")).parent), os.environ["PATH"]))
    for command in printed[:-1]:
        ran = subprocess.run(
            ["sh", "-c", command],
            cwd=ROOT,
            env={**os.environ, "PATH": path, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
        assert any(word in ran.stdout for word in ("shop.catalog.v1", "Pine desk lamp", "payments", '"available":'))
    words = [[word for word in shlex.split(command) if not word.startswith("FRAMEWORK_")] for command in printed]
    assert [command[0].rpartition("/")[2] for command in words] == [
        *(["curl"] * 3),
        *(["grpcurl"] * 3),
        *(["framework"] * 2),
        "kill",
    ]


def test_grpcurl_lists_describes_and_checks(shop: Running) -> None:
    """Reflection and health are those that every tool knows."""
    address = shop.addresses["orders-1"]
    assert "shop.orders.v1.Orders" in grpcurl(address, "list").splitlines()
    described = grpcurl(address, "describe", "shop.orders.v1.Orders")
    assert (
        "rpc FillBasket ( stream .shop.orders.v1.BasketChange ) returns ( stream .shop.orders.v1.Basket )" in described
    )
    asked = ("-d", '{"service": "shop.orders.v1.Orders"}', address, "grpc.health.v1.Health/Check")
    assert '"SERVING"' in grpcurl(*asked)


def test_grpcurl_calls_each_arity(shop: Running) -> None:
    """One reply, many replies, many requests, many of both."""
    orders, inventory = shop.addresses["orders-2"], shop.addresses["inventory-1"]
    order = '{"idempotency_key": "grpcurl", "customer_id": "c", "card": "card-visa",'
    order += ' "items": [{"product_id": "p-0001", "quantity": 1}]}'
    placed = grpcurl("-d", order, orders, "shop.orders.v1.Orders/PlaceOrder")
    assert '"PLACED"' in placed
    id = placed.split('"id": "')[1].split('"')[0]
    watched = grpcurl("-d", f'{{"id": "{id}"}}', orders, "shop.orders.v1.Orders/WatchOrder")
    assert '"SHIPPED"' in watched
    pallets = '{"product_id": "p-0001", "quantity": 7}' * 3
    received = grpcurl("-d", "@", inventory, "shop.inventory.v1.Inventory/ReceiveStock", stdin=pallets)
    assert '"pieces": 21' in received
    changes = '{"product_id": "p-0001", "quantity": 2} {"product_id": "p-0002", "quantity": 1}'
    baskets = grpcurl("-d", "@", orders, "shop.orders.v1.Orders/FillBasket", stdin=changes)
    assert baskets.count('"total"') == 2


def test_a_killed_instance_is_shown_and_started_again(shop: Running) -> None:
    """It has a new process and a new address; orders go on."""
    pid = shop.pids["payments-1"]
    os.kill(pid, signal.SIGKILL)
    shop.until(rf"payments-1 \(pid {pid}\) was killed by SIGKILL; starting it again")
    shop.until(rf"payments-1 \(pid (?!{pid}\))\d+\) serves on")
    assert shop.pids["payments-1"] != pid
