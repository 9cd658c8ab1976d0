"""The shop with authentication: a key that signs tokens, and the settings that go with it, for as long as it runs.

    make run AUTH=1

Who may call what stands in the protos, `(framework.method).access`; without this nobody is asked.
"""

from __future__ import annotations

import contextlib
import io
import secrets
from pathlib import Path

from example_services.runner.fleet import StartError
from framework.cli import main

SETTINGS = """\
[auth.jwt]
issuer = "shop-development"
audience = "shop"
algorithms = ["EdDSA"]
key = "{key}"

[auth.internal]
secret = "{secret}"
"""


def secure(directory: Path) -> Path:
    """Make a key and settings in a directory; returns the file of settings."""
    file = directory / "secured.toml"
    key = directory / "development.pem"
    _framework("token", "--subject", "nobody", "--key", str(key))
    file.touch(mode=0o600)
    file.write_text(SETTINGS.format(key=key, secret=secrets.token_hex(32)))
    return file


def token(settings: Path, subject: str, *roles: str) -> str:
    """A token, as `framework access token` makes it."""
    said = [argument for role in roles for argument in ("--role", role)]
    return _framework("token", "--config", str(settings), "--subject", subject, *said, "--for", "720h")


def _framework(*arguments: str) -> str:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        if main(["access", *arguments]):
            raise StartError(err.getvalue().strip())
    return out.getvalue().strip()
