"""Sixty requests that are made up, beside real Envoy; `make differential` makes up hundreds."""

from __future__ import annotations

import pytest

from tests.http.differential import run


@pytest.mark.timeout(120)
async def test_made_up_requests_beside_envoy() -> None:
    """Both answer the same, or differ as the table says that they are meant to."""
    found = await run(60, seed=1)
    assert not found.unexplained, "\n".join(found.lines())
    assert found.same > 40
