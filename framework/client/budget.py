"""How many retries and hedges a client may send, so that retries cannot turn an overload into an outage.

    deposit(now)    a call succeeded            earns `ratio` of a retry
    withdraw(now)   a retry or hedge is wanted  costs one; refused when the balance is less

    spent within the last `ttl` seconds <= ratio * successes within them + per_second * ttl

What was earned and what was spent are both forgotten after `ttl`, a tenth of it at a time. One budget serves retries
and hedges of a client together. A retry is paid for when it is decided on, before its backoff: those that wait count.

Source: `RetryBudget` of Finagle; why waiting retries must count: Envoy issue 30205.
"""

from __future__ import annotations

from framework.policy import BudgetSettings

SLICES = 10
"""Parts of `ttl` that are forgotten one by one."""

_ROUNDING = 1e-9


class RetryBudget:
    """The budget that all methods of one client share."""

    __slots__ = (
        "_earned",
        "_earned_before",
        "_marks",
        "_ratio",
        "_reserve",
        "_slice",
        "_slices_per_second",
        "_spent",
        "_spent_before",
        "_turn",
    )

    def __init__(self, settings: BudgetSettings) -> None:
        self._ratio = settings.ratio
        self._reserve = settings.per_second * settings.ttl + _ROUNDING
        self._slices_per_second = SLICES / settings.ttl
        self._slice = 0
        self._turn = 1 / self._slices_per_second  # the slice ends
        self._earned = self._spent = 0  # ever
        self._earned_before = self._spent_before = 0  # ever, when the window began
        self._marks = [(0, 0)] * SLICES  # the same when each slice of the window began

    def deposit(self, now: float) -> None:
        """A call succeeded at `now` seconds."""
        if now >= self._turn:
            self._forget(int(now * self._slices_per_second))
        self._earned += 1

    def withdraw(self, now: float) -> bool:
        """Pay for a retry or hedge decided on at `now` seconds; False when there is no budget left for it."""
        if self.balance(now) < 1.0:
            return False
        self._spent += 1
        return True

    def balance(self, now: float) -> float:
        """Retries that could be paid for at `now` seconds."""
        if now >= self._turn:
            self._forget(int(now * self._slices_per_second))
        earned = self._ratio * (self._earned - self._earned_before)
        return self._reserve + earned - (self._spent - self._spent_before)

    def _forget(self, current: int) -> None:
        mark = (self._earned, self._spent)
        for begun in range(max(self._slice, current - SLICES) + 1, current + 1):
            self._marks[begun % SLICES] = mark
        self._slice = current
        self._turn = (current + 1) / self._slices_per_second
        self._earned_before, self._spent_before = self._marks[(current + 1) % SLICES]

    def __repr__(self) -> str:
        earned, spent = self._earned - self._earned_before, self._spent - self._spent_before
        return f"<RetryBudget {spent} spent of {self._reserve + self._ratio * earned:.1f}>"
