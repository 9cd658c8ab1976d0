"""What the formats of ProtoJSON allow, for schemathesis, which loads this as its hooks."""

from __future__ import annotations

import base64

import schemathesis
from hypothesis import strategies as some

for name, low, high in (
    ("int32", -(2**31), 2**31 - 1),
    ("int64", -(2**63), 2**63 - 1),
    ("uint32", 0, 2**32 - 1),
    ("uint64", 0, 2**64 - 1),
):
    schemathesis.openapi.format(name, some.integers(low, high).map(str))
schemathesis.openapi.format("byte", some.binary(max_size=20).map(lambda raw: base64.b64encode(raw).decode()))
schemathesis.openapi.format("date-time", some.datetimes().map(lambda moment: f"{moment.isoformat()}Z"))
schemathesis.openapi.format("google-duration", some.integers(-(10**11), 10**11).map(lambda seconds: f"{seconds}s"))
schemathesis.openapi.format("google-fieldmask", some.sampled_from(["", "title", "title,price.currency"]))
