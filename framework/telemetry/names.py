"""What is measured: every instrument, by OpenTelemetry's name where it has one, and `framework.` where not."""

from __future__ import annotations

from framework.telemetry.figures import DURATIONS, SHORT, Instrument
from framework.telemetry.figures import OTHER as OTHER

SERVER_DURATION = Instrument("rpc.server.call.duration", "histogram", "s", "Duration of an incoming call.", DURATIONS)
CLIENT_DURATION = Instrument(
    "rpc.client.call.duration", "histogram", "s", "Duration of an outgoing call, all attempts together.", DURATIONS
)
HTTP_DURATION = Instrument("http.server.request.duration", "histogram", "s", "Duration of an HTTP request.", DURATIONS)

ATTEMPTS = Instrument(
    "framework.client.attempts", "counter", "{attempt}", "Attempts of outgoing calls: first ones, retries, hedges."
)
PICKS = Instrument("framework.client.picks", "counter", "{pick}", "Attempts by the endpoint that they went to.")
CLIENT_IN_FLIGHT = Instrument("framework.client.in_flight", "updown", "{attempt}", "Attempts that have not ended.")
BREAKER_STATE = Instrument(
    "framework.breaker.state", "gauge", "", "State of an endpoint's breaker: 0 closed, 1 half open, 2 open.", merge=max
)
BREAKER_CHANGES = Instrument("framework.breaker.changes", "counter", "{change}", "Breakers that entered a state.")

SERVER_IN_FLIGHT = Instrument("framework.server.in_flight", "updown", "{call}", "Calls being served.")
SERVER_LIMIT = Instrument(
    "framework.server.limit", "updown", "{call}", "Calls that the server works on at a time, as its limiter finds out."
)
SERVER_SHED = Instrument("framework.server.shed", "counter", "{call}", "Calls refused because there were too many.")
SERVER_QUEUE = Instrument(
    "framework.server.queue.duration", "histogram", "s", "Time from the arrival of a call to its handler.", SHORT
)

DISCOVERY_UPDATES = Instrument(
    "framework.discovery.updates", "counter", "{update}", "Sets of instances that a registry reported."
)
DISCOVERY_AGE = Instrument(
    "framework.discovery.age", "gauge", "s", "Time since the registry confirmed what is known.", merge=max
)

LOOP_LAG = Instrument("framework.loop.lag", "histogram", "s", "How late the event loop is.", SHORT)
CPU_TIME = Instrument("process.cpu.time", "counter", "s", "CPU time of the process.")
MEMORY = Instrument("process.memory.usage", "updown", "By", "Resident memory of the process.")
OPEN_FILES = Instrument(
    "process.open_file_descriptor.count", "updown", "{file_descriptor}", "File descriptors that the process has open."
)
UPTIME = Instrument("process.uptime", "gauge", "s", "Time since the process was started.")
CERTIFICATE_EXPIRY = Instrument(
    "framework.tls.certificate.expiry", "gauge", "s", "When a certificate expires, in seconds since 1970.", merge=min
)
