"""The budget of retries and hedges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.client.budget import RetryBudget
from framework.errors import ConfigError
from framework.policy import BudgetSettings


def spend(budget: RetryBudget, now: float) -> int:
    """Retries until the budget refuses one."""
    count = 0
    while budget.withdraw(now):
        count += 1
    return count


def test_ten_thousand_requests_at_one_moment_allow_a_tenth_and_ten_more() -> None:
    """10% of 10,000 requests, and 10/s for a second: 1010 retries, however often one is asked for."""
    budget = RetryBudget(BudgetSettings(ratio=0.1, per_second=10, ttl=1.0))
    retries = 0
    for _ in range(10_000):
        budget.deposit(0.0)
        retries += budget.withdraw(0.0)
    assert retries + spend(budget, 0.0) == 1010


def test_defaults_are_a_fifth_of_successes_and_ten_a_second_over_ten_seconds() -> None:
    """Before any success a client may retry 100 times at once; 1000 successes earn 200 more."""
    budget = RetryBudget(BudgetSettings())
    assert spend(budget, 5.0) == 100
    for _ in range(1000):
        budget.deposit(5.0)
    assert spend(budget, 5.0) == 200


def test_a_retry_that_waits_in_its_backoff_counts() -> None:
    """A retry is paid for when decided on: of 100 failures at once, those not paid for are refused at once."""
    budget = RetryBudget(BudgetSettings(ratio=0.0, per_second=2, ttl=10))
    assert [budget.withdraw(1.0) for _ in range(100)] == [True] * 20 + [False] * 80


def test_what_was_earned_is_forgotten_after_ttl() -> None:
    """Successes count for nine to ten tenths of ttl, and not a moment longer."""
    budget = RetryBudget(BudgetSettings(ratio=0.5, per_second=0, ttl=10))
    for _ in range(10):
        budget.deposit(100.5)
    assert round(budget.balance(109.99), 6) == 5
    assert budget.balance(110.0) < 1


def test_what_was_spent_is_forgotten_after_ttl() -> None:
    """A client without any success has per_second * ttl retries in every ttl."""
    budget = RetryBudget(BudgetSettings(per_second=1, ttl=10))
    assert spend(budget, 0.0) == 10
    assert spend(budget, 9.9) == 0
    assert spend(budget, 10.0) == 10


def test_steady_failure_is_held_to_its_rate() -> None:
    """A dependency that is down for a minute gets 10 retries a second and the reserve once, not one per call."""
    budget = RetryBudget(BudgetSettings())
    assert sum(budget.withdraw(tick / 1000) for tick in range(60_000)) == 600


def test_a_very_long_idle_gap_forgets_everything_and_wedges_nothing() -> None:
    """After a week asleep the budget is as new."""
    budget = RetryBudget(BudgetSettings())
    budget.deposit(1.0)
    spend(budget, 1.0)
    assert spend(budget, 604_800.0) == 100


def test_a_budget_of_nothing_allows_nothing() -> None:
    """Ratio and rate 0 switch retries off."""
    budget = RetryBudget(BudgetSettings(ratio=0, per_second=0))
    budget.deposit(0.0)
    assert not budget.withdraw(0.0)


def test_repr() -> None:
    """It says how far it is spent."""
    budget = RetryBudget(BudgetSettings(per_second=1))
    budget.deposit(0.0)
    budget.withdraw(0.0)
    assert repr(budget) == "<RetryBudget 1 spent of 10.2>"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": 1.5}, "retry_budget.ratio is 1.5; it must be a number from 0 to 1"),
        ({"ratio": True}, "retry_budget.ratio is True; it must be a number from 0 to 1"),
        ({"per_second": float("nan")}, "retry_budget.per_second is nan; it must be a number from 0 to 1e+06"),
        ({"ttl": 0}, "retry_budget.ttl is 0; it must be more than 0"),
    ],
)
def test_settings_are_validated_when_made(values: dict[str, float], message: str) -> None:
    """The message names the setting, the value and what is possible."""
    with pytest.raises(ConfigError) as caught:
        BudgetSettings(**values)
    assert str(caught.value) == message


def test_settings_from_a_table() -> None:
    """A file writes numbers and durations."""
    assert BudgetSettings.parse({"ratio": 0.1, "ttl": "500ms"}, "budget") == BudgetSettings(0.1, 10.0, 0.5)


@given(
    st.lists(st.tuples(st.floats(0, 3), st.booleans()), max_size=300),
    st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    st.sampled_from([0.0, 0.3, 2.0]),
)
def test_spending_never_exceeds_the_formula(events: list[tuple[float, bool]], ratio: float, per_second: float) -> None:
    """At every retry: retries within the window <= ratio * successes within it + per_second * ttl."""
    budget = RetryBudget(BudgetSettings(ratio=ratio, per_second=per_second, ttl=10))
    now, earned, spent = 0.0, list[int](), list[int]()
    for gap, success in events:
        now += gap
        if success:
            budget.deposit(now)
            earned.append(int(now))
        elif budget.withdraw(now):
            spent.append(int(now))
            window = int(now) - 9
            allowed = ratio * sum(second >= window for second in earned) + per_second * 10
            assert sum(second >= window for second in spent) <= allowed + 1e-6
