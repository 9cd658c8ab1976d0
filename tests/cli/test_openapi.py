"""`framework openapi`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_spec_validator import validate

from framework.cli import main

PROTOS = Path(__file__).parents[2] / "protos"
ROOT = PROTOS.parent


def written(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What the command writes."""
    assert main(["openapi", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_from_proto_files(capsys: pytest.CaptureFixture[str]) -> None:
    """All services of a directory, with their comments, as JSON or YAML; the same bytes every time."""
    text = written(capsys, "--protos", str(PROTOS), "--server", "https://example.com", "--api-version", "2")
    found = json.loads(text)
    validate(found)
    assert [one["name"] for one in found["tags"]] == [
        "shop.catalog.v1.Catalog",
        "shop.inventory.v1.Inventory",
        "shop.orders.v1.Orders",
        "shop.payments.v1.Payments",
    ]
    assert found["tags"][0]["description"] == "What the shop sells, and for how much."
    assert found["info"] == {"title": "API", "version": "2"}
    assert found["servers"] == [{"url": "https://example.com"}]
    assert text == written(capsys, "--protos", str(PROTOS), "--server", "https://example.com", "--api-version", "2")
    again = written(capsys, "--protos", str(PROTOS), "--server", "https://example.com", "--api-version", "2", "--yaml")
    assert found == yaml.safe_load(again)


def test_from_services(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The servicers that a Service is made with, or that its lifespan adds; it says the same as its proto files."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SHOP_DATA", str(tmp_path))
    found = json.loads(written(capsys, "example_services.catalog:service"))
    assert [one["name"] for one in found["tags"]] == ["shop.catalog.v1.Catalog"]
    assert found["info"]["title"] == "catalog"
    whole: dict[str, Any] = json.loads(written(capsys, "--protos", str(PROTOS)))
    assert found["paths"] == {path: whole["paths"][path] for path in found["paths"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say what to describe: MODULE:SERVICE, or --protos DIR"),
        (["a:b", "--protos", "."], "say what to describe: MODULE:SERVICE, or --protos DIR"),
        (["--protos", "nowhere"], "there is no directory nowhere. Name the one that holds your .proto files."),
        (["--protos", "wrong/a.proto"], "wrong/a.proto is a file. Name the directory that holds your .proto files."),
        (["--protos", "empty"], "there is no service in empty"),
        (
            ["--protos", "wrong"],
            "a.S/M: get \"/{x}\": variable 'x' is no field of a.Q; it has none",
        ),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, exit code 2, and nothing on standard output."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.proto").write_text('syntax = "proto3"; message Q {}')
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "a.proto").write_text(
        'syntax = "proto3"; package a; import "google/api/annotations.proto"; message Q {} '
        'service S { rpc M(Q) returns (Q) { option (google.api.http) = { get: "/{x}" }; } }'
    )
    assert main(["openapi", *arguments]) == 2
    assert capsys.readouterr() == ("", f"framework: {message}\n")


def test_protos_that_do_not_compile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The compiler's message with the place, and exit code 1."""
    (tmp_path / "a.proto").write_text('syntax = "proto3";\nmessage A {\n')
    assert main(["openapi", "--protos", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"{tmp_path}/a.proto:3:1: ")
