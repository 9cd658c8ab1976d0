"""What services say of themselves: which says the same, which contradicts which, and whose counts."""

from __future__ import annotations

import dataclasses

import pytest

from framework.discovery import Instance, Snapshot
from framework.gateway.backend import Versions
from framework.gateway.description import Description, contradiction
from tests.gateway.lab import CONTRADICTING, NEWER, OTHER, SHOP, pool


def described(proto: str, service: str = "lab.Shop") -> Description:
    from google.protobuf import descriptor_pb2

    file = descriptor_pb2.FileDescriptorProto()
    pool(proto).FindFileByName("test.proto").CopyToProto(file)
    return Description.of([service, "grpc.health.v1.Health"], [file])


OLD, NEW, STRANGE = described(SHOP), described(NEWER), described(CONTRADICTING)


def seen(*instances: tuple[str, str]) -> Snapshot:
    return {id: Instance(id, "shop", f"{id}:1", version=version) for id, version in instances}


def test_the_same() -> None:
    """Comments and order make no difference, and what is gRPC's own does not count."""
    assert OLD.services == ("lab.Shop",)
    assert described(SHOP.replace("service Shop", "// A comment.\nservice Shop")).digest == OLD.digest
    assert len({OLD.digest, NEW.digest, STRANGE.digest, described(OTHER, "other.Bank").digest}) == 4


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("int32 number = 2", "int64 number = 2", ""),
        ("int32 number = 2", "int32 amount = 2", ""),
        ("int32 number = 2", "reserved 2", ""),
        ("string name = 1", "bytes name = 1", ""),
        ("int32 number = 2", "sint32 number = 2", "field 2 of lab.Thing is a zigzag number, and a number"),
        ("int32 number = 2", "repeated int32 number = 2", "field 2 of lab.Thing is repeated, a number, and a number"),
        ("int32 number = 2", "Thing number = 2", "field 2 of lab.Thing is a message, and a number"),
        ("returns (stream Thing)", "returns (Thing)", "is (.lab.Thing) returns (.lab.Thing), and (.lab.Thing) returns"),
    ],
)
def test_contradictions(old: str, new: str, told: str) -> None:
    """What is read as the other means it does not contradict it; names are not sent."""
    found = contradiction(described(SHOP.replace(old, new)), OLD)
    assert (told in found) if told else found == ""


def test_whose_description_counts() -> None:
    """The highest version's, numbers compared as such; among equals that of the last to come."""
    versions = Versions()
    asked = versions.see(seen(("a", "1.9"), ("b", "1.10")))
    assert [one.id for one in asked] == ["a", "b"]
    versions.tell("b", NEW)
    versions.tell("a", OLD)
    assert versions.choices() == [(NEW, ""), (OLD, "")]
    assert [one.id for one in versions.see(seen(("a", "1.9"), ("b", "1.10"), ("c", "1.10")))] == ["c"]
    versions.tell("c", OLD)
    assert versions.choices() == [(OLD, ""), (NEW, "")]
    assert versions.see(seen(("a", "1.9"))) == []
    assert versions.choices() == [(OLD, "")]


def test_what_contradicts_somebody_who_is_there() -> None:
    """It comes first, with what speaks against it, and so does the one that it contradicts."""
    versions = Versions()
    versions.see(seen(("a", "1"), ("b", "2")))
    versions.tell("a", OLD)
    versions.tell("b", STRANGE)
    (first, against), (second, _) = versions.choices()
    assert (first, second) == (STRANGE, OLD)
    assert against.startswith("field 2 of lab.Thing is text or bytes")
    versions.see(seen(("b", "2")))
    assert versions.choices() == [(STRANGE, "")]


def test_another_behind_the_same_id() -> None:
    """What the one before said does not count for it, and it is asked; a change of its weight makes it no other."""
    versions = Versions()
    first = Instance("a", "shop", "127.0.0.1:1", version="1")
    versions.see({"a": first})
    versions.tell("a", OLD)
    assert versions.see({"a": dataclasses.replace(first, weight=5)}) == []
    assert versions.choices() == [(OLD, "")]
    for address, version in (("127.0.0.1:2", "1"), ("127.0.0.1:2", "2")):
        one = dataclasses.replace(first, address=address, version=version)
        assert versions.see({"a": one}) == [one]
        assert versions.choices() == []
        versions.tell("a", NEW)


def test_not_everybody_is_asked() -> None:
    """At first two of each version; later whoever is new, and more when those that told have left."""
    versions = Versions()
    many = [(f"i{number}", "2" if number % 2 else "1") for number in range(100)]
    asked = [one.id for one in versions.see(seen(*many))]
    assert asked == ["i0", "i2", "i1", "i3"]
    for id in asked:
        versions.tell(id, OLD)
    assert [one.id for one in versions.see(seen(*many, ("new", "2")))] == ["new"]
    assert [one.id for one in versions.see(seen(*many[10:]))] == ["i10", "i11"]


def test_who_has_left_tells_nothing() -> None:
    """An answer that comes too late is not kept."""
    versions = Versions()
    versions.see(seen(("a", "1")))
    versions.see({})
    versions.tell("a", OLD)
    assert versions.choices() == []
