"""Files of certificates: each that cannot be used is one clear line, and when they end is known."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from framework import ConfigError
from framework.certificates import TlsFiles, expiry, read
from framework.security.certs import Pair
from framework.tls import ClientTls, ServerTls
from tests.tls.lab import Folder
from tests.tools import on_path

NOW = 1_800_000_000.0  # 2027-01-15 08:00 UTC
DAY = 86400.0


@pytest.fixture
def certs(tmp_path: Path) -> Folder:
    """A development CA, made at NOW."""
    return Folder(tmp_path, lambda: NOW)


def trouble(settings: ServerTls | ClientTls, now: float = NOW) -> str:
    with pytest.raises(ConfigError) as caught:
        read(settings, "server.tls", now)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_read(certs: Folder) -> None:
    """Certificate, key and authority, and when those end."""
    settings = certs.server()
    material = read(settings, "server.tls", NOW)
    assert material.certificate == Path(settings.certificate).read_bytes()
    assert material.key == Path(settings.key).read_bytes()
    assert material.ca == Path(settings.ca).read_bytes()
    assert dict(material.expires) == {settings.certificate: NOW + 90 * DAY, settings.ca: NOW + 3650 * DAY}


def test_one_file_with_both(certs: Folder) -> None:
    """A key may stand in the file of its certificate."""
    pair = certs.pair("echo")
    pair.certificate.write_bytes(pair.key.read_bytes() + pair.certificate.read_bytes())
    assert read(ServerTls(str(pair.certificate)), "server.tls", NOW).key == pair.certificate.read_bytes()


def test_what_the_machine_trusts() -> None:
    """Takes no file."""
    assert read(ClientTls(ca="system"), "client.tls", NOW).ca == b""


def _missing(pair: Pair) -> None:
    pair.key.unlink()


def _folder(pair: Pair) -> None:
    pair.certificate.unlink()
    pair.certificate.mkdir()


def _text(pair: Pair) -> None:
    pair.certificate.write_text("hello")


def _no_key(pair: Pair) -> None:
    pair.key.write_text("hello")


def _garbage(pair: Pair) -> None:
    pair.certificate.write_text("-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n")


def _cut(pair: Pair) -> None:
    lines = pair.certificate.read_text().splitlines()
    pair.certificate.write_text("\n".join((*lines[:3], lines[-1])))


def _encrypted(pair: Pair) -> None:
    key = str(pair.key)
    command = [on_path("openssl"), "ec", "-in", key, "-out", key, "-aes128", "-passout", "pass:secret"]
    subprocess.run(command, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_missing, "server.tls.key: {key} cannot be read: no such file or directory"),
        (_folder, "server.tls.certificate: {certificate} cannot be read: is a directory"),
        (_text, "server.tls.certificate: {certificate} has no certificate in PEM"),
        (_no_key, "server.tls.key: {key} has no private key in PEM"),
        (_garbage, "server.tls.certificate: {certificate} has a certificate that cannot be read"),
        (_cut, "server.tls.certificate: {certificate} has a certificate that cannot be read"),
        (_encrypted, "server.tls.key: the key in {key} has a pass phrase, which nobody is there to type"),
    ],
)
def test_a_file_that_cannot_be_used(certs: Folder, spoil: Callable[[Pair], None], told: str) -> None:
    """The line names the setting, the file and what is wrong with it."""
    pair = certs.pair("echo")
    spoil(pair)
    assert trouble(certs.server()) == told.format(key=pair.key, certificate=pair.certificate)


def test_a_file_that_may_not_be_read(certs: Folder) -> None:
    """The same."""
    pair = certs.pair("echo")
    pair.key.chmod(0)
    try:
        pair.key.read_bytes()
    except PermissionError:
        assert trouble(certs.server()) == f"server.tls.key: {pair.key} cannot be read: permission denied"
    else:
        pytest.skip("root may read everything")


def test_a_key_of_another(certs: Folder) -> None:
    """Certificate and key are named when they do not fit."""
    echo, other = certs.pair("echo"), certs.pair("other")
    told = trouble(ServerTls(str(echo.certificate), str(other.key)))
    assert told == f"server.tls: the key {other.key} does not belong to the certificate {echo.certificate}"


def test_too_late_and_too_early(certs: Folder) -> None:
    """An expired certificate says since when, and one from the future hints at the clock; the authority too."""
    settings = certs.server()
    assert trouble(settings, NOW + 91 * DAY) == (
        f"server.tls.certificate: {settings.certificate} has expired on 2027-04-15 08:00 UTC; "
        "put a new one in its place"
    )
    assert trouble(settings, NOW - DAY) == (
        f"server.tls.certificate: {settings.certificate} is not valid before 2027-01-15 07:55 UTC; is the clock right?"
    )
    assert "server.tls.ca" in trouble(ClientTls(ca=certs.ca), NOW + 3651 * DAY)


def test_a_bundle_with_an_old_authority(certs: Folder, tmp_path: Path) -> None:
    """One that has expired does no harm while another lives."""
    later = Folder(tmp_path / "later", lambda: NOW + 3000 * DAY)
    Path(certs.ca).write_bytes(Path(certs.ca).read_bytes() + Path(later.ca).read_bytes())
    now = NOW + 4000 * DAY
    assert dict(read(ClientTls(ca=certs.ca), "client.tls", now).expires) == {certs.ca: NOW + 6650 * DAY}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (ServerTls(key="k"), "server.tls has the key k and no certificate that it belongs to"),
        (ServerTls(ca="c"), "server.tls has the ca c for clients, and no certificate to serve with"),
        (ClientTls(spiffe="spiffe://a/b"), "server.tls does not say whom to trust"),
        (ClientTls(server_name="a"), "server.tls does not say whom to trust"),
        (ClientTls(certificate="c"), "server.tls does not say whom to trust: name a file of authorities as ca"),
    ],
)
def test_half_of_the_settings(settings: ServerTls | ClientTls, told: str) -> None:
    """Settings that name one file and not the other are no reason to go on without TLS."""
    assert trouble(settings).startswith(told)


async def test_files_that_change(certs: Folder, caplog: pytest.LogCaptureFixture) -> None:
    """They are read once they have stayed the same for one look; what cannot be used changes nothing."""
    caplog.set_level(logging.INFO)
    settings = certs.server()
    files = TlsFiles(settings, "server.tls", now=lambda: NOW)
    first, told = files.current, []
    leave = files.follow(lambda: told.append(files.current))
    try:
        certs.pair("echo", force=True, days=10)
        files.look()
        assert files.current is first
        files.look()
        assert told == [files.current]
        assert files.current is not first
        assert f"server.tls has changed: {settings.certificate} ends in 10 days" in caplog.text
        certs.pair("echo").certificate.unlink()
        files.look()
        files.look()
        files.look()
        assert told == [files.current]
        assert caplog.text.count("no such file or directory; what was read before stays in use") == 1
    finally:
        leave()


def test_when_certificates_end(certs: Folder) -> None:
    """By file, of all that are in use; the soonest where several know of a file."""
    settings = certs.server()
    files = TlsFiles(settings, "server.tls", now=lambda: NOW)
    assert expiry()[settings.certificate] == NOW + 90 * DAY
    assert expiry()[settings.ca] == NOW + 3650 * DAY
    del files
    assert settings.certificate not in expiry()


def test_wherever_the_process_goes(certs: Folder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Relative paths are those from where the process was when it was started, when files are read again too."""
    settings = certs.server()
    monkeypatch.chdir(tmp_path)
    cert, key, ca = (str(Path(one).relative_to(tmp_path)) for one in (settings.certificate, settings.key, settings.ca))
    files = TlsFiles(ServerTls(cert, key, ca), "server.tls", now=lambda: NOW)
    before = files.current
    monkeypatch.chdir("/")
    Path(settings.ca).write_bytes(Path(settings.ca).read_bytes() + b"\n")
    files.look()
    files.look()
    assert files.current is not before
    assert files.current.ca == Path(settings.ca).read_bytes()
