"""Paired measurement: median ratio of alternating blocks, with a 95% interval."""

from __future__ import annotations

import math
import statistics
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One figure.

    Attributes:
        name, value, unit: what was measured.
        rival, rival_value: what it is compared with, measured in the same run; empty and None without one.
        ratio, low, high: median of value / rival_value over the pairs, and its 95% interval; of the value without one.
        goal: what it should be, `<= 1.12` of the ratio, or of the value where there is no rival.
        met: whether the median meets the goal.
    """

    name: str
    value: float
    unit: str
    rival: str
    rival_value: float | None
    ratio: float
    low: float
    high: float
    goal: str
    met: bool

    def as_dict(self) -> dict[str, Any]:
        """For `results.json`."""
        return asdict(self)


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """95% interval of the median, by order statistics (no assumption on the distribution)."""
    ordered = sorted(samples)
    count = len(ordered)
    half = 0.98 * math.sqrt(count)
    low = max(0, math.floor(count / 2 - half))
    high = min(count - 1, math.ceil(count / 2 + half) - 1)
    return ordered[low], ordered[max(low, high)]


def meets(value: float, goal: str) -> bool:
    """Whether a value meets `<= N` or `>= N`."""
    sign, _, bound = goal.partition(" ")
    return value <= float(bound) if sign == "<=" else value >= float(bound)


async def paired(
    name: str,
    unit: str,
    ours: Callable[[], Awaitable[float]],
    rival: str,
    theirs: Callable[[], Awaitable[float]],
    goal: str,
    *,
    pairs: int = 15,
    invert: bool = False,
) -> Row:
    """Measure two things in alternating blocks; the order within a pair alternates too.

    Args:
        ours, theirs: run one block and return its figure.
        goal: of ours / theirs, or of theirs / ours ("times faster") with `invert`.
        pairs: how many, after one that is thrown away.
    """
    await ours(), await theirs()
    mine: list[float] = []
    other: list[float] = []
    for number in range(pairs):
        if number % 2:
            other.append(await theirs())
            mine.append(await ours())
        else:
            mine.append(await ours())
            other.append(await theirs())
    ratios = [b / a if invert else a / b for a, b in zip(mine, other, strict=True)]
    ratio = statistics.median(ratios)
    low, high = interval(ratios)
    return Row(
        name, statistics.median(mine), unit, rival, statistics.median(other), ratio, low, high, goal, meets(ratio, goal)
    )


def single(name: str, unit: str, samples: Sequence[float], goal: str, *, quantile: float = 0.5) -> Row:
    """A figure without a rival: the median of samples, or another quantile of them."""
    ordered = sorted(samples)
    value = (
        statistics.median(ordered)
        if quantile == 0.5
        else ordered[min(len(ordered) - 1, math.ceil(quantile * len(ordered)) - 1)]
    )
    low, high = interval(ordered) if quantile == 0.5 else (ordered[0], ordered[-1])
    return Row(name, value, unit, "", None, value, low, high, goal, meets(value, goal))
