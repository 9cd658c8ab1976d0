"""A lab on the Consul that all tests share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bench.faults.lab import Lab
from bench.faults.story import BUSY, SHORT, Result
from tests.consul_agent import ConsulAgent

TRIES = 2
"""How often a scenario is played while the machine is too busy to judge it."""

Play = Callable[..., Awaitable[list[str]]]


@pytest.fixture
def play(consul: ConsulAgent, tmp_path: Path) -> Play:
    """`await play(scenario)` gives the goals that were missed."""

    async def play(scenario: Callable[..., Awaitable[Result]], **options: Any) -> list[str]:
        missed: list[str] = []
        for _ in range(TRIES):
            result = await scenario(Lab(tmp_path, consul), SHORT, **options)
            missed = result.missed
            if not missed or result.held_up <= BUSY:
                break
        return missed

    return play
