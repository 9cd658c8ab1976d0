"""docker-compose.yml, as far as it shows without an engine: what it names exists, and what it runs is understood."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from framework import Service
from framework.cli import _parser
from framework.config import Settings

ROOT = Path(__file__).parents[1]
EMPTY = Path("/dev/null")
CONTAINERS: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
ENGINES = {"collector", "consul", "grafana", "jaeger", "prometheus"}
SERVICES = sorted(set(CONTAINERS) - ENGINES - {"gateway"})

each_service = pytest.mark.parametrize("name", SERVICES)


def command(name: str) -> tuple[str, dict[str, str]]:
    """What a container runs: the service's module, and its options by name."""
    program, verb, target, *options = shlex.split(CONTAINERS[name]["command"])
    assert (program, verb) == ("framework", "run")
    return target, dict(zip(options[::2], options[1::2], strict=True))


def test_every_example_service_has_its_container() -> None:
    """The four services of the example system, the gateway before them, and the engines around them."""
    assert set(CONTAINERS) == ENGINES | {"catalog", "gateway", "inventory", "orders", "payments"}


@each_service
def test_service_exists(name: str) -> None:
    """The command names an object of the example that is a service of the container's name."""
    module, _, attribute = command(name)[0].partition(":")
    service = getattr(importlib.import_module(module), attribute)
    assert isinstance(service, Service)
    assert service.name == name


@each_service
def test_command_line_takes_the_command_and_the_health_check(name: str) -> None:
    """Both parse as they stand: no option that the command line does not have."""
    start = shlex.split(CONTAINERS[name]["command"])
    kind, *check = CONTAINERS[name]["healthcheck"]["test"]
    assert kind == "CMD"
    for program, *arguments in (start, check):
        assert program == "framework"
        _parser().parse_args(arguments)


@each_service
def test_addresses_agree(name: str) -> None:
    """It listens on the port that it advertises, publishes and is checked on, in the registry that is there."""
    _, options = command(name)
    (published,) = CONTAINERS[name]["ports"]
    port = options["--port"]
    assert options["--host"] == "0.0.0.0"
    assert options["--advertise"] == f"{name}:{port}"
    assert options["--registry"] == "consul://consul:8500"
    assert published.startswith("127.0.0.1:")
    assert published.endswith(f":{port}")
    assert CONTAINERS[name]["healthcheck"]["test"][-1] == f"127.0.0.1:{port}"


def test_gateway() -> None:
    """Its command is understood, it finds the services where they register, and it is asked whether it is ready."""
    program, *arguments = shlex.split(CONTAINERS["gateway"]["command"])
    options = _parser().parse_args(arguments)
    assert (program, options.host, options.registry) == ("framework", "0.0.0.0", "consul://consul:8500")
    assert CONTAINERS["gateway"]["ports"] == [f"127.0.0.1:8080:{options.port}"]
    kind, python, flag, check = CONTAINERS["gateway"]["healthcheck"]["test"]
    assert (kind, python, flag) == ("CMD", "python", "-c")
    assert f"'http://127.0.0.1:{options.port}/readyz'" in check
    compile(check, "healthcheck", "exec")
    assert CONTAINERS["gateway"]["healthcheck"]["interval"] == CONTAINERS["orders"]["healthcheck"]["interval"]


@pytest.mark.parametrize("name", [*SERVICES, "gateway"])
def test_plain_text_is_allowed(name: str) -> None:
    """It listens on every address and calls others by their names, without certificates; the words are settings."""
    environment = CONTAINERS[name]["environment"]
    settings = Settings.load(environ=environment)
    allowed = (settings.server.plaintext, settings.client.plaintext, settings.gateway.plaintext)
    assert allowed == (True, True, True)


def test_published_ports_differ() -> None:
    """No two containers want the same port of the host."""
    published = [port.rsplit(":", 1)[0] for container in CONTAINERS.values() for port in container["ports"]]
    assert sorted(set(published)) == sorted(published)


@pytest.mark.parametrize("name", sorted(CONTAINERS))
def test_container_is_checked_and_restarted(name: str) -> None:
    """Each has a health check and comes back after a crash."""
    assert CONTAINERS[name]["healthcheck"]["test"]
    assert CONTAINERS[name]["restart"] == "unless-stopped"


@each_service
def test_service_waits_for_a_healthy_consul(name: str) -> None:
    """No service starts before it can register."""
    assert CONTAINERS[name]["depends_on"] == {"consul": {"condition": "service_healthy"}}


def test_image_is_built_from_files_that_are_there() -> None:
    """The Dockerfile exists, and so does each file that its context lets in."""
    for name in SERVICES:
        assert (ROOT / CONTAINERS[name]["build"]["dockerfile"]).is_file()
    context = (ROOT / "deploy/Dockerfile.dockerignore").read_text().split()
    missing = [path for path in context if path.startswith("!") and not (ROOT / path[1:]).exists()]
    assert missing == []


def test_every_service_is_scraped() -> None:
    """Prometheus asks each for its metrics where its admin pages are, as a job of its name."""
    jobs = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    for name in (*SERVICES, "gateway"):
        settings = Settings.load(EMPTY, {key: str(value) for key, value in CONTAINERS[name]["environment"].items()})
        assert settings.admin.host == "0.0.0.0"
        assert targets.pop(name) == [f"{name}:{settings.admin.port}"]
    assert list(targets) == ["prometheus"]


def test_traces_go_through_the_collector_to_jaeger() -> None:
    """Each service names the port that the collector listens on, and its pipeline ends at Jaeger."""
    collector = yaml.safe_load((ROOT / "deploy/collector/config.yml").read_text())
    port = collector["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].rpartition(":")[2]
    for name in (*SERVICES, "gateway"):
        assert CONTAINERS[name]["environment"]["FRAMEWORK_TELEMETRY_ENDPOINT"] == f"http://collector:{port}"
    for pipeline in collector["service"]["pipelines"].values():
        for kind in ("receivers", "processors", "exporters"):
            assert set(pipeline.get(kind, ())) <= set(collector[kind])
    assert set(collector["service"]["extensions"]) <= set(collector["extensions"])
    (exporter,) = collector["service"]["pipelines"]["traces"]["exporters"]
    assert collector["exporters"][exporter]["endpoint"].rpartition(":")[0] in CONTAINERS


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_what_is_mounted_is_there(name: str) -> None:
    """Every file and folder that an engine is given is in the repository; its image has a version."""
    for mounted in CONTAINERS[name].get("volumes", ()):
        assert (ROOT / mounted.partition(":")[0]).exists(), mounted
    assert re.fullmatch(r"[a-z/-]+:v?\d+\.\d+(\.\d+)?", CONTAINERS[name]["image"])


def test_grafana_is_given_its_dashboard() -> None:
    """What is provisioned names containers and folders that are there."""
    provisioned = ROOT / "deploy/grafana/provisioning"
    sources = yaml.safe_load((provisioned / "datasources/datasources.yml").read_text())["datasources"]
    for source in sources:
        assert source["url"].removeprefix("http://").partition(":")[0] in CONTAINERS
    (provider,) = yaml.safe_load((provisioned / "dashboards/dashboards.yml").read_text())["providers"]
    mounts = dict(mounted.split(":")[:2] for mounted in CONTAINERS["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
