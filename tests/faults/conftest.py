"""A lab on the Consul that all tests share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.faults.lab import Lab
from bench.faults.story import SHORT, Result, judged
from tests.consul_agent import ConsulAgent

Play = Callable[..., Awaitable[list[str]]]


@pytest.fixture
def play(consul: ConsulAgent, tmp_path: Path) -> Play:
    """`await play(scenario)` gives the goals that were missed; twice in a row, since other tests run meanwhile."""

    async def play(scenario: Callable[..., Awaitable[Result]], **options: Any) -> list[str]:
        lab = Lab(tmp_path, consul)
        result = await judged(partial(scenario, lab, SHORT, **options), SHORT)
        if result.missed:
            print("played again; missed at first:", *result.missed, sep="\n  ")
            result = await judged(partial(scenario, lab, SHORT, **options), SHORT)
        for row in result.rows:  # shown when the test failed
            print(f"{row.name}: {row.value:.4g} {row.unit} {row.goal}")
        return result.missed

    return play
