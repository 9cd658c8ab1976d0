"""Packing and unpacking, and what bounds it."""

from __future__ import annotations

import gzip
import random
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from framework.http import compression
from framework.http.compression import NAMES, Corrupt, TooLarge, accepted, pack, packer, unpack, unpacker

assert NAMES == ("zstd", "br", "gzip")


@given(st.sampled_from(NAMES), st.lists(st.binary(max_size=300), max_size=5), st.integers(1, 50))
def test_parts_come_out_as_they_went_in(name: str, parts: list[bytes], cut: int) -> None:
    """Each part can be unpacked as soon as it is there, and however the stream is cut."""
    packing, unpacking = packer(name), unpacker(name)
    assert unpacking is not None
    for part in parts:
        packed = packing.pack(part)
        pieces = [packed[at : at + cut] for at in range(0, len(packed), cut)]
        assert part == b"".join(out for piece in pieces for out in unpacking.feed(piece))
    assert b"".join(unpacking.feed(packing.end())) == b""
    unpacking.end()


@given(st.sampled_from(NAMES), st.binary(max_size=3000))
def test_whole_messages(name: str, data: bytes) -> None:
    """A message comes out as it went in, and not when it is larger than allowed."""
    assert data == unpack(name, pack(name, data), len(data))
    if data:
        with pytest.raises(TooLarge):
            unpack(name, pack(name, data), len(data) - 1)


@pytest.mark.parametrize("name", NAMES)
def test_large_messages(name: str) -> None:
    """What comes out in many pieces is complete, whether it packs well or not."""
    for data in (random.Random(0).randbytes(1000) * 300, bytes(300_000), random.Random(0).randbytes(300_000)):
        assert data == unpack(name, pack(name, data), len(data))


@pytest.mark.parametrize("name", NAMES)
def test_a_bomb_is_not_unpacked(name: str) -> None:
    """What is allowed bounds the memory, not what would come out."""
    bomb = pack(name, bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(TooLarge):
        unpack(name, bomb, 1 << 20)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 8 << 20


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_unpacked(name: str) -> None:
    """Rubbish, and what ends too early, is corrupt."""
    whole = pack(name, b"hello world" * 20)
    for broken in (b"rubbish" * 10, whole[:-3]):
        with pytest.raises(Corrupt):
            unpack(name, broken, 1 << 20)


def test_several_members() -> None:
    """A gzip file may have several members, as a cat of two has."""
    assert unpack("gzip", gzip.compress(b"a") + gzip.compress(b"b"), 10) == b"ab"
    assert unpack("zstd", pack("zstd", b"a") + pack("zstd", b"b"), 10) == b"ab"


@pytest.mark.parametrize(
    ("header", "name"),
    [
        (None, ""),
        (b"", ""),
        (b"gzip", "gzip"),
        (b"gzip, deflate, br", "br"),
        (b"gzip, deflate, br, zstd", "zstd"),
        (b"br;q=0.5, gzip;q=0.8", "gzip"),
        (b"*", "zstd"),
        (b"*;q=0", ""),
        (b"identity", ""),
        (b"gzip;q=0", ""),
        (b"zstd;q=x, GZIP", "gzip"),
    ],
)
def test_what_a_client_accepts(header: bytes | None, name: str) -> None:
    """The highest weight counts, and of equal ones what packs best."""
    assert name == accepted(header)


def test_what_anybody_may_send_is_not_kept_for_ever() -> None:
    """Headers are remembered, but no more than some."""
    for number in range(1000):
        accepted(b"gzip;q=0.%d" % number)
    assert len(compression._chosen) <= 256
