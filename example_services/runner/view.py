"""What a person sees of it: a live picture on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from example_services.runner.customers import Tally, price
from example_services.runner.fleet import ROOT, Fleet
from framework.gateway.gateway import Running

REFRESH = 0.25  # seconds between two pictures
REPORT = 5.0  # seconds between two plain lines
NEWS = 6  # lines of what was said, in a picture with room for them
STYLES = {"starting": "yellow", "serving": "green", "leaving": "cyan"}


class View:
    """Standard output."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._news: deque[str] = deque(maxlen=NEWS)
        self._live = False

    def say(self, text: str) -> None:
        """Print a line, or show it in the live picture while there is one."""
        if self._live:
            self._news.append(text)
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:  # nobody reads on, as in `make run | head`: end as with Ctrl-C, and say no more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            signal.raise_signal(signal.SIGINT)

    @asynccontextmanager
    async def showing(self, fleet: Fleet, tally: Tally, gateway: Running) -> AsyncIterator[None]:
        """Say what to try, and show how things stand while the block runs."""
        url = gateway.server.url
        commands = hints(fleet, url) if fleet.secured is None else secured_hints(fleet, url, fleet.secured)
        commands += "\n" + telemetry(fleet, gateway)
        self.say(f"\n{commands}\n")
        self._live = self._console.is_interactive
        task = asyncio.create_task(self._draw(fleet, tally, commands) if self._live else self._report(tally))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._live = False

    async def _draw(self, fleet: Fleet, tally: Tally, above: str) -> None:
        """Draw below these lines, and leave nothing behind."""
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                width, height = self._console.size
                taken = 1 + sum(1 + (len(line) - 1) // width for line in above.splitlines())
                # "^C" is echoed behind the last line
                live.update(picture(fleet, tally, self._news, width - 2, height - taken), refresh=True)
                await asyncio.sleep(REFRESH)

    async def _report(self, tally: Tally) -> None:
        while True:
            await asyncio.sleep(REPORT)
            self.say(standing(tally))


def picture(fleet: Fleet, tally: Tally, news: deque[str], width: int, height: int) -> Text:
    """How things stand; the latest orders and news only as far as there is room below the instances."""
    rows = [Text(standing(tally), "bold"), _row("instance", "state", "address", "pid", "starts")]
    for one in fleet.instances:
        rows.append(_row(one.name, one.state, one.address, str(one.pid), str(one.starts), STYLES[one.state]))
    room = max(0, height - len(rows))
    lately = list(news)[-(room // 2) :] if room > 1 else []
    for order in list(tally.recent)[: room - room // 2]:
        what = ", ".join(f"{line.quantity} {line.name}" for line in order.lines)
        rows.append(Text(f"{order.id:<20}{order.customer_id:<13}{price(order.total):>12}  {what}"))
    rows += [Text(line, "dim") for line in lately]
    for row in rows:
        row.truncate(width, overflow="ellipsis")
    return Text("\n").join(rows)


def _row(name: str, state: str, address: str, pid: str, starts: str, style: str = "") -> Text:
    return Text.assemble(f"{name:<13}", (f"{state:<10}", style), f"{address:<23}{pid:<9}{starts}")


def standing(tally: Tally) -> str:
    """The figures, in one line."""
    p50, p99 = tally.percentile(50), tally.percentile(99)
    return f"{tally}, repeated: {tally.repeated}, latency: p50 {p50:.0f} ms, p99 {p99:.0f} ms"


def hints(fleet: Fleet, url: str) -> str:
    """Commands to copy: the shop is a gRPC system like any other, and an HTTP one."""
    address = fleet.of("catalog")[0].address
    fetched = _fetched("grpcurl")
    grpcurl, missing = _command("grpcurl", fetched), "" if fetched else "  (grpcurl is fetched by make tools)\n"
    framework = _command("framework", str(Path(sys.executable).with_name("framework")))
    curl, shown, environment = "curl", "-plaintext", ""
    if (certificates := fleet.certificates) is not None:
        curl = f"curl --cacert {certificates.ca}"
        pair = certificates.customer
        shown = f"-cacert {certificates.ca} -cert {pair.certificate} -key {pair.key}"
        environment = f"FRAMEWORK_CONFIG={certificates.settings_file} "
    return f"""\
Look at it in a browser, {url}/docs, or over HTTP:
  {curl} {url}/v1/products/p-0001
  {curl} -sN -H 'accept: text/event-stream' '{url}/v1/stock:watch?productIds=p-0001' | head -4
  {curl} -i {url}/v1/orders --json '{{"idempotencyKey": "mine", "customerId": "me", "card": "card-visa", \
"items": [{{"productId": "p-0001", "quantity": 1}}]}}'
with grpcurl:
  {grpcurl} {shown} {address} list
  {grpcurl} {shown} {address} describe shop.catalog.v1.Catalog
  {grpcurl} {shown} -d '{{"id": "p-0001"}}' {address} shop.catalog.v1.Catalog/GetProduct
{missing}or with the framework, which finds the address by itself:
  {environment}{framework} services --registry {fleet.registry}
  {environment}{framework} call shop.catalog.v1.Catalog/GetProduct '{{"id": "p-0001"}}' --registry {fleet.registry}
Kill an instance, and see who notices:
  kill -9 {fleet.of("payments")[0].pid}"""


def secured_hints(fleet: Fleet, url: str, settings: Path) -> str:
    """The same for a shop that asks who one is."""
    address = fleet.of("catalog")[0].address
    framework = _command("framework", str(Path(sys.executable).with_name("framework")))
    curl, grpcurl = "curl", f"{_command('grpcurl', _fetched('grpcurl'))} -plaintext"
    if (certificates := fleet.certificates) is not None:
        curl, pair = f"curl --cacert {certificates.ca}", certificates.customer
        grpcurl = grpcurl.replace("-plaintext", f"-cacert {certificates.ca} -cert {pair.certificate} -key {pair.key}")
    shown = '-H "authorization: Bearer $TOKEN"'
    items = '[{"productId": "p-0001", "quantity": 1}]'
    order = f'{{"idempotencyKey": "mine", "customerId": "me", "card": "card-visa", "items": {items}}}'
    return f"""\
Everybody may look, over HTTP or in a browser, {url}/docs:
  {curl} {url}/v1/products/p-0001
and who orders has to show who it is. Without a token this is answered with 401, with it by an order:
  TOKEN=$({framework} access token --config {settings} --subject ann --role buyer)
  {curl} {url}/v1/orders {shown} --json '{order}'
The same with grpcurl, to list what there is too:
  {grpcurl} {shown} {address} list
  {grpcurl} {shown} -d '{{"id": "p-0001"}}' {address} shop.catalog.v1.Catalog/GetProduct
Who may call what stands in the protos. This prints it, and answers:
  {framework} access show --config {settings} --protos protos
  {framework} access test ann shop.orders.v1.Orders/PlaceOrder --role buyer --config {settings} --protos protos
  {framework} access test ann shop.payments.v1.Payments/Charge --role buyer --config {settings} --protos protos"""


def telemetry(fleet: Fleet, gateway: Running) -> str:
    """Where to see what the processes tell of themselves."""
    orders = fleet.of("orders")[0]
    sent = gateway.settings.telemetry.endpoint or os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "")
    traces = f"they go to {sent}" if sent else "start again with OTLP=http://127.0.0.1:4317, where a collector listens"
    prometheus = _command("prometheus", _fetched("prometheus"))
    kept = f"--storage.tsdb.path={fleet.prometheus.parent}/metrics --web.listen-address=127.0.0.1:9090"
    return f"""\
Settings, endpoints with their breakers, calls in flight:
  http://{gateway.admin}/ of the gateway, http://{orders.admin}/ of {orders.name}
Metrics, at /metrics of these; with graphs and alerts on http://127.0.0.1:9090 after:
  {prometheus} --config.file={fleet.prometheus} {kept}
Traces: {traces} (docker compose up -d collector; Jaeger's page is http://127.0.0.1:16686)"""


def _command(name: str, path: str) -> str:
    """What to type for a program: its name when it is on PATH, or nowhere; else its path."""
    if shutil.which(name) or not path:
        return name
    here = Path.cwd()
    return str(Path(path).relative_to(here)) if Path(path).is_relative_to(here) else path


def _fetched(name: str) -> str:
    """The executable that `make tools` has fetched, or the one on PATH; empty without."""
    command = [sys.executable, str(ROOT / "scripts" / "tools"), "--path", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
