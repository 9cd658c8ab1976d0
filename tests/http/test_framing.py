"""Many JSON texts in one body."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.http.framing import Malformed, Splitter, TooLong, format_of

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)
objects = st.dictionaries(st.text(max_size=2), values, max_size=3)


def split(body: bytes, cut: int = 1 << 20, limit: int = 1 << 20) -> list[Any]:
    splitter = Splitter(limit)
    texts = [text for at in range(0, len(body), cut) for text in splitter.feed(body[at : at + cut])]
    return [json.loads(text) for text in [*texts, *splitter.end()]]


@given(
    st.lists(objects, max_size=5), st.sampled_from(["", "\n", " ", "\r\n", "\n\n"]), st.integers(1, 9), st.booleans()
)
def test_texts_one_after_another(messages: list[Any], between: str, cut: int, ascii: bool) -> None:
    """Lines, and texts with nothing between them, come out as they went in, however the body is cut."""
    body = between.join(json.dumps(message, ensure_ascii=ascii) for message in messages).encode()
    assert split(body, cut) == messages


@given(st.lists(values, max_size=5), st.integers(1, 9), st.sampled_from([None, 1]))
def test_an_array(messages: list[Any], cut: int, indent: int | None) -> None:
    """The elements of an array come out one by one, whatever they are."""
    assert split(json.dumps(messages, indent=indent).encode(), cut) == messages


@given(st.lists(st.booleans() | st.integers() | st.text(max_size=3), min_size=1, max_size=4), st.integers(1, 5))
def test_texts_that_are_no_objects(messages: list[Any], cut: int) -> None:
    """Numbers, words and strings are told apart by space."""
    assert split(" ".join(map(json.dumps, messages)).encode(), cut) == messages


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a": 1', "the body ends in the middle of a message"),
        (b'"abc', "the body ends in the middle of a message"),
        (b"[{}", "the body ends in the middle of a message"),
        (b"[{},", "the body ends in the middle of a message"),
        (b"[{}{}]", "a comma is missing between two messages"),
        (b"[,{}]", "a message is missing before a comma"),
        (b"[{},,{}]", "a message is missing before a comma"),
        (b"[{},]", "a message is missing behind a comma"),
        (b"[{}] {}", "something follows the array"),
        (b"{},{}", "',' between two messages"),
        (b"{}]", "']' between two messages"),
    ],
)
def test_what_is_no_series(body: bytes, message: str) -> None:
    """What stands between two messages is looked at."""
    with pytest.raises(Malformed) as raised:
        split(body)
    assert str(raised.value) == message


@pytest.mark.parametrize("body", [b'{"a": "%s"}' % (b"x" * 100), b'["%s"]' % (b"x" * 100), b"1" * 100])
@pytest.mark.parametrize("cut", [1, 1000])
def test_a_text_that_is_too_long(body: bytes, cut: int) -> None:
    """A limit holds for each text, and not for all together."""
    with pytest.raises(TooLong):
        split(body, cut, 50)
    assert len(split(b'{"a": 1}\n' * 100, cut, 50)) == 100


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, "ndjson"),
        (b"*/*", "ndjson"),
        (b"text/html, */*;q=0.8", "ndjson"),
        (b"application/json", "array"),
        (b"application/x-ndjson", "ndjson"),
        (b"text/event-stream", "sse"),
        (b"application/json;q=0.5, text/event-stream;q=0.9", "sse"),
        (b"application/json;q=x, text/event-stream;q=0", "ndjson"),
    ],
)
def test_what_is_asked_for(accept: bytes | None, expected: str) -> None:
    """The format of the highest weight is taken."""
    assert format_of(accept) == expected
