"""Settings of what a process tells of itself, `[telemetry]` and `[admin]`, and what keeps that within bounds.

[telemetry]
endpoint = "http://127.0.0.1:4317"      # of a collector; default: what OTEL_EXPORTER_OTLP_ENDPOINT says, or none
sample = 0.1                            # of the traces that begin here

[telemetry.logs]
format = "json"                         # "auto" is text on a terminal, and JSON elsewhere
successes = 0.1                         # a tenth of the calls that went well has a line, and all that failed

[admin]
port = 9090                             # on 127.0.0.1; "none" is no pages
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from framework.parsing import Table, boolean, choice, integer, number, optional, period, setting, span, table, text

LEVELS = ("debug", "info", "warning", "error")

Lines = Literal["all", "failures", "none"]
"""Which calls have a line in the log."""


@dataclass(frozen=True, slots=True)
class LogSettings(Table):
    """`[telemetry.logs]`.

    Attributes:
        format: `text` for people, `json` for machines; `auto` is text on a terminal and JSON elsewhere.
        level: lines below it are not written.
        server: calls served that have a line; also those that a gateway passes on.
        client: calls made that have a line, with `all` those that went well at the level `debug`.
        successes: share of the calls that went well that has a line.
        per_second: lines that calls that went well may have in a second, and as many those that failed. The next line
            tells how many had none.
    """

    format: Literal["auto", "text", "json"] = setting("auto", choice("auto", "text", "json"))
    level: Literal["debug", "info", "warning", "error"] = setting("info", choice(*LEVELS))
    server: Lines = setting("all", choice("all", "failures", "none"))
    client: Lines = setting("all", choice("all", "failures", "none"))
    successes: float = setting(1.0, number(0, 1))
    per_second: int = setting(100, integer(1, 1_000_000))


@dataclass(frozen=True, slots=True)
class AdminSettings(Table):
    """`[admin]`: pages for those who run the process. They are for everybody who reaches them.

    Attributes:
        host: address to listen on.
        port: 0 is any free port, which the log tells; None ("none" in a file) is no pages.
    """

    host: str = setting("127.0.0.1", text)
    port: int | None = setting(0, optional(integer(0, 65535)))


@dataclass(frozen=True, slots=True)
class TelemetrySettings(Table):
    """`[telemetry]`.

    Attributes:
        instrumentation: whose spans of calls: `framework`, `contrib` for those of opentelemetry-instrumentation-grpc,
            or `off` for none.
        metrics: count calls and what becomes of them.
        endpoint: URL of the OTLP receiver that spans and metrics go to; empty is what OTEL_EXPORTER_OTLP_ENDPOINT says,
            or none. What else the SDK reads from OTEL_* holds too: headers, certificates, resource attributes.
        protocol: of OTLP; `grpc` or `http/protobuf`.
        sample: share of the traces that begin here that are recorded; of others their beginning has decided. None
            ("none") is what OTEL_TRACES_SAMPLER says, or all.
        interval: seconds between two exports of metrics.
        flush: seconds that are spent at most, at the end, on what has not been sent.
        logs: what is logged, and how.
    """

    instrumentation: Literal["framework", "contrib", "off"] = setting(
        "framework", choice("framework", "contrib", "off")
    )
    metrics: bool = setting(True, boolean)
    endpoint: str = setting("", text)
    protocol: Literal["grpc", "http/protobuf"] = setting("grpc", choice("grpc", "http/protobuf"))
    sample: float | None = setting(None, optional(number(0.0, 1.0)))
    interval: float = setting(30.0, period)
    flush: float = setting(5.0, span(0.0, 60.0))
    logs: LogSettings = table(LogSettings(), LogSettings)


class Allowance:
    """Lets through a share of what comes, and no more than so many a second.

    Attributes:
        without: how many have not been let through since one was.
    """

    __slots__ = ("_left", "_per_second", "_random", "_second", "_share", "without")

    def __init__(self, per_second: int, share: float, rng: random.Random) -> None:
        self._per_second = self._left = per_second
        self._share = share
        self._random = rng.random
        self._second = 0
        self.without = 0

    def take(self, now: float) -> bool:
        """Whether this one is let through, at `now` seconds."""
        if self._share < 1.0 and self._random() >= self._share:
            self.without += 1
            return False
        if (second := int(now)) != self._second:
            self._second = second
            self._left = self._per_second
        if self._left <= 0:
            self.without += 1
            return False
        self._left -= 1
        return True
