"""Two thousand broken requests; `make fuzz` sends a hundred thousand."""

from __future__ import annotations

import pytest

from framework import Service
from framework.call import Call
from framework.options import method_of
from framework.testing import Network
from tests.http.fuzz import Report, run
from tests.http.mirror import SERVICE, servicers


async def _behind_a_channel() -> Report:
    async with Network() as network:
        network.add(Service("all", servicers=servicers()))
        channel = network.connect("all")
        method = method_of(SERVICE.methods_by_name["Send"])
        await channel.bind(method)(Call(method, method.request()))  # what serves the channel itself is there now
        return await run(2000, seed=1, bind=channel.bind)


@pytest.mark.parametrize("where", ["local", "channel"])
async def test_broken_requests(where: str) -> None:
    """Nothing fails inside, hangs, or is left over, whichever protocol is spoken how badly."""
    report = await run(2000, seed=1) if where == "local" else await _behind_a_channel()
    assert report.good, "\n".join(report.lines(1))
    assert report.inputs == 2000
    assert len(report.statuses) > 40  # they go many ways, and not all into the same refusal
