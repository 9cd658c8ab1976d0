"""docs/security.md, done by hand: what it tells to type works as it stands."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.example.running import clean_environment
from tests.tools import tool

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "security.md").read_text().partition("## Authentication")[0]


def test_mtls_in_five_minutes(tmp_path: Path) -> None:
    """One terminal serves the catalog with mTLS, the other calls it; who shows no certificate is refused."""
    serve, call = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "example_services").symlink_to(ROOT / "example_services")
    (tmp_path / ".venv").symlink_to(Path(sys.executable).parents[1])
    path = os.pathsep.join((str(Path(tool("grpcurl")).parent), os.environ["PATH"]))
    environment = clean_environment() | {
        "FRAMEWORK_REGISTRY": f"sqlite:///{tmp_path}/registry.db",
        "SHOP_DATA": str(tmp_path),
        "PATH": path,
    }
    # Any free port: the one in the guide may be taken here.
    with subprocess.Popen(
        ["bash", "-ec", serve.replace("--port 50051", "--port 0").replace("framework run", "exec framework run")],
        cwd=tmp_path, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    ) as serving:  # fmt: skip
        try:
            assert serving.stderr is not None
            said = ""
            while (served := re.search(r"serves on (127\.0\.0\.1:\d+), registered", said)) is None:
                line = serving.stderr.readline()
                assert line, said
                said += line
            ran = subprocess.run(
                ["bash", "-c", call.replace("127.0.0.1:50051", served[1]).replace("grpcurl", "grpcurl -max-time 3")],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=40, check=False,
            )  # fmt: skip
        finally:
            serving.send_signal(signal.SIGINT)
    assert "SERVING" in ran.stdout
    assert '"name": "Pine desk lamp"' in ran.stdout
    assert ran.stdout.splitlines().count("shop.catalog.v1.Catalog") == 1, ran.stdout + ran.stderr
    assert ran.returncode != 0
