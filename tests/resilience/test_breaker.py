"""The circuit breaker of one endpoint, in virtual time."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.call import ABANDONED, OK, Outcome
from framework.client.breaker import UNCOUNTED, Begun, Breaker, State, Treatment, treatment
from framework.errors import Code, ConfigError, Unavailable
from framework.policy import BreakerSettings

SUCCESS, FAILURE, RATE_ONLY, IGNORED, UNANSWERED = Treatment
F, S, R = FAILURE, SUCCESS, RATE_ONLY


class Fixed(random.Random):
    """Always the same number."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def random(self) -> float:
        return self.value


def make(drawn: float = 0.0, **settings: float | None) -> Breaker:
    """A breaker whose jitter is `drawn`: 0 opens it for the least, 1 for the most."""
    return Breaker(BreakerSettings(**settings), Fixed(drawn))  # type: ignore[arg-type]  # integers stay integers


def run(breaker: Breaker, now: float, *treatments: Treatment, duration: float = 0.001) -> State:
    """One call after the other, all at `now`; the state that they leave."""
    for each in treatments:
        breaker.end(now, breaker.begin(now), each, duration)
    return breaker.state(now)


def opened(drawn: float = 0.0, **settings: float | None) -> Breaker:
    """A breaker that opened at 0 and, unless told otherwise, is due at 5 s."""
    breaker = make(drawn, **settings)
    assert run(breaker, 0.0, *[F] * 5) is State.OPEN
    return breaker


def test_five_failures_in_a_row_open_it() -> None:
    """Four do not, and a success between begins the row anew."""
    breaker = make()
    assert run(breaker, 0.0, F, F, F, F, S, F, F, F, F) is State.CLOSED
    assert run(breaker, 0.0, F) is State.OPEN
    assert breaker.reason == "5 failures in a row"
    assert not breaker.available(4.999)
    assert breaker.available(5.0)


def test_half_of_five_calls_failed_and_the_fifth_a_success_opens_it() -> None:
    """50%, at least 5 calls: F F F S S opens when there are enough calls, whatever the last one was."""
    breaker = make(minimum=5)
    assert run(breaker, 0.0, F, F, F, S) is State.CLOSED
    assert run(breaker, 0.0, S) is State.OPEN
    assert breaker.reason == "3 of 5 calls within 10s failed"


def test_fewer_calls_than_the_minimum_open_nothing() -> None:
    """19 calls, every other one failed: too few to tell; the 20th tells."""
    breaker = make()
    assert run(breaker, 0.0, *[F, S] * 9, F) is State.CLOSED
    assert run(breaker, 0.0, S) is State.OPEN


def test_slow_calls_open_it() -> None:
    """Half of 20 calls took the time from which on a call is slow; that they succeeded does not matter."""
    breaker = make(slow=0.5)
    assert run(breaker, 0.0, *[S] * 10, duration=0.4999) is State.CLOSED
    assert run(breaker, 0.0, *[S] * 9, duration=0.5) is State.CLOSED
    assert run(breaker, 0.0, S, duration=0.5) is State.OPEN
    assert breaker.reason == "10 of 20 calls within 10s took 0.5s or more"


def test_four_half_open_permits_refuse_the_fifth_and_an_ignored_error_returns_its_permit() -> None:
    """Permits count calls that tell something; a cancelled one makes room for another."""
    breaker = opened(probes=4)
    permits = [breaker.begin(5.0) for _ in range(4)]
    assert UNCOUNTED not in permits
    assert not breaker.available(5.0)
    assert breaker.begin(5.0) == UNCOUNTED
    breaker.end(5.1, permits[0], IGNORED, 0.1)
    assert breaker.available(5.1)
    fifth = breaker.begin(5.1)
    assert not breaker.available(5.1)
    for permit in (*permits[1:], fifth):
        assert breaker.state(5.2) is State.HALF_OPEN
        breaker.end(5.2, permit, S, 0.1)
    assert breaker.state(5.2) is State.CLOSED


def test_a_probe_that_succeeded_is_not_replaced_by_another() -> None:
    """Of 2 probes one has succeeded and one is out: nobody else goes before that is decided."""
    breaker = opened(probes=2)
    first, _second = breaker.begin(5.0), breaker.begin(5.0)
    breaker.end(5.1, first, S, 0.1)
    assert not breaker.available(5.1)


def test_a_probe_that_never_finishes_leaves_half_open_after_the_maximum_wait() -> None:
    """It counts as failed when its wait is over: open again from that moment, for twice as long."""
    breaker = opened(probe_wait=1.0)
    permit = breaker.begin(5.0)
    assert breaker.state(5.999) is State.HALF_OPEN
    assert not breaker.available(5.999)
    assert breaker.state(6.0) is State.OPEN
    assert breaker.reason == "no answer to a probe within 1s"
    assert not breaker.available(15.999)
    assert breaker.available(16.0)
    breaker.end(16.0, permit, S, 11.0)
    assert breaker.state(16.0) is State.OPEN


def test_a_stuck_probe_is_noticed_however_late_and_by_whoever_asks() -> None:
    """Nobody asked for an hour: the wait after the stuck probe is over long since."""
    breaker = opened(probe_wait=1.0)
    breaker.begin(5.0)
    assert breaker.available(3600.0)
    assert breaker.begin(3600.0) != UNCOUNTED


def test_the_wait_for_probes_begins_with_the_first_that_is_out() -> None:
    """A permit given back leaves nobody waited for, so its time does not run."""
    breaker = opened(probe_wait=1.0)
    breaker.end(5.5, breaker.begin(5.0), IGNORED, 0.5)
    assert breaker.state(100.0) is State.HALF_OPEN
    breaker.begin(100.0)
    assert breaker.state(100.999) is State.HALF_OPEN
    assert breaker.state(101.0) is State.OPEN


@pytest.mark.parametrize("late", [S, F])
def test_a_call_begun_closed_that_finishes_half_open_is_ignored(late: Treatment) -> None:
    """What an endpoint did before it was taken out says nothing about how it is now."""
    breaker = make()
    old = breaker.begin(0.0)
    run(breaker, 0.0, *[F] * 5)
    probe = breaker.begin(5.0)
    breaker.end(5.1, old, late, 5.1)
    assert breaker.state(5.1) is State.HALF_OPEN
    breaker.end(5.2, probe, S, 0.2)
    assert breaker.state(5.2) is State.CLOSED


def test_a_call_of_an_earlier_closed_state_is_ignored_in_a_later_one() -> None:
    """Five stragglers that fail after the endpoint has recovered do not open it again."""
    breaker = make()
    stragglers = [breaker.begin(0.0) for _ in range(5)]
    run(breaker, 0.0, *[F] * 5)
    run(breaker, 5.0, S)
    for permit in stragglers:
        breaker.end(5.1, permit, F, 5.1)
    assert repr(breaker) == "<Breaker closed: 0 of 0 failed, 0 in a row>"


def test_a_run_of_resource_exhausted_is_never_consecutive_trips_the_rate_and_fails_the_probe() -> None:
    """19 in a row open nothing, the 20th is half of enough calls, and the probe that meets one fails."""
    breaker = make()
    assert run(breaker, 0.0, *[R] * 19) is State.CLOSED
    assert run(breaker, 0.0, R) is State.OPEN
    assert breaker.reason == "20 of 20 calls within 10s failed"
    assert run(breaker, 5.0, R) is State.OPEN
    assert breaker.reason == "a probe failed"


def test_resource_exhausted_does_not_end_a_row_of_failures() -> None:
    """It is no success either."""
    assert run(make(), 0.0, F, F, R, F, F, F) is State.OPEN


@pytest.mark.parametrize("span", [0.01, 5.0])
@pytest.mark.parametrize("start", [0.0, 123456.7891])
@pytest.mark.parametrize(("failures", "expected"), [(10, State.OPEN), (9, State.CLOSED)])
def test_the_same_burst_in_10_ms_or_in_5_s_has_the_same_decision(
    span: float, start: float, failures: int, expected: State
) -> None:
    """20 calls, as many failed: how fast they came does not matter while they fit the window."""
    breaker = make(consecutive=0)
    for number in range(20):
        run(breaker, start + span * number / 20, F if number < failures else S)
    assert breaker.state(start + span) is expected


def test_failures_are_forgotten_after_the_window() -> None:
    """9 of 19 failed; 10 s later one more failure is 1 of 1."""
    breaker = make()
    run(breaker, 0.0, *[F, S] * 9, S)
    run(breaker, 10.0, F)
    assert repr(breaker) == "<Breaker closed: 1 of 1 failed, 1 in a row>"


def test_a_very_long_idle_gap_does_not_wedge() -> None:
    """A week later it counts, opens and recovers as on the first day."""
    breaker = make()
    run(breaker, 1.0, F, F, S)
    week = 604_800.0
    assert run(breaker, week, *[F, S] * 10) is State.OPEN
    assert breaker.available(2 * week)
    assert run(breaker, 2 * week, S) is State.CLOSED
    assert run(breaker, 3 * week, *[F] * 5) is State.OPEN


def test_a_failed_probe_advances_the_backoff_and_recovery_resets_it() -> None:
    """5, 10, 20 ... seconds up to half the maximum (and twice that with the most jitter); after a success 5 again."""
    breaker = make()
    now, waits = 0.0, list[float]()
    run(breaker, now, *[F] * 5)
    for _ in range(8):
        due = next(now + wait for wait in range(301) if breaker.available(now + wait))
        waits.append(due - now)
        now = due
        run(breaker, now, F)
    assert waits == [5, 10, 20, 40, 80, 150, 150, 150]
    assert run(breaker, now + 150, S) is State.CLOSED
    assert run(breaker, now + 150, *[F] * 5) is State.OPEN
    assert not breaker.available(now + 154.999)
    assert breaker.available(now + 155)


@pytest.mark.parametrize(("drawn", "wait"), [(0.0, 5.0), (0.5, 7.5), (1.0, 10.0)])
def test_half_of_the_wait_is_jittered(drawn: float, wait: float) -> None:
    """Clients that saw the same failures do not probe together."""
    breaker = opened(drawn)
    assert not breaker.available(wait - 0.001)
    assert breaker.available(wait)


def test_a_slow_probe_fails() -> None:
    """An endpoint that answers, but slowly, is not back."""
    breaker = opened(slow=0.5)
    assert run(breaker, 5.0, S, duration=0.5) is State.OPEN
    assert breaker.reason == "a probe took 0.5s or more"


def test_a_call_made_although_open_is_not_counted() -> None:
    """When every endpoint is open all are used; how those calls end changes nothing, nor uses a permit."""
    breaker = opened()
    assert breaker.begin(1.0) == UNCOUNTED
    breaker.end(1.1, UNCOUNTED, F, 0.1)
    breaker.end(1.1, UNCOUNTED, S, 0.1)
    assert breaker.available(5.0)
    probe = breaker.begin(5.0)
    breaker.end(5.0, UNCOUNTED, F, 4.0)
    breaker.end(5.1, probe, S, 0.1)
    assert breaker.state(5.1) is State.CLOSED


def test_asking_takes_no_permit() -> None:
    """A balancer may look at an endpoint as often as it likes."""
    breaker = opened()
    assert all(breaker.available(5.0) for _ in range(10))
    assert breaker.state(5.0) is State.OPEN


def test_limits_can_be_switched_off() -> None:
    """Without the row, the rate and slowness nothing opens it."""
    assert run(make(consecutive=0, failure_rate=0), 0.0, *[F] * 100, duration=9.0) is State.CLOSED


@pytest.mark.parametrize("code", list(Code))
def test_treatment_of_codes(code: Code) -> None:
    """What each code says about the endpoint that sent it."""
    expected = {
        Code.UNAVAILABLE: FAILURE,
        Code.INTERNAL: FAILURE,
        Code.UNKNOWN: FAILURE,
        Code.DATA_LOSS: FAILURE,
        Code.RESOURCE_EXHAUSTED: RATE_ONLY,
        Code.CANCELLED: IGNORED,
    }
    assert treatment(Outcome(code)) is expected.get(code, SUCCESS)


@pytest.mark.parametrize("code", list(Code))
def test_failures_made_locally_say_nothing(code: Code) -> None:
    """No endpoint, a shed call or a full bulkhead never feed the statistics of an endpoint."""
    assert treatment(Outcome(code, remote=False), locally_made=True) is IGNORED


def test_treatment_of_deadlines() -> None:
    """A failure only when the attempt's own timer fired; a caller in a hurry says nothing about the endpoint."""
    here, there = Outcome(Code.DEADLINE_EXCEEDED, remote=False), Outcome(Code.DEADLINE_EXCEEDED)
    assert treatment(here, own_timeout=True) is FAILURE
    assert treatment(here) is IGNORED
    assert treatment(there) is SUCCESS


def test_treatment_of_outcomes_that_occur() -> None:
    """OK, given up, a connection that broke, a bug."""
    outcomes = [OK, ABANDONED, Outcome.of(Unavailable("reset")), Outcome.of(ValueError())]
    assert [treatment(outcome) for outcome in outcomes] == [SUCCESS, IGNORED, FAILURE, FAILURE]


def test_a_stream_that_begins_is_a_probe_that_succeeds() -> None:
    """It may go on for hours: the endpoint is well."""
    breaker = opened()
    stream = breaker.begun(5.1, breaker.begin(5.0), 0.1)
    assert breaker.state(100.0) is State.CLOSED
    assert not breaker.broke(100.0, stream, IGNORED)
    assert (breaker.state(100.0), breaker.row) == (State.CLOSED, 0)
    assert not breaker.broke(100.0, stream, F)  # its beginning is forgotten: one more call
    assert repr(breaker) == "<Breaker closed: 1 of 1 failed, 1 in a row>"


@pytest.mark.parametrize(("broken", "state"), [(F, State.OPEN), (R, State.OPEN), (IGNORED, State.HALF_OPEN)])
def test_a_stream_that_breaks_while_others_are_probed_fails_the_probe(broken: Treatment, state: State) -> None:
    """It was one of them."""
    breaker = opened(probes=2)
    stream = breaker.begun(5.1, breaker.begin(5.0), 0.1)
    assert breaker.state(5.2) is State.HALF_OPEN
    breaker.broke(5.2, stream, broken)
    assert breaker.state(5.2) is state


def test_streams_that_begin_and_break_are_failures_in_a_row() -> None:
    """Their beginning is taken back, in the row and in the rate; one that stays between them begins the row anew."""
    breaker = make()
    for _ in range(4):
        assert breaker.broke(0.0, breaker.begun(0.0, breaker.begin(0.0), 0.1), F)
    assert repr(breaker) == "<Breaker closed: 4 of 4 failed, 4 in a row>"
    breaker.begun(0.0, breaker.begin(0.0), 0.1)
    for row in range(4):
        assert breaker.row == row
        breaker.broke(0.0, breaker.begun(0.0, breaker.begin(0.0), 0.1), F)
    assert breaker.broke(0.0, breaker.begun(0.0, breaker.begin(0.0), 0.1), F)
    assert (breaker.state(0.0), breaker.reason) == (State.OPEN, "5 failures in a row")


def test_a_stream_that_ends_exhausted_is_no_failure_in_a_row_and_does_not_end_one() -> None:
    """The failures before it began and those since are one row."""
    breaker = make()
    run(breaker, 0.0, F, F, F)
    stream = breaker.begun(0.0, breaker.begin(0.0), 0.1)
    assert run(breaker, 0.0, F) is State.CLOSED
    breaker.broke(0.0, stream, R)
    assert (breaker.state(0.0), breaker.row) == (State.CLOSED, 4)
    assert run(breaker, 0.0, F) is State.OPEN


def test_a_stream_that_breaks_long_after_others_succeeded_is_one_failure() -> None:
    """What was in a row before it began is over."""
    breaker = make()
    run(breaker, 0.0, F, F, F, F)
    stream = breaker.begun(0.0, breaker.begin(0.0), 0.1)
    run(breaker, 1.0, S)
    breaker.broke(2.0, stream, F)
    assert repr(breaker) == "<Breaker closed: 5 of 6 failed, 1 in a row>"


@pytest.mark.parametrize(
    ("consecutive", "broken", "reason"), [(5, 5, "5 failures in a row"), (0, 20, "20 of 40 calls within 10s failed")]
)
def test_many_streams_that_break_at_once(consecutive: int, broken: int, reason: str) -> None:
    """Failures in a row, however well they had begun; a rate, where the row does not count."""
    breaker = make(consecutive=consecutive)
    for number, stream in enumerate([breaker.begun(0.0, breaker.begin(0.0), 0.1) for _ in range(40)]):
        assert breaker.closed is (number < broken)
        breaker.broke(1.0, stream, F)
    assert breaker.reason == reason


def test_a_stream_that_was_not_counted_when_it_began_is_not_when_it_breaks() -> None:
    """It was made although the breaker was open, or in an earlier state."""
    breaker = opened()
    uncounted = breaker.begun(1.0, breaker.begin(1.0), 0.1)
    assert uncounted.permit == UNCOUNTED
    earlier = breaker.begun(1.0, breaker.generation - 1, 0.1)
    run(breaker, 5.0, S)
    for stream in (uncounted, earlier):
        assert not breaker.broke(6.0, stream, F)
    assert (breaker.state(6.0), breaker.row) == (State.CLOSED, 0)


def test_repr() -> None:
    """It says the state, and why."""
    breaker = make()
    run(breaker, 0.0, S, F)
    assert repr(breaker) == "<Breaker closed: 1 of 2 failed, 1 in a row>"
    run(breaker, 0.0, *[F] * 4)
    assert repr(breaker) == "<Breaker open until 5.000: 5 failures in a row>"
    breaker.begin(5.0)
    assert repr(breaker) == "<Breaker half open: 1 probes out, 1 to succeed>"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"failure_rate": 1.1}, "breaker.failure_rate is 1.1; it must be a number from 0 to 1"),
        ({"probes": 0}, "breaker.probes is 0; it must be a whole number from 1 to 1000"),
        ({"open": 10.0, "open_max": 5.0}, "breaker.open is 10s, more than breaker.open_max, 5s"),
        ({"slow": 0}, "breaker.slow is 0; it must be more than 0"),
    ],
)
def test_settings_are_validated_when_made(values: dict[str, float], message: str) -> None:
    """The message names the setting, the value and what is possible."""
    with pytest.raises(ConfigError) as caught:
        make(**values)
    assert str(caught.value) == message


def test_settings_from_a_table() -> None:
    """A file writes durations, and none."""
    table = {"consecutive": 3, "window": "20s", "slow": "none", "open": "1s"}
    assert BreakerSettings.parse(table, "b") == BreakerSettings(consecutive=3, window=20.0, open=1.0)


EVENTS = st.one_of(
    st.floats(0, 30),
    st.just("begin"),
    st.tuples(st.integers(0, 50), st.sampled_from(Treatment)),
    st.tuples(st.sampled_from(("begun", "broke")), st.integers(0, 50), st.sampled_from(Treatment)),
)


@given(st.lists(EVENTS, max_size=200), st.integers(1, 3), st.integers())
def test_permits_are_never_negative_and_available_never_lies(events: list[Any], probes: int, seed: int) -> None:
    """Whatever happens: at most `probes` are out, `begin` agrees with `available`, and no state is for ever."""
    settings = BreakerSettings(consecutive=2, probes=probes, open_max=40)
    breaker = Breaker(settings, random.Random(seed))
    now, out, streams = 0.0, list[int](), list[Begun]()
    for event in events:
        if isinstance(event, float):
            now += event
        elif isinstance(event, str):
            available = breaker.available(now)
            permit = breaker.begin(now)
            assert available == (permit != UNCOUNTED)
            out.append(permit)
        elif event[0] == "begun":
            if out:
                streams.append(breaker.begun(now, out.pop(event[1] % len(out)), 0.1))
        elif event[0] == "broke":
            if streams:
                breaker.broke(now, streams.pop(event[1] % len(streams)), event[2])
        elif out:
            breaker.end(now, out.pop(event[0] % len(out)), event[1], 0.1)
        assert 0 <= breaker._permits <= breaker._wanted <= probes
        if breaker.state(now) is State.HALF_OPEN:
            assert breaker._wanted - breaker._permits == out.count(breaker.generation)
        assert breaker._settings.consecutive > breaker.row >= 0
    assert breaker.available(now + settings.probe_wait + settings.open_max)


def test_other_settings_hold_from_the_next_opening() -> None:
    """One that is closed opens for as long as the new settings say; one that is open keeps what it has learnt."""
    closed = make()
    closed.configure(BreakerSettings(open=60.0))
    run(closed, 0.0, *[F] * 5)
    assert closed.due() == 60.0
    open_already = opened()
    open_already.configure(BreakerSettings(open=60.0))
    assert open_already.due() == 5.0
    assert run(open_already, 5.0, F) is State.OPEN
    assert open_already.due() == 15.0
