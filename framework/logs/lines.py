"""One line for a call: whether it has one, at which level, and what stands in it.

| code                                                                  | served    | made      |
|-----------------------------------------------------------------------|-----------|-----------|
| OK                                                                    | info      | debug     |
| INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION,     | info      | debug     |
| ABORTED, OUT_OF_RANGE, CANCELLED                                      |           |           |
| DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNAVAILABLE, UNIMPLEMENTED,    | warning   | warning   |
| PERMISSION_DENIED, UNAUTHENTICATED                                    |           |           |
| UNKNOWN, INTERNAL, DATA_LOSS                                          | error     | warning   |

What a service of gRPC's own (health, reflection) answers with OK is `debug`. Most calls of a busy server go well and
have no line, so whether one has is looked up in a list.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

from framework.call import Call, Method, Outcome
from framework.errors import Code, RpcError
from framework.logs import redaction
from framework.logs.output import NAMES, Output, trace_ids
from framework.observation import Allowance, LogSettings

log = logging.getLogger("framework.calls")

Side: TypeAlias = Literal["server", "client"]

Line: TypeAlias = Callable[[Call, Outcome, float], None]
"""Write the line of a call that has ended: how, and after how many seconds."""

_NOTED = frozenset(
    {Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE, Code.UNIMPLEMENTED}
    | {Code.PERMISSION_DENIED, Code.UNAUTHENTICATED}
)
_BROKEN = frozenset({Code.UNKNOWN, Code.INTERNAL, Code.DATA_LOSS})

LONGEST = 500
"""Characters of an error's text that a line has."""


def level_of(code: Code, side: Side, service: str = "") -> int:
    """The level of the line of a call that ended so."""
    if code in _BROKEN:
        return logging.ERROR if side == "server" else logging.WARNING
    if code in _NOTED:
        return logging.WARNING
    if side == "client":
        return logging.DEBUG
    if code in (Code.OK, Code.CANCELLED) and service.startswith("grpc."):  # health is watched until it is given up
        return logging.DEBUG
    return logging.INFO


class CallLines:
    """Writes the lines of the calls that one process serves and makes.

    Args:
        settings: which calls have one.
        passes_on: the calls that are made are those that are served.
        clock: seconds since the epoch.
        rng: chooses among the calls that went well.
    """

    def __init__(
        self,
        settings: LogSettings,
        *,
        passes_on: bool = False,
        clock: Callable[[], float] = time.time,
        rng: random.Random | None = None,
    ) -> None:
        self._settings = settings
        self._passes_on = passes_on
        self._clock = clock
        rng = rng or random.Random()
        self._successes = Allowance(settings.per_second, settings.successes, rng)
        self._failures = Allowance(settings.per_second, 1.0, rng)

    def __call__(self, side: Side, method: Method[Any, Any], service: str) -> Line | None:
        """What writes the lines of a method; None when none of its calls can have one.

        Args:
            service: that is called; of calls made.
        """
        if self._passes_on:
            side = "server"
        which = self._settings.server if side == "server" else self._settings.client
        if which == "none":
            return None
        event = "served" if side == "server" else "called"
        levels = [level_of(code, side, method.service) for code in Code]
        if which == "failures":
            levels[Code.OK] = 0
        enabled, successes, failures, clock = log.isEnabledFor, self._successes, self._failures, self._clock
        ok = Code.OK

        def line(call: Call, outcome: Outcome, seconds: float) -> None:
            code = outcome.code
            level = levels[code]
            if not level or not enabled(level):
                return
            now = clock()
            allowance = successes if code is ok else failures
            if allowance.take(now):
                fields = fields_of(call, outcome, seconds)
                if service:
                    fields["target"] = service
                if call.caller is not None:
                    if (endpoint := fields.pop("peer", None)) is not None:
                        fields["endpoint"] = endpoint
                    if call.caller:
                        fields["peer"] = call.caller
                if allowance.without:
                    fields["without_line"] = allowance.without
                    allowance.without = 0
                _write(now, level, event, fields)

        return line


class RequestLines:
    """Writes the lines of requests that are turned away before a call is made for them.

    Args:
        settings: of the lines of calls served.
        clock: seconds since the epoch.
    """

    def __init__(self, settings: LogSettings, *, clock: Callable[[], float] = time.time) -> None:
        self._which = settings.server
        self._clock = clock
        self._allowance = Allowance(settings.per_second, 1.0, random.Random())

    def __call__(self, code: Code, fields: dict[str, Any]) -> None:
        """Write a line.

        Args:
            code: of the error that the client was sent.
            fields: what stands in it, the `request` among them.
        """
        level = min(level_of(code, "server"), logging.WARNING)  # a defect of ours has its own line
        if self._which == "none" or not log.isEnabledFor(level):
            return
        now = self._clock()
        if self._allowance.take(now):
            fields = {key: redaction.text(said) if isinstance(said, str) else said for key, said in fields.items()}
            fields["code"] = code.name
            if self._allowance.without:
                fields["without_line"] = self._allowance.without
                self._allowance.without = 0
            _write(now, level, "refused", fields)


def fields_of(call: Call, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """What stands in the line of a call."""
    fields: dict[str, Any] = {
        "method": call.method.full_name,
        "code": outcome.code.name,
        "ms": round(seconds * 1000, 3),
    }
    if call.peer:
        fields["peer"] = call.peer
    if call.attempt > 1:
        fields["attempts"] = call.attempt
    if call.identity is not None:
        fields["identity"] = str(call.identity)
    if call.request_id:
        fields["request_id"] = call.request_id
    fields.update(trace_ids(call))
    error = outcome.error
    if error is not None:
        text = error.inside or error.message if isinstance(error, RpcError) else f"{type(error).__name__}: {error}"
        fields["error"] = redaction.text(text if len(text) <= LONGEST else f"{text[:LONGEST]}...")
        if isinstance(error, RpcError) and error.endpoints:
            fields["endpoints"] = list(error.endpoints)
    return fields


def _write(now: float, level: int, event: str, fields: dict[str, Any]) -> None:
    output = _direct()
    if output is None:
        log.log(
            level,
            "%s %s %s" + (" in %s ms" if "ms" in fields else ""),
            *(event, *(fields[name] for name in ("method", "request", "code", "ms") if name in fields)),
            extra={"fields": fields},
        )
        return
    try:
        output.write(now, {"level": NAMES[level], "logger": log.name, "event": event, **fields})
    except Exception:  # as `logging` does: what cannot be written down must not fail a call
        output.handleError(logging.makeLogRecord({"msg": event, "name": log.name}))


def _direct() -> Output | None:
    """What writes the lines of all loggers, when nobody else is to have ours: a record costs three times as much."""
    if log.handlers or log.filters or not log.propagate or _framework.handlers or not _framework.propagate:
        return None
    (only, *others) = _root.handlers or (None,)
    return only if isinstance(only, Output) and not others and not only.filters else None


_root = logging.getLogger()
_framework = logging.getLogger("framework")
