"""The payments of the example."""

from __future__ import annotations

import asyncio

import pytest

from example_services.shop.common.v1.money_pb2 import Money
from example_services.shop.payments.v1.payments_pb2 import ChargeRequest, GetPaymentRequest, Payment, RefundRequest
from example_services.shop.payments.v1.payments_rpc import PaymentsClient
from framework import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound


def charge(key: str = "k", cents: int = 1999, card: str = "card-visa") -> ChargeRequest:
    return ChargeRequest(idempotency_key=key, card=card, amount=Money(currency="EUR", minor_units=cents))


async def test_a_charge_is_a_payment(payments: PaymentsClient) -> None:
    """It can be looked up by its id."""
    payment = await payments.Charge(charge())
    assert payment.state == Payment.CHARGED
    assert await payments.GetPayment(GetPaymentRequest(id=payment.id)) == payment


async def test_the_same_key_is_the_same_payment(payments: PaymentsClient) -> None:
    """However often and at the same moment: one key, one payment."""
    charges = await asyncio.gather(*(payments.Charge(charge()) for _ in range(10)))
    assert len({payment.id for payment in charges}) == 1


async def test_a_key_stands_for_one_payment(payments: PaymentsClient) -> None:
    """Another amount or card under the same key is refused, and the first payment stays as it is."""
    payment = await payments.Charge(charge())
    for other in (charge(cents=1), charge(card="card-other")):
        with pytest.raises(AlreadyExists, match="'k' was used for another request"):
            await payments.Charge(other)
    assert await payments.Charge(charge()) == payment


async def test_a_declined_card_stays_declined(payments: PaymentsClient) -> None:
    """The answer belongs to the key; the details say whose fault it is."""
    for _ in range(2):
        with pytest.raises(FailedPrecondition) as caught:
            await payments.Charge(charge(card="card-declined"))
        [violation] = caught.value.details[0].violations
        assert (violation.type, violation.subject) == ("CARD_DECLINED", "card-declined")


async def test_refund(payments: PaymentsClient) -> None:
    """Money goes back, may be asked back twice, and its key charges nobody again."""
    payment = await payments.Charge(charge())
    for _ in range(2):
        refunded = await payments.Refund(RefundRequest(id=payment.id))
        assert refunded.state == Payment.REFUNDED
    assert (await payments.Charge(charge())).state == Payment.REFUNDED


async def test_unknown_payment(payments: PaymentsClient) -> None:
    """A payment that was never made is NOT_FOUND."""
    with pytest.raises(NotFound):
        await payments.Refund(RefundRequest(id="pay-nope"))


async def test_wrong_charges(payments: PaymentsClient) -> None:
    """A key and an amount are needed."""
    for wrong in (charge(key=""), charge(cents=0), ChargeRequest(idempotency_key="k")):
        with pytest.raises(InvalidArgument):
            await payments.Charge(wrong)
