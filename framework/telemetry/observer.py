"""What watches a call: one look when it begins and one when it ends, for its span, its figures and its line in the log.

An observer is put together once per method, out of what is wanted; a side that nobody wants to know of has none.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import TypeAlias

from framework.call import OK, Call, Outcome, current
from framework.errors import Code
from framework.loop import exact_clock
from framework.telemetry.figures import Figures, Histogram, Instrument, Labels

CARRIED = frozenset(("traceparent", "tracestate", "baggage"))
"""Metadata that says which trace a call belongs to; what a process without tracing passes on as it came."""

Observer: TypeAlias = Callable[[Call], None]
"""Is shown a call that begins, in the task that makes or serves it."""

Line: TypeAlias = Callable[[Call, Outcome, float], None]
"""Is told of a call that has ended: how, and how many seconds it took. Must not raise."""


Begin: TypeAlias = Callable[[Call], object]
"""Begins the span of a call, which is then `call.trace`; there is none for a call that is not recorded."""


class Durations:
    """The histograms of one method on one side, by code.

    Attributes:
        failing: codes that count as errors there.
    """

    def __init__(self, figures: Figures, instrument: Instrument, labels: Labels, failing: frozenset[Code]) -> None:
        self._figures = figures
        self._instrument = instrument
        self._labels = labels
        self._failing = failing
        self.bounds = instrument.bounds
        self.by_code: list[Histogram | None] = [None] * len(Code)

    def of(self, code: Code) -> Histogram:
        """The one for a code."""
        labels = (*self._labels, ("rpc.response.status_code", code.name))
        if code in self._failing:
            labels = (*labels, ("error.type", code.name))
        found = self.by_code[code] = self._figures.histogram(self._instrument, labels)
        return found


def trace_id_of(call: Call) -> str:
    """The id of the trace that a call belongs to, 32 hex digits; empty when it is not known."""
    if call.trace is not None:
        return f"{call.trace.context.trace_id:032x}"
    said = call.get("traceparent")
    return said[3:35] if isinstance(said, str) and len(said) >= 55 else ""


def pass_on(call: Call) -> None:
    """Let a call carry the trace of the call being served, as it came: this process has no tracing of its own."""
    serving = current.get()
    if serving is not None and serving.metadata:
        carried = tuple(pair for pair in serving.metadata if pair[0] in CARRIED)
        if carried and call.get("traceparent") is None:
            call.metadata = (*call.metadata, *carried)


def observer(begin: Begin | None, durations: Durations | None, line: Line | None) -> Observer | None:
    """What watches the calls of one method, made of what is wanted."""
    if begin is None and durations is None and line is None:
        return None
    clock: Callable[[], float] | None = None
    by_code: list[Histogram | None] = [] if durations is None else durations.by_code

    def start() -> float:
        nonlocal clock
        clock = exact_clock()  # once: asking for the running loop costs
        return clock()

    def observe(call: Call) -> None:
        call.began = start() if clock is None else clock()
        call.watch = ended
        if begin is not None:
            begin(call)

    def ended(call: Call, outcome: Outcome) -> None:
        seconds = clock() - call.began  # type: ignore[misc]  # it is known since the call began
        if durations is not None:
            histogram = by_code[outcome.code] or durations.of(outcome.code)
            histogram.counts[bisect_left(histogram.bounds, seconds)] += 1
            histogram.sum += seconds
        if call.trace is not None:
            call.trace.end(call, outcome)
        if line is not None:
            line(call, outcome, seconds)

    if line is not None or durations is None or begin not in (None, pass_on):
        return observe
    bounds, passing = durations.bounds, begin is not None
    succeeded: Histogram | None = None

    def measure(call: Call) -> None:
        """The same for what nearly every call is: not traced, without a line of its own, and a success."""
        if passing and current.get() is not None:
            pass_on(call)
        call.began = start() if clock is None else clock()
        call.watch = measured

    def measured(call: Call, outcome: Outcome) -> None:
        nonlocal succeeded
        seconds = clock() - call.began  # type: ignore[misc]  # it is known since the call began
        if outcome is OK and succeeded is not None:
            histogram = succeeded
        else:
            histogram = by_code[outcome.code] or durations.of(outcome.code)
            if outcome.code is Code.OK:
                succeeded = histogram
        histogram.counts[bisect_left(bounds, seconds)] += 1
        histogram.sum += seconds

    return measure
