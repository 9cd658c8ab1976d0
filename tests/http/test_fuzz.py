"""Two thousand broken requests; `make fuzz` sends a hundred thousand."""

from __future__ import annotations

from tests.http.fuzz import run


async def test_broken_requests() -> None:
    """Nothing fails inside, hangs, or is left over, whichever protocol is spoken how badly."""
    report = await run(2000, seed=1)
    assert report.good, "\n".join(report.lines(1))
    assert report.inputs == 2000
    assert len(report.statuses) > 40  # they go many ways, and not all into the same refusal
