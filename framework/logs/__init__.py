"""What the process writes down: one format for our lines and everybody's, one line per call, and no secrets in either.

Reading order: `redaction` (pure: what is hidden), `output` (the format, where `logging` and structlog come together),
`lines` (whether a call has a line, and which).
"""

from framework.logs.lines import CallLines, RequestLines
from framework.logs.output import configure_logging

__all__ = ["CallLines", "RequestLines", "configure_logging"]
