"""How much a call matters, carried along the whole chain of calls in the metadata `x-criticality`."""

from __future__ import annotations

from framework.call import Criticality

KEY = "x-criticality"
"""The metadata key; its value is the name of a Criticality."""

BY_NAME = dict(Criticality.__members__)
