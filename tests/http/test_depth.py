"""How deep JSON is, without reading it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.http import depth
from framework.http.depth import DEEPEST, too_deep


def deep(levels: int, sign: str = "[]") -> bytes:
    """Lists or objects inside each other."""
    return (sign[0] * levels + sign[1] * levels).encode()


@pytest.mark.parametrize("sign", ["[]", "{}"])
def test_the_limit(sign: str) -> None:
    """It may be reached, and not exceeded."""
    assert [too_deep(deep(DEEPEST, sign)), too_deep(deep(DEEPEST + 1, sign))] == [False, True]


@pytest.mark.parametrize(
    "raw",
    [
        b"[" + b",".join([b"[{}]"] * 1000) + b"]",
        json.dumps(["[{" * 1000, '"[', "\\", "\n\\", '\\"[[[', "]" * 500 + "[" * 500] * 3).encode(),
        b"]" * 1000 + b"[" * 1000,
    ],
    ids=["wide", "in texts", "closed first"],
)
def test_what_is_not_deep(raw: bytes) -> None:
    """Many beside each other, signs in texts, and what a parser gives up at once."""
    assert not too_deep(raw)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'["a\\"",' * 1000, b'{"[":' * 1000], ids=["open", "text", "keys"])
def test_what_does_not_end(raw: bytes) -> None:
    """A parser goes as deep before it sees that the end is missing."""
    assert too_deep(raw)


values = st.recursive(
    st.none() | st.text(alphabet='[]{}"\\n \u00e9', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(alphabet='[]{}"\\a', max_size=3), inner, max_size=3)
    ),
    max_leaves=20,
)


def levels(value: Any) -> int:
    """How deep a value is."""
    if isinstance(value, dict):
        return 1 + max(map(levels, value.values()), default=0)
    return 1 + max(map(levels, value), default=0) if isinstance(value, list) else 0


@given(values, st.integers(0, 5))
def test_it_is_counted_right(value: Any, most: int) -> None:
    """Whatever stands in texts and keys, escaped or not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(depth, "DEEPEST", most)
        for plain in (True, False):
            assert too_deep(json.dumps(value, ensure_ascii=plain).encode()) == (levels(value) > most)
