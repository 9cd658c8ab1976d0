"""A test kit: services on a network in memory, peers that follow a script, and time that does not have to pass.

    async def test_missing_product(network: Network) -> None:
        network.add(Service("catalog", servicers=[Catalog(Products.of([]))]))
        catalog = CatalogClient(network.connect("catalog"))
        with pytest.raises(NotFound):
            await catalog.GetProduct(GetProductRequest(id="p1"))

With pytest the fixture `network` and the marker `virtual_time` are there once the package is installed.

Reading order: `network`, `memory` (its wire), `scripted`, `virtual_time`, `plugin`.
"""

from framework.testing.network import Hosted, Network
from framework.testing.scripted import Scripted
from framework.testing.virtual_time import VirtualTimeLoop, run_virtual

__all__ = ["Hosted", "Network", "Scripted", "VirtualTimeLoop", "run_virtual"]
"""Everything a test needs; the fixtures come with the plugin."""
