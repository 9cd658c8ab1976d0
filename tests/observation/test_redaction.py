"""What must not stand in a log: marked fields, credentials, secrets."""

from __future__ import annotations

import time
from typing import Any

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory

from framework.logs.redaction import HIDDEN, LONGEST, message, secret, text, value
from framework.parsing import Secret

File = descriptor_pb2.FileDescriptorProto
Kind = descriptor_pb2.FieldDescriptorProto


def _kinds() -> dict[str, Any]:
    """Messages whose fields are marked at every depth."""
    file = File(name="redaction.proto", package="redaction", syntax="proto3")
    card = file.message_type.add(name="Card")
    card.field.add(name="owner", number=1, type=Kind.TYPE_STRING, label=1)
    for number, (name, kind, label) in enumerate(
        (("number", Kind.TYPE_STRING, 1), ("pin", Kind.TYPE_INT32, 1), ("old", Kind.TYPE_STRING, 3)), start=2
    ):
        card.field.add(name=name, number=number, type=kind, label=label).options.debug_redact = True
    order = file.message_type.add(name="Order")
    order.field.add(name="id", number=1, type=Kind.TYPE_STRING, label=1)
    order.field.add(name="card", number=2, type=Kind.TYPE_MESSAGE, label=1, type_name=".redaction.Card")
    order.field.add(name="cards", number=3, type=Kind.TYPE_MESSAGE, label=3, type_name=".redaction.Card")
    order.field.add(name="again", number=4, type=Kind.TYPE_MESSAGE, label=1, type_name=".redaction.Order")
    order.field.add(name="by_name", number=5, type=Kind.TYPE_MESSAGE, label=3, type_name=".redaction.Order.Entry")
    entry = order.nested_type.add(name="Entry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=Kind.TYPE_STRING, label=1)
    entry.field.add(name="value", number=2, type=Kind.TYPE_MESSAGE, label=1, type_name=".redaction.Card")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"redaction.{name}"))
        for name in ("Card", "Order")
    }


KINDS = _kinds()
Card, Order = KINDS["Card"], KINDS["Order"]
CARD = Card(owner="Ada", number="4111", pin=99, old=["4000"])


@pytest.mark.parametrize(
    "given",
    [
        Order(id="o1", card=CARD),
        Order(id="o1", cards=[CARD, CARD]),
        Order(id="o1", by_name={"x": CARD}),
        Order(id="o1", again=Order(again=Order(card=CARD))),
    ],
    ids=["field", "list", "map", "deep"],
)
def test_marked_fields_are_hidden(given: Any) -> None:
    """However deep they stand; what is not marked is shown, and the message stays as it was."""
    before = given.SerializeToString(deterministic=True)
    shown = message(given)
    for hidden in ("4111", "99", "4000"):
        assert hidden not in shown
    assert "Ada" in shown
    assert "o1" in shown
    assert HIDDEN in shown
    assert before == given.SerializeToString(deterministic=True)


def test_message_without_marks_is_shown_whole() -> None:
    """It is not even copied."""
    assert message(File(name="a.proto", package="a")) == 'name: "a.proto" package: "a"'


def test_any_shows_what_it_holds_by_name_only() -> None:
    """Its content may be marked, or of a type that is not known here."""
    packed = any_pb2.Any()
    packed.Pack(CARD)
    assert message(packed) == 'type_url: "type.googleapis.com/redaction.Card"'


@pytest.mark.parametrize(
    "name",
    [
        "authorization",
        "Cookie",
        "set-cookie",
        "x-api-key",
        "api_key",
        "password",
        "db.password",
        "client_secret",
        "x-internal-token",
    ],
)
def test_names_of_credentials(name: str) -> None:
    """Metadata, headers and fields whose values are never shown."""
    assert secret(name)


@pytest.mark.parametrize("name", ["user", "tokens", "monkey", "x-request-id", "secretary", "authorizations"])
def test_other_names(name: str) -> None:
    """A name that only resembles one hides nothing."""
    assert not secret(name)


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("authorization: Bearer abcdef.123456", f"authorization: Bearer {HIDDEN}"),
        ("got eyJhbGciOiJI.eyJzdWIiOiJ.c2lnbmF0dXJl there", f"got {HIDDEN} there"),
        ("consul://me:hunter2@10.0.0.1:8500", f"consul://me:{HIDDEN}@10.0.0.1:8500"),
        ("(('authorization', 'letmein'),)", f"(('authorization', {HIDDEN}),)"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", HIDDEN),
        ("orders serves on 127.0.0.1:50051", "orders serves on 127.0.0.1:50051"),
        ("the bearer of this", "the bearer of this"),
        ("(('set-cookie', b'a=1; b=2'),)", f"(('set-cookie', {HIDDEN}),)"),
        (f"bad key fwk_ci-1_{'0a' * 32}!", f"bad key {HIDDEN}!"),
        ("connect(host=db password=hunter2)", f"connect(host=db password={HIDDEN})"),
        ("DB_PASSWORD=hunter2, a=b", f"DB_PASSWORD={HIDDEN}, a=b"),
        ("/callback?access_token=abc&state=x", f"/callback?access_token={HIDDEN}&state=x"),
        ("mytoken=5 the password: too short", "mytoken=5 the password: too short"),
    ],
)
def test_text(given: str, shown: str) -> None:
    """What looks like credentials is hidden in text too."""
    assert shown == text(given)


def test_values() -> None:
    """Lists, tables and metadata are looked into, and no deeper than somebody could want."""
    assert str(value(Secret("s3cret"))) == "***"
    assert value({"password": "p", "user": "u"}) == {"password": HIDDEN, "user": "u"}
    assert value((("authorization", "Bearer x"), ("x-request-id", "1"))) == (
        ("authorization", HIDDEN),
        ("x-request-id", "1"),
    )
    assert value([CARD]) == [message(CARD)]
    assert value(b"\x00\x01") == "<2 bytes>"
    around: list[Any] = []
    around.append(around)
    assert HIDDEN in str(value(around))


@pytest.mark.parametrize(
    "piece",
    [
        *("-eyJ", "eyJaaaaa.", "bearer ", f"bearer{' ' * 999}", "password='", "password   ", "token=", "fwk_"),
        *("-----BEGIN ", "-----BEGIN PRIVATE KEY-----", "-----END A ", "://a:", "a"),
    ],
)
def test_text_that_somebody_made_up_to_be_slow(piece: str) -> None:
    """A caller may choose the text, and everybody waits while it is looked at: twice as much takes twice as long."""

    def took(size: int) -> float:
        given = (piece * size)[:size]
        start = time.thread_time()
        for _ in range(8):
            text(given)
        return time.thread_time() - start

    shortest = min(took(LONGEST // 8) for _ in range(3)), min(took(LONGEST) for _ in range(3))
    assert shortest[1] < 30 * shortest[0] + 0.002


def test_a_very_long_text_is_shown_in_part() -> None:
    """Its beginning and its end, and how much is left out; looking at it costs no more than at one of 16 kB."""
    given = "a" * 9000 + " " + "b" * 5_000_000 + " " + "c" * 4000
    assert text(given) == f"{given[:8192]} ... {len(given) - 12288} characters more ... {given[-4096:]}"


@pytest.mark.parametrize("cut", [8192, 12288, -8192, -4096])
def test_no_part_of_a_credential_is_shown_where_a_text_is_cut(cut: int) -> None:
    """Wherever the cut goes through one."""
    key = f"-----BEGIN PRIVATE KEY-----{'QUJD' * 800}-----END PRIVATE KEY-----"
    around = "x " * 20_000
    where = cut % len(around)
    for begin in range(where - len(key) - 2, where + 3, 301):
        assert "QUJD" not in text(around[:begin] + key + around[begin:])
