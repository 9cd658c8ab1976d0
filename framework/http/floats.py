"""32-bit floats in JSON: printed as short as they are, and read up to the largest there is."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor

FLOAT_MAX = 3.4028234663852886e38
FLOAT_LIMIT = 3.4028235677973366e38
"""What is smaller than this rounds to the largest float; what is not would be infinite."""


def shortest(value: float) -> float:
    """The double with the fewest digits that is this 32-bit float."""
    if value == 0 or not math.isfinite(value) or abs(value) >= FLOAT_MAX:
        return value
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if abs(short) <= FLOAT_MAX and struct.unpack("<f", struct.pack("<f", short))[0] == value:
            return short
    return float(f"{value:.9g}")


def clamped(data: Any, descriptor: Descriptor) -> Any:
    """JSON with numbers that round to the largest float in place of it."""
    if not isinstance(data, dict):
        if descriptor.full_name == "google.protobuf.FloatValue":
            return _rounded(data)
        return data
    names: Mapping[str, Any] = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    changed = {}
    for name, value in data.items():
        field = names.get(name)
        if field is None:
            changed[name] = value
            continue
        kind, float_ = field.message_type, field.type == field.TYPE_FLOAT
        entry = kind is not None and kind.GetOptions().map_entry
        if entry:
            held = kind.fields_by_name["value"]
            kind, float_ = held.message_type, held.type == held.TYPE_FLOAT

        def one(value: Any, kind: Any = kind, float_: bool = float_) -> Any:
            if float_:
                return _rounded(value)
            return value if kind is None else clamped(value, kind)

        if entry and isinstance(value, dict):
            changed[name] = {key: one(held) for key, held in value.items()}
        elif field.is_repeated and isinstance(value, list):
            changed[name] = [one(held) for held in value]
        else:
            changed[name] = one(value)
    return changed


def _rounded(value: Any) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return value
    if isinstance(value, bool) or not FLOAT_MAX < abs(number) < FLOAT_LIMIT:
        return value
    return math.copysign(FLOAT_MAX, number)
