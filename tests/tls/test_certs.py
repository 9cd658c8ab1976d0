"""`framework certs`: certificates that openssl takes, keys that nobody else can read, and nothing overwritten."""

from __future__ import annotations

import stat
import subprocess
import tomllib
from pathlib import Path

import pytest

from framework.cli import main
from framework.config import Settings
from tests.tools import on_path


def openssl(*arguments: str | Path) -> str:
    command = [on_path("openssl"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "certs"


def test_init_and_issue(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The certificate is good for its name, for what was asked for, and for this machine; the authority signed it."""
    assert main(["certs", "init"]) == 0
    assert main(["certs", "issue", "catalog", "--san", "10.1.2.3", "--spiffe", "spiffe://shop/catalog"]) == 0
    assert openssl("verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", here / "ca.pem", here / "catalog.pem")
    assert openssl("verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", here / "ca.pem", here / "catalog.pem")
    told = openssl("x509", "-in", here / "catalog.pem", "-noout", "-ext", "subjectAltName", "-subject")
    for name in ("DNS:catalog", "IP Address:10.1.2.3", "DNS:localhost", "URI:spiffe://shop/catalog", "CN = catalog"):
        assert name in told


def test_what_it_prints_can_be_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The lines for framework.toml are settings that are taken."""
    main(["certs", "init"])
    capsys.readouterr()
    main(["certs", "issue", "catalog"])
    _, _, toml = capsys.readouterr().out.partition("\n\n")
    assert set(tomllib.loads(toml)) == {"server", "client"}
    (here.parent / "framework.toml").write_text(toml)
    settings = Settings.load(environ={})
    assert settings.server.tls.protocol == "grpc-mtls"
    assert settings.client.tls.certificate == str(Path("certs", "catalog.pem"))


def test_keys_are_private(here: Path) -> None:
    """Readable to this user only, and not for version control."""
    main(["certs", "init"])
    main(["certs", "issue", "catalog"])
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in here.glob("*.key")}
    assert modes == {"ca.key": 0o600, "catalog.key": 0o600}
    assert (here / ".gitignore").read_text() == "*\n"


def test_nothing_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unless that is asked for."""
    main(["certs", "init"])
    main(["certs", "issue", "catalog"])
    before = {file: file.read_bytes() for file in here.iterdir()}
    assert (main(["certs", "init"]), main(["certs", "issue", "catalog"])) == (2, 2)
    assert {file: file.read_bytes() for file in here.iterdir()} == before
    assert capsys.readouterr().err.splitlines() == [
        "framework: certs/ca.pem is there already; --force replaces it",
        "framework: certs/catalog.pem is there already; --force replaces it",
    ]
    assert main(["certs", "issue", "catalog", "--force"]) == 0
    assert (here / "catalog.pem").read_bytes() != before[here / "catalog.pem"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["issue", "catalog", "--dir", "nowhere"], "there is no nowhere/ca.pem; `framework certs init` makes an"),
        (["issue", "a/b"], "'a/b' is no name for a certificate; write that of the service, such as catalog"),
        (["issue", "ca"], "'ca' is no name for a certificate"),
        (["issue", "catalog", "--san", "a b"], "'a b' is no host name or address"),
        (["issue", "catalog", "--spiffe", "shop"], "'shop' is no SPIFFE id; write for example spiffe://shop/catalog"),
    ],
)
def test_mistakes(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one line, with exit code 2."""
    main(["certs", "init"])
    assert main(["certs", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert len(error.splitlines()) == 1
