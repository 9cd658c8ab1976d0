"""The payments: take money once, and give it back once.

framework run example_services.payments:service
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from example_services.database import Database
from example_services.errors import KeyReused, refused
from example_services.shop.payments.v1.payments_pb2 import ChargeRequest, GetPaymentRequest, Payment, RefundRequest
from example_services.shop.payments.v1.payments_rpc import PaymentsServicer
from framework import AlreadyExists, Context, NotFound, Service

DECLINED_CARD = "card-declined"


class Payments(PaymentsServicer):
    """Payments in a database, and a ledger of all money that moved."""

    def __init__(self, db: Database) -> None:
        self.db = db

    async def Charge(self, request: ChargeRequest, context: Context) -> Payment:
        payment = await self.db.write(charge, request)
        if payment.state == Payment.DECLINED:
            raise refused("CARD_DECLINED", payment.card, because="the bank declined it")
        return payment

    async def Refund(self, request: RefundRequest, context: Context) -> Payment:
        payment = await self.db.write(refund, request.id)
        if payment.state == Payment.DECLINED:
            raise refused("NOT_CHARGED", payment.id, because="there is no money to give back")
        return payment

    async def GetPayment(self, request: GetPaymentRequest, context: Context) -> Payment:
        return await self.db.read(find, request.id)


def create(sql: sqlite3.Connection) -> None:
    sql.execute(
        "CREATE TABLE payments (id TEXT PRIMARY KEY, idempotency_key TEXT NOT NULL UNIQUE, payment BLOB NOT NULL)"
    )
    sql.execute("CREATE TABLE ledger (payment_id TEXT NOT NULL, currency TEXT NOT NULL, minor_units INTEGER NOT NULL)")


def charge(sql: sqlite3.Connection, request: ChargeRequest) -> Payment:
    """The payment of this key. What a card said once is the answer for good: a repeated charge never asks again."""
    row = sql.execute("SELECT payment FROM payments WHERE idempotency_key = ?", (request.idempotency_key,)).fetchone()
    if row:
        payment = Payment.FromString(row[0])
        if (payment.card, payment.amount) != (request.card, request.amount):
            raise KeyReused(request.idempotency_key)
        return payment
    state = Payment.DECLINED if request.card == DECLINED_CARD else Payment.CHARGED
    payment = Payment(id=f"pay-{uuid.uuid4().hex[:12]}", state=state, card=request.card, amount=request.amount)
    payment.create_time.GetCurrentTime()
    insert = "INSERT INTO payments VALUES (?, ?, ?)"
    sql.execute(insert, (payment.id, request.idempotency_key, payment.SerializeToString()))
    if state == Payment.CHARGED:
        move(sql, payment, +payment.amount.minor_units)
    return payment


def refund(sql: sqlite3.Connection, id: str) -> Payment:
    payment = find(sql, id)
    if payment.state == Payment.CHARGED:
        payment.state = Payment.REFUNDED
        sql.execute("UPDATE payments SET payment = ? WHERE id = ?", (payment.SerializeToString(), id))
        move(sql, payment, -payment.amount.minor_units)
    return payment


def move(sql: sqlite3.Connection, payment: Payment, minor_units: int) -> None:
    """Enter it into the ledger, which only grows: what stands there has happened."""
    sql.execute("INSERT INTO ledger VALUES (?, ?, ?)", (payment.id, payment.amount.currency, minor_units))


def find(sql: sqlite3.Connection, id: str) -> Payment:
    row = sql.execute("SELECT payment FROM payments WHERE id = ?", (id,)).fetchone()
    if row is None:
        raise NotFound(f"no payment {id}")
    return Payment.FromString(row[0])


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    async with Database.open("payments", create) as db:
        service.add(Payments(db))
        yield


service = Service(
    "payments",
    lifespan=lifespan,
    errors={KeyReused: AlreadyExists},
    metadata={"pid": str(os.getpid())},  # the registry tells which process this is
)

if __name__ == "__main__":
    service.run()
