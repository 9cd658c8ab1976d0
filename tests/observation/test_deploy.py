"""What `deploy/` ships, against what is real: promtool, and a Prometheus that watches the example system."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.example.running import running
from tests.tools import tool

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = yaml.safe_load((DEPLOY / "prometheus/rules.yml").read_text())
DASHBOARD = json.loads((DEPLOY / "grafana/dashboards/services.json").read_text())

EVERY_RULE = [rule for group in RULES["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]

WITH_TLS = {"framework_tls_certificate_expiry_seconds"}
"""Metrics of a process that has certificates, which the example has not."""

SILENT = ('error_type!=""', *WITH_TLS)
"""In queries that find nothing while all is well."""


def metrics_in(expression: str) -> set[str]:
    """The names of the metrics in an expression; those of labels stand in braces, or behind `by`."""
    bare = re.sub(r"\{[^}]*\}|\bby \([^)]*\)", "", expression)
    return set(re.findall(r"(?<![\w:])(?:rpc|framework|process)_\w+", bare))


USED = {name for text in (*(rule["expr"] for rule in EVERY_RULE), *QUERIES) for name in metrics_in(text)}


def promtool(*arguments: str) -> str:
    """What promtool says, in the folder of the rules; it has to succeed."""
    program = Path(tool("prometheus")).resolve()
    beside = program.with_name("promtool"), program.parent / "usr/bin/promtool"
    command = [str(next((one for one in beside if one.exists()), "promtool")), *arguments]
    ran = subprocess.run(command, cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_rules_are_rules() -> None:
    """promtool takes the rules, and what Prometheus is started with."""
    assert f"SUCCESS: {len(EVERY_RULE)} rules found" in promtool("check", "rules", "rules.yml")
    assert "SUCCESS" in promtool("check", "config", "--syntax-only", "prometheus.yml")


def test_each_alert_comes_and_goes() -> None:
    """promtool plays the series of the tests, which name every alert that there is."""
    files = sorted(path.name for path in (DEPLOY / "prometheus").glob("*.test.yml"))
    assert "FAILED" not in promtool("test", "rules", *files)
    played = "".join((DEPLOY / "prometheus" / name).read_text() for name in files)
    expected = set(re.findall(r"alertname: (\w+)[^\n]*\n +eval_time: \w+[^\n]*\n +exp_alerts:\n", played))
    assert {rule["alert"] for rule in EVERY_RULE if "alert" in rule} == expected


def test_every_alert_says_how_bad_it_is() -> None:
    """One that wakes somebody is a page; each says in words what is wrong."""
    for rule in EVERY_RULE:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket"), rule
            assert "{{ $labels." in rule["annotations"]["summary"], rule


def test_dashboard_is_one() -> None:
    """Panels have their own ids and places, and ask the data source that is chosen above."""
    panels = DASHBOARD["panels"]
    assert len(panels) == len({panel["id"] for panel in panels})
    places = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(places) == len(set(places))
    assert max(x for x, _ in places) < 24
    known = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    for panel in panels:
        for target in panel.get("targets", ()):
            assert target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            assert set(re.findall(r"\$(?!__)(\w+)", target["expr"])) <= known


class Prometheus:
    """A real one, asked over its API."""

    def __init__(self, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"

    def ask(self, path: str, **query: str) -> Any:
        """The data of an answer."""
        url = f"{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            found = json.load(answer)
        assert found["status"] == "success", found
        return found["data"]

    def query(self, expression: str) -> list[Any]:
        """The series that an expression gives now."""
        found: list[Any] = self.ask("query", query=expression)["result"]
        return found

    def until(self, condition: Callable[[], bool], seconds: float = 30.0) -> bool:
        """Whether it becomes true in time; Prometheus tells nobody when it has learnt something."""
        give_up = time.monotonic() + seconds
        while not (met := self._is(condition)) and time.monotonic() < give_up:
            time.sleep(0.2)
        return met

    def _is(self, condition: Callable[[], bool]) -> bool:
        try:
            return condition()
        except OSError:  # it does not listen yet
            return False


@contextmanager
def prometheus(config: Path, directory: Path) -> Iterator[Prometheus]:
    """A Prometheus with this configuration."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [tool("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={directory}/metrics"]
    with (directory / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log)
        try:
            yield Prometheus(port)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


def filled(expression: str) -> str:
    """A query of the dashboard, with what Grafana puts into it."""
    return expression.replace("$__rate_interval", "10s").replace("$job", ".*").replace("$method", ".*")


@pytest.mark.timeout(120)
def test_prometheus_watches_the_example_system(tmp_path: Path) -> None:
    """Every process is scraped, every metric that rules and dashboard name is there, and every query answers."""
    with running(tmp_path, "--port", "0") as shop:
        shop.until(r"^Metrics", 60)
        (config,) = tmp_path.glob("shop-*/prometheus.yml")
        with prometheus(config, tmp_path) as server:
            assert server.until(lambda: len(server.query("up == 1")) == 9), server.query("up")
            jobs = {series["metric"]["job"] for series in server.query("up")}
            assert jobs == {"catalog", "inventory", "payments", "orders", "gateway"}

            def missing() -> set[str]:
                there = set(server.ask("label/__name__/values"))
                return USED - there - WITH_TLS

            assert server.until(lambda: not missing()), missing()
            asked = [filled(query) for query in QUERIES if not any(text in query for text in SILENT)]
            asked += [rule["expr"] for rule in EVERY_RULE if "5m" in rule.get("record", "")]

            def unanswered() -> list[str]:
                return [query for query in asked if not server.query(query)]

            assert server.until(lambda: not unanswered()), unanswered()
            for query in (*map(filled, QUERIES), *(rule["expr"] for rule in EVERY_RULE)):
                server.query(query)  # answered, if with nothing
            groups = server.ask("rules")["groups"]
            assert [rule["health"] for group in groups for rule in group["rules"]] == ["ok"] * len(EVERY_RULE)
        assert shop.end(signal.SIGINT) == 0
