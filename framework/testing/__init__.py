"""A test kit: services on a network in memory, peers that follow a script, and time that does not have to pass.

    async def test_missing_product(network: Network) -> None:
        network.add(Service("catalog", servicers=[Catalog(Products.of([]))]))
        catalog = CatalogClient(network.connect("catalog"))
        with pytest.raises(NotFound):
            await catalog.GetProduct(GetProductRequest(id="p1"))

With pytest the fixture `network` and the marker `virtual_time` are there once the package is installed.

Reading order: `network`, `memory` (its wire), `scripted`, `virtual_time`, `plugin`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from framework.testing.network import Hosted, Network
    from framework.testing.scripted import Scripted
    from framework.testing.virtual_time import VirtualTimeLoop, run_virtual

__all__ = ["Hosted", "Network", "Scripted", "VirtualTimeLoop", "run_virtual"]

_HOME = {
    "Hosted": "network",
    "Network": "network",
    "Scripted": "scripted",
    "VirtualTimeLoop": "virtual_time",
    "run_virtual": "virtual_time",
}


def __getattr__(name: str) -> Any:  # pytest loads this package for its plugin, in projects that do not use it as well
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)
