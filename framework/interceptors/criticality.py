"""How much a call matters, carried along the whole chain of calls in the metadata `x-criticality`."""

from __future__ import annotations

import enum

KEY = "x-criticality"
"""The metadata key; its value is the name of a Criticality."""


class Criticality(enum.IntEnum):
    """Whose calls go first when not all can be served; the lower the number, the more it matters.

    A call that says nothing is CRITICAL. Source: "Site Reliability Engineering", chapter 21, Handling Overload.
    """

    CRITICAL_PLUS = 0
    """Its failure is seen by many users at once."""

    CRITICAL = 1
    """Its failure is seen by a user."""

    SHEDDABLE_PLUS = 2
    """It may fail for minutes and be retried: batches."""

    SHEDDABLE = 3
    """It may fail often, and for hours."""
