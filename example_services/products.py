"""What the shop starts with: 300 products, the same in every run and every process."""

from __future__ import annotations

from example_services.shop.catalog.v1.catalog_pb2 import Product
from example_services.shop.common.v1.money_pb2 import Money

MATERIALS = {  # and what each does to the price, in percent
    "Pine": 70, "Bamboo": 75, "Cotton": 80, "Cork": 85, "Rattan": 90,
    "Linen": 100, "Birch": 105, "Steel": 115, "Ceramic": 120, "Glass": 125,
    "Wool": 135, "Oak": 150, "Leather": 180, "Walnut": 195, "Brass": 220,
}  # fmt: skip

THINGS = {  # category and price in cents
    "desk lamp": ("lighting", 3900), "floor lamp": ("lighting", 8900), "lantern": ("lighting", 2400),
    "candle holder": ("lighting", 1200), "coffee table": ("furniture", 14900), "stool": ("furniture", 5900),
    "bookshelf": ("furniture", 18900), "bench": ("furniture", 12900), "coat rack": ("furniture", 7900),
    "tray": ("kitchen", 1900), "bowl": ("kitchen", 1600), "bread box": ("kitchen", 3400),
    "coaster set": ("kitchen", 900), "bottle rack": ("kitchen", 4500), "basket": ("storage", 2200),
    "storage box": ("storage", 2800), "magazine holder": ("storage", 3100), "picture frame": ("decoration", 1800),
    "wall clock": ("decoration", 4900), "mirror": ("decoration", 6900),
}  # fmt: skip

PRODUCTS = tuple(
    Product(
        id=f"p-{number:04}",
        name=f"{material} {thing}",
        category=category,
        price=Money(currency="EUR", minor_units=cents * percent // 10_000 * 100 + 99),
    )
    for number, (thing, (category, cents), material, percent) in enumerate(
        ((*thing, *material) for thing in THINGS.items() for material in MATERIALS.items()), start=1
    )
)
