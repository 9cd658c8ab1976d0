"""Messages in a body of many: JSON texts one after another, and how replies are set apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

Format = Literal["ndjson", "array", "sse"]

TYPES: dict[Format, bytes] = {
    "ndjson": b"application/x-ndjson",
    "array": b"application/json",
    "sse": b"text/event-stream",
}
_FORMATS: dict[str, Format] = {
    "application/x-ndjson": "ndjson",
    "application/ndjson": "ndjson",
    "application/jsonl": "ndjson",
    "application/x-jsonlines": "ndjson",
    "application/json": "array",
    "text/event-stream": "sse",
    "application/*": "ndjson",
    "*/*": "ndjson",
}


def format_of(accept: bytes | None) -> Format:
    """The format that an Accept header asks for; lines when it leaves the choice."""
    best: tuple[float, Format] = (0.0, "ndjson")
    for part in (accept or b"").decode("latin-1").lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        found = _FORMATS.get(name)
        weight = next((parameter[2:] for parameter in parameters if parameter.startswith("q=")), "1")
        try:
            quality = float(weight)
        except ValueError:
            continue
        if found is not None and quality > best[0]:
            best = (quality, found)
    return best[1]


class Malformed(Exception):
    """What cannot be part of a series of JSON texts."""


class TooLong(Exception):
    """One text is longer than allowed."""


_SPACE = b" \t\r\n"
_NEXT = re.compile(rb'["{}\[\]]')
_QUOTE = re.compile(rb'["\\]')
_BEGIN = re.compile(rb"[^ \t\r\n]")
_PLAIN_END = re.compile(rb"[ \t\r\n,\]{\[\"]")


class Splitter:
    """Finds the JSON texts in a body, whether it has one a line, one after another, or all in one array.

    Each byte is looked at once, however the body is cut. What a text means is not looked at.

    Args:
        limit: bytes that one text may have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._at = 0  # where scanning goes on
        self._start = -1  # where the text begins that is being scanned
        self._depth = 0
        self._in_string = False
        self._array: bool | None = None  # not known yet
        self._closed = False
        self._comma = False  # a value has ended, so that in an array a comma must come
        self._wanted = False  # a comma has come, and so a value must

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The texts that are complete with these bytes. Raises Malformed and TooLong."""
        self._buffer += data
        while (text := self._next()) is not None:
            yield text
        if self._start > 0:
            del self._buffer[: self._start]
            self._at -= self._start
            self._start = 0
        elif self._start < 0:
            del self._buffer[: self._at]
            self._at = 0
        if len(self._buffer) > self._limit:
            raise TooLong

    def end(self) -> Iterator[bytes]:
        """The text that only the end of the body ends. Raises Malformed when one is not complete."""
        if self._start >= 0 and self._depth == 0 and not self._in_string:
            text = bytes(self._buffer[self._start :])
            self._start = -1
            self._comma = True
            yield text
        if self._start >= 0 or (self._array and not self._closed):
            raise Malformed("the body ends in the middle of a message")

    def _next(self) -> bytes | None:
        buffer = self._buffer
        while True:
            if self._start < 0 and not self._begin():
                return None
            if self._in_string:
                found = _QUOTE.search(buffer, self._at)
                if found is None:
                    self._at = len(buffer)
                    return None
                if found[0] == b"\\":
                    if found.end() == len(buffer):
                        self._at = found.start()
                        return None
                    self._at = found.end() + 1
                    continue
                self._at = found.end()
                self._in_string = False
            elif self._depth == 0:  # a number or a word
                found = _PLAIN_END.search(buffer, self._at)
                if found is None:
                    self._at = len(buffer)
                    return None
                self._at = found.start()
            else:
                found = _NEXT.search(buffer, self._at)
                if found is None:
                    self._at = len(buffer)
                    return None
                self._at = found.end()
                if found[0] == b'"':
                    self._in_string = True
                    continue
                self._depth += 1 if found[0] in b"{[" else -1
            if self._depth == 0:
                if self._at - self._start > self._limit:
                    raise TooLong
                text = bytes(buffer[self._start : self._at])
                self._start = -1
                self._comma = True
                return text

    def _begin(self) -> bool:
        """Go to where the next text begins; False when it is not there yet."""
        while (found := _BEGIN.search(self._buffer, self._at)) is not None:
            at, sign = found.start(), found[0]
            self._at = at + 1
            if self._closed:
                raise Malformed("something follows the array")
            if self._array is None:
                self._array = sign == b"["
                if self._array:
                    continue
            if self._array:
                if sign == b"]":
                    if self._wanted:
                        raise Malformed("a message is missing behind a comma")
                    self._closed = True
                    continue
                if sign == b",":
                    if not self._comma:
                        raise Malformed("a message is missing before a comma")
                    self._comma, self._wanted = False, True
                    continue
                if self._comma:
                    raise Malformed("a comma is missing between two messages")
            elif sign in b",]}":
                raise Malformed(f"{sign.decode()!r} between two messages")
            self._start = at
            self._wanted = False
            self._in_string = sign == b'"'
            self._depth = 1 if sign in b"{[" else 0
            if not self._in_string and self._depth == 0:
                self._at = at  # a number or a word, whose first sign counts
                if _PLAIN_END.match(sign):
                    raise Malformed(f"{sign.decode()!r} between two messages")
            return True
        self._at = len(self._buffer)
        return False
