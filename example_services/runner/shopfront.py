"""The shop for browsers and for curl: a gateway before what customers may see of it, and one who buys through it."""

from __future__ import annotations

import dataclasses
import ssl
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from google.protobuf import json_format

from example_services.runner.certificates import Certificates
from example_services.runner.customers import Tally, price
from example_services.runner.fleet import StartError
from example_services.shop.catalog.v1 import catalog_pb2
from example_services.shop.inventory.v1 import inventory_pb2
from example_services.shop.orders.v1 import orders_pb2
from example_services.shop.orders.v1.orders_pb2 import Order
from framework import ConfigError, Settings
from framework.config import Drain, ServerSettings
from framework.discovery import Registry
from framework.gateway import Gateway
from framework.gateway.gateway import Running
from framework.policy import ClientSettings
from framework.tls import ServerTls
from framework.web import GatewaySettings

# Payments are nobody's business. The gateway learns by reflection what there is, and here what the protos say of it.
SHOWN = {"catalog": catalog_pb2, "inventory": inventory_pb2, "orders": orders_pb2}
DRAIN = Drain(delay=0.0, grace=1.0, streams=0.2)


@asynccontextmanager
async def shopfront(
    port: int, registry: Registry, certificates: Certificates | None, secured: Path | None = None
) -> AsyncIterator[Running]:
    """Serve the shop over HTTP while the block runs.

    Raises:
        StartError: the port cannot be had.
    """
    settings = dataclasses.replace(
        Settings() if secured is None else Settings.load(secured),
        gateway=GatewaySettings(
            port=port, services=tuple(SHOWN), tls=ServerTls() if certificates is None else certificates.front
        ),
        client=ClientSettings() if certificates is None else certificates.clients,
        server=ServerSettings(drain=DRAIN),
        registry=str(registry),
        telemetry=Settings.load().telemetry,
    )
    gateway = Gateway(settings).running(registry=registry, admin=True)
    try:
        running = await gateway.__aenter__()
    except ConfigError as error:
        raise StartError(f"{error} For make run that is PORT=.") from error
    try:
        yield running
    finally:
        await gateway.__aexit__(None, None, None)


async def buy_over_http(
    url: str, certificates: Certificates | None, tally: Tally, say: Callable[[str], None], token: str
) -> None:
    """Place an order with JSON, and follow it by events until it is shipped."""
    order = {
        "idempotencyKey": str(uuid.uuid4()),
        "customerId": "customer-http",
        "card": "card-visa",
        "items": [{"productId": "p-0001", "quantity": 1}],
    }
    tls = None if certificates is None else ssl.create_default_context(cafile=certificates.ca)
    connector = aiohttp.TCPConnector(ssl=tls or True)
    shown = {"authorization": f"Bearer {token}"} if token else {}
    timeout = aiohttp.ClientTimeout(total=15)
    async with aiohttp.ClientSession(url, connector=connector, timeout=timeout, headers=shown) as client:
        async with client.post("/v1/orders", json=order) as response:
            body, location = await response.text(), response.headers.get("location", "")
            if response.status != 201:
                tally.failed += 1
                say(f"an order over HTTP failed: {response.status} {body}")
                return
        placed = json_format.Parse(body, Order())
        tally.placed += 1
        tally.recent.appendleft(placed)
        tally.sold.update({line.product_id: line.quantity for line in placed.lines})
        say(f"over HTTP: {placed.id} costs {price(placed.total)}")
        events = {"accept": "text/event-stream"}
        async with client.get(f"{location}:watch", headers=events) as response:
            async for line in response.content:
                if line.startswith(b"data: {"):
                    now = json_format.Parse(line[6:], Order(), ignore_unknown_fields=True)
                    if now.id:
                        say(f"over HTTP: {now.id} is {Order.State.Name(now.state)}")
