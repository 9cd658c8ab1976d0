"""The figures of the lab are what they say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.faults.lab import Instance
from bench.faults.report import Executed, Pick, Report, Sample, quantile_of


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    """An instance that was never started."""
    return Instance(0, {"service": "worker"}, "victim", tmp_path)


def report(calls: Sequence[Sample] = (), picks: Sequence[Pick] = (), executed: Sequence[Executed] = ()) -> Report:
    return Report("ours", calls, picks, executed, (), (), ())


def sample(due: float, code: str = "OK", seconds: float = 0.02) -> Sample:
    return Sample(due, seconds, code, f"a{due}", "Get", "", "")


def picks(*moments: float, address: str = "victim") -> list[Pick]:
    return [Pick(moment, address, f"a{moment}", moment + 0.02, "OK") for moment in moments]


def others(seconds: int) -> list[Pick]:
    """A hundred attempts a second elsewhere."""
    return picks(*(number / 100 for number in range(100 * seconds)), address="other")


def test_a_failure_is_no_fast_call() -> None:
    """A call that failed at once counts as long as its deadline."""
    one = report([sample(0.0), sample(0.1, "UNAVAILABLE", 0.001)])
    assert (one.latency((0, 1), 0.5), one.latency((0, 1), 0.99)) == (0.02, 1.0)


def test_a_time_has_the_calls_that_were_due_in_it() -> None:
    """Its end excluded; by code, all but OK has failed."""
    one = report([sample(0.0, "INTERNAL"), sample(1.0), sample(1.5, "UNAVAILABLE"), sample(2.0, "UNAVAILABLE")])
    assert (len(one.within((1, 2))), one.failed((1, 2)), one.failed_percent((1, 2))) == (2, 1, 50.0)


def test_probes_are_no_rotation(instance: Instance) -> None:
    """An instance that gets one attempt a second is out; until it was, it had a fair share."""
    its = [number / 20 for number in range(20)] + [2.5, 3.5, 4.5]
    one = report(picks=sorted(others(5) + picks(*its)))
    # The last attempt with more than a tenth of the fair share in the second before it: 0.95 s.
    assert its[19] == one.in_rotation(instance, (0, 5), 5)


def test_an_instance_that_was_never_given_anything_was_not_in_rotation(instance: Instance) -> None:
    """Nor had it a share."""
    one = report(picks=others(1))
    assert (one.in_rotation(instance, (0, 1), 5), one.share_percent(instance, (0, 1))) == (0.0, 0.0)


def test_attempts_until_an_instance_is_left_alone(instance: Instance) -> None:
    """Those before the first two seconds without one; all of them if there are none."""
    its = (0.1, 0.2, 1.2, 4.0, 4.1)
    one = report(picks=picks(*its))
    assert (one.given_until_out(instance, (0, 6)), one.given_until_out(instance, (0, 3))) == (3, 3)


def test_attempts_are_counted_over_calls() -> None:
    """Retries and hedges of the calls of this time, and only these; of a bare client what instances executed."""
    calls = [sample(0.0), sample(1.0)]
    own = report(calls, picks(0.0, 0.0, 1.0, 1.0, 1.0))
    bare = report(calls, executed=[Executed("a0.0", "Get", 0.1, 0), Executed("a0.0", "Get", 0.2, 1)])
    assert (own.attempts((0, 1)), own.attempts((1, 2)), bare.attempts((0, 1))) == (2.0, 3.0, 2.0)


def test_a_hedge_is_no_retry() -> None:
    """It begins while another attempt is out, a retry after that has failed."""
    first = Pick(0.0, "victim", "a1", 0.2, "INTERNAL")
    hedge, retry = first._replace(start=0.1, code="CANCELLED"), first._replace(start=0.2, end=0.3, code="OK")
    assert [report(picks=found).retried("a1") for found in ([first, hedge], [first, retry])] == [0, 1]


def test_executed_twice() -> None:
    """Requests, not executions, and by method."""
    rows = [Executed(id, method, 0.0, 0) for id, method in (("a1", "Put"),) * 3 + (("a2", "Put"), ("a3", "Get"))]
    assert (report(executed=rows).twice("Put"), report(executed=rows).twice("Get")) == (1, 0)


def test_back_to_normal() -> None:
    """Until the last half second in which a call failed, or calls were half as slow again."""
    calm = [sample(number / 10) for number in range(10)]
    late = [sample(1.0, "UNAVAILABLE"), sample(1.6, seconds=0.05), sample(2.1), sample(2.9)]
    assert report(calm + late).back_to_normal((1, 3), (0, 1)) == 1.0


@pytest.mark.parametrize(("quantile", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_quantiles(quantile: float, value: int) -> None:
    """The smallest value that so many do not exceed."""
    assert value == quantile_of([3, 1, 4, 2], quantile)
