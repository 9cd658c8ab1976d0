"""How deep JSON is nested, found out without reading it: native parsers recurse, and what is too deep for their stack
ends the process and not the call."""

from __future__ import annotations

import re
from itertools import accumulate

DEEPEST = 300
"""Objects and lists inside each other. A message in a list is two, and protobuf reads a hundred messages."""

_ESCAPED = re.compile(rb"\\.", re.DOTALL)
_TEXT = re.compile(rb'"[^"]*"')
_OTHERS = bytes(set(range(256)) - set(b'[]{}"'))
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")


def too_deep(raw: bytes) -> bool:
    """Whether a parser would go deeper than DEEPEST before it comes to the end, or to a mistake."""
    signs = raw.translate(None, _OTHERS)
    if signs.count(b"[") + signs.count(b"{") <= DEEPEST:
        return False
    if b"\\" in raw:
        signs = _ESCAPED.sub(b"", raw).translate(None, _OTHERS)
    signs = signs.replace(b'""', b"")  # most texts have none of the signs in them
    if b'"' in signs:
        signs = _TEXT.sub(b"", signs).replace(b'"', b"")
    left = signs
    for taken in (2, 4):  # a turn takes a level or two off, and with it nearly all that a wide text has
        left = left.replace(b"[]", b"").replace(b"{}", b"")
        if left.count(b"[") + left.count(b"{") + taken <= DEEPEST:
            return False
    return max(accumulate(memoryview(signs.translate(_STEPS)).cast("b")), default=0) > DEEPEST
