"""Where log lines come together: `logging`, structlog and the lines of calls, in one format on standard error.

    12:03:04.512 info     catalog serves on 127.0.0.1:50051            a terminal
    {"time": "2026-01-02T12:03:04.512Z", "level": "info", ...}         elsewhere

An application that has set up `logging` itself keeps what it has; our lines are then records like others.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, TextIO, TypeAlias

from framework.call import Call, current
from framework.logs import redaction
from framework.observation import LogSettings

Event: TypeAlias = MutableMapping[str, Any]
Render: TypeAlias = Callable[[Event], str]

NAMES = {logging.DEBUG: "debug", logging.INFO: "info", logging.WARNING: "warning", logging.ERROR: "error"}

_OWN = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))
"""What every record has; the rest was given as `extra`."""

_QUIET = {
    **dict.fromkeys(("asyncio", "aiohttp.access", "uvicorn"), logging.WARNING),
    **dict.fromkeys(("opentelemetry.baggage", "opentelemetry.trace"), logging.ERROR),
}
"""Loggers of others that say at `info` what says nothing, and at `warning` what callers have sent, whole."""


def configure_logging(
    settings: LogSettings | None = None, *, fields: Mapping[str, Any] | None = None, stream: TextIO | None = None
) -> None:
    """Write what `logging` and structlog are given to standard error, unless the application has set up its own.

    Args:
        fields: what every line says besides, such as the name of the service.
        stream: where to, instead.
    """
    import structlog  # by those who write logs only: it takes a while

    settings = settings or LogSettings()
    stream = stream or sys.stderr
    root = logging.getLogger()
    if all(isinstance(one, Output) for one in root.handlers):  # there is none, or it is ours
        root.handlers[:] = [Output(stream, _renderer(settings, stream), fields or {})]
        root.setLevel(settings.level.upper())
        for name, level in _QUIET.items():
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(max(level, root.level))
    if not structlog.is_configured():
        structlog.configure(
            processors=[structlog.contextvars.merge_contextvars, _to_logging],
            wrapper_class=structlog.make_filtering_bound_logger(root.level),
            logger_factory=lambda *names: logging.getLogger(*names[:1]) if names else logging.getLogger("structlog"),
        )


def _to_logging(logger: Any, method: str, event: Event) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A structlog line as a record: its fields stand in the record, and its message is not formatted any more."""
    error = event.pop("exc_info", method == "exception")
    text = event.pop("event", "")
    return ("%s", text), {"exc_info": error, "extra": {"fields": dict(event)}}


class Output(logging.Handler):
    """Writes lines of one format.

    Args:
        stream: where to.
        render: makes text of an event.
        fields: what every line says.
    """

    def __init__(self, stream: TextIO, render: Render, fields: Mapping[str, Any]) -> None:
        super().__init__()
        self._stream = stream
        self._render = render
        self._fields = dict(fields)
        self._second = 0
        self._stamp = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of `logging`."""
        try:
            self.write(record.created, self._event(record))
        except Exception:
            self.handleError(record)

    def write(self, at: float, event: Event) -> None:
        """Write a line; nothing in it is hidden any more.

        Args:
            at: the time, in seconds since the epoch.
        """
        line = self._render({"time": self._time(at), **event, **self._fields})
        self._stream.write(f"{line}\n")
        self._stream.flush()

    def _time(self, at: float) -> str:
        second = int(at)
        if second != self._second:  # making it costs as much as the rest of a line
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._stamp}.{int((at - second) * 1000):03d}Z"

    def _event(self, record: logging.LogRecord) -> Event:
        event: Event = {
            "level": NAMES.get(record.levelno, record.levelname.lower()),
            "logger": record.name,
            "event": redaction.text(_message(record)),
        }
        given = dict(vars(record).get("fields") or {})
        given.update((key, one) for key, one in vars(record).items() if key not in _OWN and key != "fields")
        for key, one in given.items():
            if key not in event:
                event[key] = redaction.HIDDEN if redaction.secret(key) else redaction.value(one)
        for key, one in ids().items():
            event.setdefault(key, one)
        if record.exc_info and record.exc_info[1] is not None:
            event["exception"] = redaction.text("".join(traceback.format_exception(record.exc_info[1])).rstrip())
        if record.stack_info:
            event["stack"] = record.stack_info
        return event

    def __repr__(self) -> str:
        return f"<Output to {getattr(self._stream, 'name', self._stream)}>"


def _message(record: logging.LogRecord) -> str:
    """The message of a record, whose arguments are shown without what is to be hidden."""
    arguments: Any = record.args
    if not arguments:
        return record.msg if isinstance(record.msg, str) else str(redaction.value(record.msg))
    shown = redaction.value(dict(arguments) if isinstance(arguments, Mapping) else list(arguments))
    return str(record.msg) % (shown if isinstance(shown, dict) else tuple(shown))


def ids() -> dict[str, str]:
    """The ids of the call that is being served where a line is written."""
    call = current.get()
    return {"request_id": call.request_id, **trace_ids(call)} if call is not None else {}


def trace_ids(call: Call) -> dict[str, str]:
    """The ids of a call's span; of its trace only, when this process has no part in that."""
    context = getattr(call.trace, "context", None)
    if context is not None:
        return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
    parent = call.get("traceparent") if call.metadata else None
    return {"trace_id": parent[3:35]} if isinstance(parent, str) and len(parent) >= 55 else {}


def _renderer(settings: LogSettings, stream: TextIO) -> Render:
    terminal = stream.isatty()
    if settings.format == "json" or (settings.format == "auto" and not terminal):
        return json_line
    import structlog

    console = structlog.dev.ConsoleRenderer(
        colors=terminal, timestamp_key="time", exception_formatter=structlog.dev.plain_traceback, sort_keys=False
    )

    def text_line(event: Event) -> str:
        event["time"] = event["time"][11:-1]
        event.pop("service", None)  # whoever looks at a terminal has started it
        if event.get("logger", "").startswith("framework"):
            del event["logger"]
        # In what callers have said nothing may look like a line of its own, or speak to the terminal.
        for key, one in event.items():
            if isinstance(one, str):
                if not one.isprintable():
                    event[key] = _indented(one) if key in _LINES else _escaped(one)
            elif type(one) not in _PLAIN:
                event[key] = _Shown(_escaped(redaction.text(repr(one))))
        return str(console(None, event["level"], event)).rstrip()

    return text_line


_PLAIN = (str, int, float, bool, type(None))

_LINES = frozenset(("exception", "stack"))
"""What is shown on lines of its own, below the line."""


class _Shown(str):
    """What is shown as it is, without quotes around it."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _escaped(text: str) -> str:
    """Text in which everything can be seen: of control characters, their names."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _indented(text: str) -> str:
    """Several lines, none of which begins where a line of the log does."""
    return "\n".join(f"    {_escaped(line)}" for line in text.split("\n"))


_encode = json.JSONEncoder(ensure_ascii=False, default=lambda given: redaction.text(str(given))).encode


def json_line(event: Event) -> str:
    """An event as JSON, whatever stands in it."""
    try:
        return _encode(event)
    except (TypeError, ValueError):  # keys that are no text, or what contains itself
        return _encode({str(key): one if type(one) in _PLAIN else repr(one) for key, one in event.items()})
