"""Two thousand broken requests; `make fuzz` sends a hundred thousand."""

from __future__ import annotations

import pytest

from tests.http.fuzz import run, target


@pytest.mark.parametrize("behind", ["local", "channel", "relay"])
async def test_broken_requests(behind: str) -> None:
    """Nothing fails inside, hangs, or is left over, whichever protocol is spoken how badly."""
    async with target(behind) as tried:
        report = await run(tried, 2000, seed=1)
    assert report.good, "\n".join(report.lines(1, behind))
    assert report.inputs == 2000
    assert len(report.statuses) > 40  # they go many ways, and not all into the same refusal
