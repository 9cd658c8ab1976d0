"""The command line: its frame, and `framework generate`."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from framework.cli import COMMANDS, main

PROTO = 'syntax = "proto3";\nmessage A {}\n'


@pytest.fixture
def protos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory has `protos/a.proto`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "a.proto").write_text(PROTO)
    return tmp_path / "protos"


def test_generate_says_what_it_did(protos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each time, and exit code 0: written first, then up to date."""
    assert [main(["generate", "--out", "stubs"]) for _ in range(2)] == [0, 0]
    assert capsys.readouterr().out == "stubs: 3 files written\nstubs: 3 files up to date\n"


def test_check_names_files_and_the_command(protos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed check ends with 1 and the command that repairs it."""
    main(["generate", "protos", "--out", "stubs"])
    Path("stubs/a_pb2.py").unlink()
    capsys.readouterr()
    assert main(["generate", "protos", "--out", "stubs", "--check"]) == 1
    assert capsys.readouterr().err == (
        "stubs/a_pb2.py: missing\nframework: 1 file to make again: framework generate protos --out stubs\n"
    )


def test_bad_proto(protos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The compiler's message with file, line and column, exit code 1 and no traceback."""
    (protos / "a.proto").write_text(PROTO + "message A {}\n")
    assert main(["generate", "--out", "stubs"]) == 1
    assert capsys.readouterr().err == 'protos/a.proto:3:9: "A" is already defined.\n'


HTTP_MISTAKES = """\
syntax = "proto3";
package a;
import "framework/options.proto";
import "google/api/annotations.proto";

service S {
  rpc Path(Note) returns (Note) {
    option (google.api.http) = { get: "/v1/{nam}" };
  }
  rpc Body(Note) returns (Note) {
    option (google.api.http) = { put: "/v1/{name}" body: "x" };
  }
  rpc Tag(Note) returns (Note) {
    option (google.api.http).get = "/v2/{name}";
    option (framework.http).status = 201;
    option (framework.http).etag = "versio";
  }
  rpc Place(Note) returns (Note) {
    option (google.api.http).get = "/v3/{name}";
    option (framework.http) = { location: "v3/{name}" };
  }
  rpc Only(Note) returns (Note) { option (framework.http) = { status: 201 }; }
}
message Note { string name = 1; int64 version = 2; }
"""


def test_http_mistakes(protos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What HTTP could not serve is told as the compiler tells its mistakes, a line each, and nothing is written."""
    (protos / "a.proto").write_text(HTTP_MISTAKES)
    assert main(["generate", "--out", "stubs"]) == 1
    has = "it has name, version"
    assert capsys.readouterr().err.splitlines() == [
        f"protos/a.proto:8:5: a.S/Path: get \"/v1/{{nam}}\": variable 'nam' is no field of a.Note; {has}",
        f"protos/a.proto:11:5: a.S/Body: put \"/v1/{{name}}\": body 'x' is no field of a.Note; {has}",
        f"protos/a.proto:16:5: a.S/Tag: (framework.http): etag 'versio' is no field of a.Note; {has}",
        'protos/a.proto:20:5: a.S/Place: (framework.http): location "v3/{name}": a path begins with "/"',
        "protos/a.proto:22:35: a.S/Only: (framework.http) is of use with a google.api.http rule only",
    ]
    assert not Path("stubs").exists()


def test_warnings_are_shown(protos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What protoc warns of reaches the user, and the output is written all the same."""
    (protos / "b.proto").write_text(PROTO.replace("A", "B") + 'import "a.proto";\n')
    assert main(["generate", "--out", "stubs"]) == 0
    assert capsys.readouterr().err == "protos/b.proto:3:1: warning: Import a.proto is unused.\n"


def test_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake of the caller is said in one line with exit code 2; --debug shows where it was found."""
    assert main(["generate", "nowhere", "--out", "stubs"]) == 2
    message = "framework: there is no directory nowhere. Name the one that holds your .proto files.\n"
    assert capsys.readouterr().err == message
    with pytest.raises(Exception, match="no directory nowhere"):
        main(["generate", "nowhere", "--out", "stubs", "--debug"])


def test_ctrl_c_is_silent(protos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An interrupted command ends with 130 and says nothing."""

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("framework.codegen.generate", interrupted)
    assert main(["generate", "--out", "stubs"]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--out", "stubs"]])
def test_reader_that_leaves_is_no_error(protos: Path, arguments: list[str]) -> None:
    """Output into a pipe that nobody reads ends silently, as other commands do."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "framework", *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    ran = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(writer)
    assert (ran.returncode, ran.stderr) == (141, "")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Each command explains itself with examples; no command at all shows the help and fails."""
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        assert "examples:\n  framework " in capsys.readouterr().out
    assert main([]) == 2
    assert "usage: framework" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("framework 0.")


def test_help_is_fast() -> None:
    """`framework --help` answers within half a second: no command imports at its top what only running it needs."""
    code = """
import sys
import framework
before = set(sys.modules)
from framework.cli import main
main(["--help"])
print("heavy:", sorted({"grpc", "google.protobuf", "rich", "consul"} & (set(sys.modules) - before)))
"""
    printed: list[str] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    for _ in range(3):
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        printed.append(ran.stdout.splitlines()[-1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert printed == ["heavy: []"] * 3
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of a processor: others may be busy
    assert spent / 3 < 0.5
