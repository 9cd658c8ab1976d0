"""What strings mean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from framework.discovery.local import LocalRegistry
from framework.discovery.targets import Target, open_registry, parse
from framework.errors import ConfigError


@pytest.mark.parametrize(
    ("target", "registry", "service"),
    [
        ("catalog", "local", "catalog"),
        ("shop.catalog-v1", "local", "shop.catalog-v1"),
        ("consul://10.0.0.1:8500/catalog", "consul://10.0.0.1:8500", "catalog"),
        ("consul://[::1]:8500/catalog?dc=east", "consul://[::1]:8500?dc=east", "catalog"),
        ("consul://consul.internal/catalog", "consul://consul.internal", "catalog"),
        ("sqlite:///run/registry.db#catalog", "sqlite:///run/registry.db", "catalog"),
        ("sqlite:////var/run/registry.db#catalog", "sqlite:////var/run/registry.db", "catalog"),
        ("127.0.0.1:50051", "static://127.0.0.1:50051", "127.0.0.1:50051"),
        ("[::1]:50051", "static://[::1]:50051", "[::1]:50051"),
        ("localhost:50051", "static://localhost:50051", "localhost:50051"),
        ("static://a:1,b:2", "static://a:1,b:2", "a:1,b:2"),
        ("static://a:1, b:2,", "static://a:1,b:2", "a:1,b:2"),
        ("dns:///catalog.internal:50051", "static://dns:///catalog.internal:50051", "dns:///catalog.internal:50051"),
        ("dns:catalog.internal:50051", "static://dns:catalog.internal:50051", "dns:catalog.internal:50051"),
        ("unix:catalog.sock", "static://unix:catalog.sock", "unix:catalog.sock"),
        ("unix:///run/catalog.sock", "static://unix:///run/catalog.sock", "unix:///run/catalog.sock"),
    ],
)
def test_target_names_registry_and_service(target: str, registry: str, service: str) -> None:
    """Each form of a target means one service in one registry."""
    assert parse(target, default_registry="local") == Target(registry, service)


@pytest.mark.parametrize("name", ["a%41", "50%", "a#b", "a?b", "a b", "a ", " a\n", "a\tb", "größer", "a:b@c"])
async def test_registry_tells_its_own_url(tmp_path: Path, name: str) -> None:
    """Whatever a file is called, the URL that its registry gives opens the same one, also as part of a target."""
    path = tmp_path / name
    registry = LocalRegistry(path)
    opened = open_registry(str(registry))
    assert isinstance(opened, LocalRegistry)
    assert opened.path == path
    assert parse(f"{registry}#catalog", default_registry="local") == Target(str(registry), "catalog")


@pytest.mark.parametrize(
    "target",
    [
        "",
        " ",
        "cat alog",
        "/catalog",
        "http://host:80/catalog",
        "host:port",
        "host:0",
        "host:65536",
        "consul://host:8500",
        "consul://host:8500/",
        "consul://host:8500/a/b",
        "sqlite:///registry.db",
        "static://",
        "static://host",
        "dns:",
        "unix:",
    ],
)
def test_bad_target_is_one_clear_line(target: str) -> None:
    """What is no target is refused in one line that repeats it and shows how one looks."""
    with pytest.raises(ConfigError) as caught:
        parse(target, "local")
    message = str(caught.value)
    assert repr(target) in message
    assert "host:port" in message
    assert "\n" not in message


def test_missing_service_is_said() -> None:
    """A registry alone is no target, and the message says what is missing."""
    with pytest.raises(ConfigError, match="The name of the service is missing"):
        parse("consul://127.0.0.1:8500", "local")


@pytest.mark.parametrize(
    "url",
    ["consul://:hunter2@host:8500/catalog", "consul://hunter2@host/catalog", "consul://host/catalog?token=hunter2"],
)
def test_secret_in_url_is_refused_unseen(url: str) -> None:
    """A token in a URL is refused, as target and as registry, and the message does not repeat it."""
    for use in (lambda: parse(url, "local"), lambda: open_registry(url.replace("/catalog", ""))):
        with pytest.raises(ConfigError, match="CONSUL_HTTP_TOKEN") as caught:
            use()
        assert "hunter2" not in str(caught.value)


def test_registry_says_its_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`str(registry)` is its URL, with the path of a file made absolute."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert {url: str(open_registry(url)) for url in ("local", "sqlite:///a%20b.db", "sqlite:////x/y.db")} == {
        "local": f"sqlite:///{tmp_path}/framework/registry.db",
        "sqlite:///a%20b.db": f"sqlite:///{tmp_path}/a b.db",
        "sqlite:////x/y.db": "sqlite:////x/y.db",
    }
    assert str(open_registry("consul://[::1]?dc=east&check=ttl")) == "consul://[::1]:8500?dc=east"
    assert repr(open_registry("static://a:1,b:2")) == "<StaticRegistry static://a:1,b:2>"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is not understood. Write local"),
        ("redis://host", "is not understood. Write local"),
        ("sqlite://registry.db", "is not understood"),
        ("sqlite:///", "is not understood"),
        ("consul://host:8500/catalog", "is not understood"),
        ("consul://host:99999", "is not a URL"),
        ("consul://host?colour=red", "'colour' is not one of dc, tls, ca"),
        ("consul://host?check=http", "one of auto, grpc, grpc-tls, ttl, not 'http'"),
        ("consul://host?interval=often", "interval and hold are numbers of seconds"),
        ("consul://host?interval=0", "every 0.1 to 3600 seconds"),
        ("consul://host?verify=maybe", "verify is true or false"),
        ("consul://host?ca=/no/such/file.pem", "registry.ca: /no/such/file.pem cannot be read: no such file"),
        ("static://host", "'host' in 'static://host' is not an address"),
    ],
)
def test_bad_registry_is_one_clear_line(url: str, message: str) -> None:
    """What is no registry is refused when it is opened, before anything is contacted."""
    with pytest.raises(ConfigError) as caught:
        open_registry(url)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_importing_is_light() -> None:
    """Nobody pays for Consul, HTTP or SQLite who does not use them."""
    script = (
        "import sys; from framework.discovery.targets import open_registry, parse\n"
        "parse('consul://host:1/catalog', 'local'); open_registry('static://host:1')\n"
        "print({'aiohttp', 'consul', 'requests', 'sqlite3'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
