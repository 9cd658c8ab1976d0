"""Header blocks of calls, written and read without a table: the same block means the same each time, and is read once.

A peer is told to keep no table for what it sends (`SETTINGS_HEADER_TABLE_SIZE` 0), and none is kept for what is sent to
it, which the first block says (`NO_TABLE`).

Sources: RFC 7541; https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import hpack

from framework.call import Metadata
from framework.errors import Code

LARGEST_HEAD = 65_536
"""Bytes of a header list, as RFC 9113 counts them."""

REMEMBERED = 1000
"""Header blocks, and names of metadata, that are remembered."""

LONGEST_REMEMBERED = 512
"""Bytes of a header block that is remembered."""

SPARE = 40 + 32 * 9
"""Bytes that a header list has more than its block, at most, as RFC 9113 counts them: for names of the static table,
and 32 for each field that every call has."""

NO_TABLE = b"\x20"
"""What the first block begins with: nothing in it, and in those after it, is to be kept."""

ENCODINGS = (b"gzip", b"deflate")
"""How replies may be packed, besides not at all."""

_KEY = re.compile(r"[0-9a-z_.-]+")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_TIMEOUT = b"\x00\x0cgrpc-timeout"
_OWN = frozenset(
    (b"grpc-status", b"grpc-message", b"grpc-encoding", b"grpc-accept-encoding", b"content-type", b"te", b"user-agent")
)
_RESERVED = frozenset(
    ("te", "content-type", "host", "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade")
) | frozenset(("grpc-timeout", "grpc-encoding", "grpc-accept-encoding", "grpc-message", "grpc-status"))
_DROPPED = frozenset(("user-agent", "content-length"))  # there is one; and what a message has is counted by its prefix
_CODES = {str(code.value).encode(): code for code in Code}


class TooLarge(Exception):
    """A header list that is larger than `LARGEST_HEAD`."""


class Head(NamedTuple):
    """What a header block says.

    Attributes:
        http: the HTTP status; 0 in trailers.
        grpc: it is of a response of gRPC.
        encoding: how messages are packed that are.
        code: the status of the call, None where there is none.
        message: that comes with it.
        metadata: all else.
    """

    http: int
    grpc: bool
    encoding: bytes
    code: Code | None
    message: str
    metadata: Metadata


_heads: dict[bytes, Head] = {}


def head_of(block: bytes) -> Head:
    """Read a header block, or remember what it said.

    Raises:
        TooLarge: it says too much.
        hpack.HPACKError, IndexError: it is none.
    """
    found = _heads.get(block)
    if found is None:
        found = _read(block)
        if len(block) <= LONGEST_REMEMBERED:
            if len(_heads) >= REMEMBERED:
                _heads.clear()
            _heads[block] = found
    return found


def _read(block: bytes) -> Head:
    http, grpc, encoding, code, message = 0, False, b"", None, ""
    metadata: list[tuple[str, str | bytes]] = []
    for name, value in _decoded(block):
        if name == b":status":
            http = int(value) if len(value) == 3 and value.isdigit() else 0
        elif name == b"content-type":
            grpc = value.startswith(b"application/grpc")
        elif name == b"grpc-encoding":
            encoding = value
        elif name == b"grpc-status":
            code = _CODES.get(value, Code.UNKNOWN)
        elif name == b"grpc-message":
            message = unquote_to_bytes(value).decode("utf-8", "replace")
        elif not _NAME.fullmatch(name):
            continue
        elif name.endswith(b"-bin"):
            key = name.decode("ascii", "replace")
            metadata += ((key, _unpacked(part)) for part in value.split(b","))
        elif name not in _OWN:
            metadata.append((name.decode("ascii", "replace"), value.decode("utf-8", "replace")))
    return Head(http, grpc, encoding, code, message, clean(metadata))


def clean(metadata: Iterable[tuple[str, str | bytes]]) -> Metadata:
    """Metadata of a peer without what has line ends in it, which would be headers of its own where HTTP/1 goes on."""
    return tuple([one for one in metadata if isinstance(value := one[1], bytes) or not _CONTROL.search(value)])


def _decoded(block: bytes) -> list[tuple[bytes, bytes]]:
    if len(block) > LARGEST_HEAD:
        raise TooLarge
    decoder = hpack.Decoder(LARGEST_HEAD)
    decoder.header_table_size = decoder.max_allowed_table_size = 0
    try:
        return list(decoder.decode(block, raw=True))
    except hpack.OversizedHeaderListError:
        raise TooLarge from None


def _unpacked(value: bytes) -> bytes:
    try:
        return base64.b64decode(value.strip() + b"=" * (-len(value.strip()) % 4))
    except binascii.Error:
        return b""


def opening(path: str, authority: str, agent: str, *, secure: bool = False) -> bytes:
    """The part of a header block that all calls of a method have in common.

    Args:
        secure: the scheme is https.
    """
    block = b"\x83" + (b"\x87" if secure else b"\x86")  # POST
    block += b"\x04" + _text(path.encode()) + b"\x01" + _text(authority.encode())
    for name, value in (
        *((b"te", b"trailers"), (b"content-type", b"application/grpc"), (b"user-agent", agent.encode())),
        (b"grpc-accept-encoding", b",".join((b"identity", *ENCODINGS))),
    ):
        block += b"\x00" + _text(name) + _text(value)
    return block


def limit(seconds: float) -> bytes:
    """How long the peer may take, as a part of a header block."""
    count, unit = math.ceil(seconds * 1e6), b"u"
    for larger in (b"m", b"S"):
        if count >= 100_000_000:
            count, unit = -(-count // 1000), larger
    text = b"%d%s" % (min(max(count, 1), 99_999_999), unit)
    return b"%s%c%s" % (_TIMEOUT, len(text), text)


_names: dict[str, bytes] = {}
_binary_names: dict[str, bytes] = {}


def written(metadata: Metadata) -> bytes | None:
    """Metadata as a part of a header block; None for what gRPC cannot send."""
    block = b""
    for key, value in metadata:
        if value.__class__ is str and value.isascii() and value.isprintable():
            name = _names.get(key) or _learnt(key, binary=False)
            raw: bytes = value.encode()
        elif isinstance(value, bytes):
            name = _binary_names.get(key) or _learnt(key, binary=True)
            raw = base64.b64encode(value).rstrip(b"=")
        else:
            return None
        if not name:
            if key in _DROPPED:
                continue
            return None
        size = len(raw)
        block += name + (_SIZES[size] if size < 127 else _number(size)) + raw
    return block


def _learnt(key: str, *, binary: bool) -> bytes:
    """A name of metadata as it is sent; empty for what is not."""
    if key in _DROPPED or not _KEY.fullmatch(key) or key in _RESERVED or key.endswith("-bin") is not binary:
        return b""
    names = _binary_names if binary else _names
    if len(names) >= REMEMBERED:
        names.clear()
    names[key] = name = b"\x00" + _text(key.encode())
    return name


def _text(value: bytes) -> bytes:
    return _number(len(value)) + value


_SIZES = [bytes((size,)) for size in range(127)]


def _number(value: int) -> bytes:
    """An integer with a prefix of seven bits."""
    if value < 127:
        return bytes((value,))
    out = bytearray((127,))
    value -= 127
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
