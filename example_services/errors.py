"""Errors that several services of the shop raise, with the details that programs read."""

from __future__ import annotations

from google.rpc.error_details_pb2 import PreconditionFailure

from framework import FailedPrecondition


class KeyReused(Exception):
    """An idempotency key came back with another request. Each service maps it to ALREADY_EXISTS."""

    def __init__(self, key: str) -> None:
        super().__init__(f"{key!r} was used for another request; choose a new key")


def refused(kind: str, *subjects: str, because: str) -> FailedPrecondition:
    """The state of the shop forbids it: `refused("OUT_OF_STOCK", "p-0001", because="too few are left")`."""
    violations = [
        PreconditionFailure.Violation(type=kind, subject=subject, description=because) for subject in subjects
    ]
    return FailedPrecondition(f"{', '.join(subjects)}: {because}", details=[PreconditionFailure(violations=violations)])
