"""gzip, brotli and zstd, whole and in parts, bounded by what comes out and not by what goes in."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

try:
    import brotli
except ImportError:  # the extra `gateway` is not installed
    brotli = None
zstd: Any
try:
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
except ImportError:
    zstd = None

PIECE = 1 << 16
"""Bytes that are unpacked at once."""

SLICE = 1 << 12
"""Bytes that a decompressor is given at once. It copies what it does not take, and a body may have a member every
twenty bytes."""

MEMBERS = 100
"""Members or frames that a stream may have whatever is in them, and one more for each kilobyte that came out: each is
unpacked by a decompressor of its own."""

WIDEST = 23
"""Of a window of zstd, as a power of two: 8 MB. Source: RFC 9659."""


class TooLarge(Exception):
    """More comes out than is allowed."""


class Corrupt(Exception):
    """What was received cannot be unpacked."""


class Unpacker(Protocol):
    """Unpacks a stream part by part."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What comes out of the next part, in pieces; nothing more is unpacked before the next is asked for."""

    def end(self) -> None:
        """Raises Corrupt when the stream is not complete."""


class _Unpacker:
    """Over a decompressor that takes at most so many bytes out at once, and knows its end."""

    def __init__(self, fresh: Callable[[], Any]) -> None:
        self._fresh = fresh
        self._one = fresh()
        self._begun = False
        self._allowed = MEMBERS << 10

    def feed(self, data: bytes) -> Iterator[bytes]:
        for at in range(0, len(data), SLICE):
            yield from self._feed(data[at : at + SLICE])

    def _feed(self, data: bytes) -> Iterator[bytes]:
        while data or self._pending():
            if self._one.eof:
                self._one = self._fresh()  # another member, or frame, follows
                self._allowed -= 1 << 10
                if self._allowed < 0:
                    raise Corrupt("it has too many parts with too little in them")
            self._begun = True
            try:
                piece = self._take(data)
            except (zlib.error, OSError, ValueError, EOFError) as error:
                raise Corrupt(str(error)) from None
            except Exception as error:  # of the library's own class
                raise Corrupt(str(error)) from None
            if piece:
                self._allowed += len(piece)
                yield piece
            data = self._left()

    def _pending(self) -> bool:
        return False

    def _take(self, data: bytes) -> bytes:
        raise NotImplementedError

    def _left(self) -> bytes:
        raise NotImplementedError

    def end(self) -> None:
        if self._begun and not self._one.eof:
            raise Corrupt("it ends too early")


class _Zlib(_Unpacker):
    def _take(self, data: bytes) -> bytes:
        taken: bytes = self._one.decompress(data, PIECE)
        return taken

    def _left(self) -> bytes:
        left: bytes = self._one.unused_data if self._one.eof else self._one.unconsumed_tail
        return left


class _Zstd(_Unpacker):
    def _pending(self) -> bool:
        return self._begun and not self._one.eof and not self._one.needs_input

    def _take(self, data: bytes) -> bytes:
        taken: bytes = self._one.decompress(data, PIECE)
        return taken

    def _left(self) -> bytes:
        left: bytes = self._one.unused_data if self._one.eof else b""
        return left


class _Brotli:
    def __init__(self) -> None:
        self._one = brotli.Decompressor()
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        self._begun = self._begun or bool(data)
        try:
            while piece := self._one.process(data, output_buffer_limit=PIECE):  # more, until nothing comes
                data = b""
                yield piece
        except brotli.error as error:
            raise Corrupt(str(error)) from None

    def end(self) -> None:
        if self._begun and not self._one.is_finished():
            raise Corrupt("it ends too early")


class Packer(Protocol):
    """Packs a stream part by part."""

    def pack(self, data: bytes) -> bytes:
        """The next part, complete so that the other side can unpack all of it."""

    def end(self) -> bytes:
        """What ends the stream."""


class _Gzip:
    def __init__(self, wbits: int = 31) -> None:
        self._one = zlib.compressobj(5, wbits=wbits)

    def pack(self, data: bytes) -> bytes:
        return self._one.compress(data) + self._one.flush(zlib.Z_SYNC_FLUSH)

    def end(self) -> bytes:
        return self._one.flush()

    def whole(self, data: bytes) -> bytes:
        return self._one.compress(data) + self._one.flush()


class _BrotliPacker:
    def __init__(self) -> None:
        self._one = brotli.Compressor(quality=4)

    def pack(self, data: bytes) -> bytes:
        packed: bytes = self._one.process(data) + self._one.flush()
        return packed

    def end(self) -> bytes:
        packed: bytes = self._one.finish()
        return packed

    def whole(self, data: bytes) -> bytes:
        packed: bytes = self._one.process(data) + self._one.finish()
        return packed


class _ZstdPacker:
    def __init__(self) -> None:
        self._one = zstd.ZstdCompressor()

    def pack(self, data: bytes) -> bytes:
        packed: bytes = self._one.compress(data, zstd.ZstdCompressor.FLUSH_BLOCK)
        return packed

    def end(self) -> bytes:
        packed: bytes = self._one.flush()
        return packed

    def whole(self, data: bytes) -> bytes:
        packed: bytes = self._one.compress(data, zstd.ZstdCompressor.FLUSH_FRAME)
        return packed


_UNPACKERS: dict[str, Callable[[], Unpacker]] = {"gzip": lambda: _Zlib(lambda: zlib.decompressobj(31))}
_PACKERS: dict[str, Callable[[], Any]] = {"gzip": _Gzip}
if brotli is not None:
    _UNPACKERS["br"], _PACKERS["br"] = _Brotli, _BrotliPacker
if zstd is not None:
    _narrow = {zstd.DecompressionParameter.window_log_max: WIDEST}
    _UNPACKERS["zstd"] = lambda: _Zstd(lambda: zstd.ZstdDecompressor(options=_narrow))
    _PACKERS["zstd"] = _ZstdPacker

NAMES = tuple(name for name in ("zstd", "br", "gzip") if name in _PACKERS)
"""What can be packed and unpacked here, the best first."""


def unpacker(name: str) -> Unpacker | None:
    """A fresh one, or None for an encoding that is not known here."""
    made = _UNPACKERS.get(name)
    return None if made is None else made()


def packer(name: str) -> Packer:
    """A fresh one of NAMES."""
    made: Packer = _PACKERS[name]()
    return made


def unpack(name: str, data: bytes, limit: int) -> bytes:
    """All of a message.

    Raises:
        TooLarge, Corrupt: it cannot be had.
    """
    made = _UNPACKERS[name]()
    pieces, size = [], 0
    for piece in made.feed(data):
        size += len(piece)
        if size > limit:
            raise TooLarge
        pieces.append(piece)
    made.end()
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def pack(name: str, data: bytes) -> bytes:
    """All of a message."""
    packed: bytes = _PACKERS[name]().whole(data)
    return packed


_chosen: dict[bytes, str] = {}


def accepted(header: bytes | None) -> str:
    """The best encoding that an Accept-Encoding header allows, or empty for none."""
    if not header:
        return ""
    found = _chosen.get(header)
    if found is None:
        found = _choose(header.decode("latin-1").lower())
        if len(_chosen) < 256:  # there are not many of them, but anybody may send another
            _chosen[header] = found
    return found


def _choose(header: str) -> str:
    weights: dict[str, float] = {}
    for part in header.split(","):
        name, _, parameters = part.partition(";")
        key, _, weight = parameters.strip().partition("=")
        try:
            weights[name.strip()] = float(weight) if key == "q" else 1.0
        except ValueError:
            weights[name.strip()] = 0.0
    rest = weights.get("*", 0.0)
    best = max(NAMES, key=lambda name: weights.get(name, rest))  # of equals the first
    return best if weights.get(best, rest) > 0 else ""
