"""`framework access`: the table, the answers, keys and tokens."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import jwt as library
import pytest
from cryptography.hazmat.primitives import serialization

from framework.cli import main
from framework.security.keys import hash_of, line, new
from tests.security.lab import RSA, private_pem, public_pem

PROTO = """\
syntax = "proto3";
package lab.v1;
import "framework/options.proto";

service Shop {
  option (framework.service).access = {roles: "owner"};
  rpc Look(Text) returns (Text) { option (framework.method).access = {public: true}; }
  rpc Buy(Text) returns (Text) {
    option (framework.method) = {access: {roles: "buyer" scopes: "buy"} access: {services: "till"}};
  }
  rpc Sell(Text) returns (Text);
  rpc Close(Text) returns (Text);
}
message Text { string text = 1; }
"""

SETTINGS = """\
[auth]
keys = "keys.toml"
[auth.jwt]
issuer = "dev"
audience = "lab"
algorithms = ["EdDSA"]
key = "dev.pem"
roles = "realm.roles"
[access.rules]
"lab.v1.Shop/Close" = "deny"
"""


@pytest.fixture(autouse=True)
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with protos and settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FRAMEWORK_REGISTRY", f"sqlite:///{tmp_path}/registry.db")
    (tmp_path / "protos").mkdir()
    (tmp_path / "protos" / "lab.proto").write_text(PROTO)
    (tmp_path / "framework.toml").write_text(SETTINGS)
    (tmp_path / "keys.toml").write_text(line("ci", new("ci"), ("buyer",), ("buy",)))
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a command."""
    code = main(["access", *arguments])
    found = capsys.readouterr()
    return code, found.out, found.err


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has every method, who may call it and who says so: the most specific does."""
    code, out, err = run(capsys, "show")
    rows = [tuple(part.strip() for part in row.split("   ") if part.strip()) for row in out.splitlines()[1:]]
    assert (code, err) == (0, "")
    assert rows == [
        ("lab.v1.Shop/Look", "public", "(framework.method).access"),
        ("lab.v1.Shop/Buy", "role buyer, scope buy; or service till", "(framework.method).access"),
        ("lab.v1.Shop/Sell", "role owner", "(framework.method).access"),
        ("lab.v1.Shop/Close", "nobody", "access.rules"),
        ("grpc.health.v1.Health/Check", "public", "access.health"),
        ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "authenticated", "access.reflection"),
    ]


def test_show_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The same for programs."""
    shown = json.loads(run(capsys, "show", "--json")[1])
    assert shown["asked"] is True
    assert shown["methods"][1] == {
        "method": "lab.v1.Shop/Buy",
        "allowed": [{"roles": ["buyer"], "scopes": ["buy"]}, {"services": ["till"]}],
        "from": "(framework.method).access",
    }
    assert [one["allowed"] for one in shown["methods"][:4:3]] == [["public"], []]


def test_open(capsys: pytest.CaptureFixture[str], lab: Path) -> None:
    """Where nobody is asked, that is said."""
    (lab / "framework.toml").write_text("")
    assert run(capsys, "show")[2].startswith("framework: nobody is asked who they are, so everybody may call")


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (("nobody", "Look"), 0, "yes: the rule is: public (says (framework.method).access)"),
        (
            ("nobody", "Buy"),
            1,
            "no: the caller is not known (says (framework.method).access)",
        ),
        (("ann", "Buy", "--role", "buyer", "--scope", "buy"), 0, "yes: the rule is: role buyer, scope buy"),
        (("ann", "Buy", "--role", "buyer"), 1, "no: lacks the scope buy; or lacks a call from till"),
        (("nobody", "Buy", "--service", "till"), 0, "yes: the rule is: service till"),
        (("service:till", "Buy"), 0, "yes: the rule is: service till"),
        (("key:ci", "Buy"), 0, "yes: the rule is: role buyer, scope buy"),
        (("ann", "Sell"), 1, "no: lacks the role owner"),
        (("ann", "Close", "--role", "owner"), 1, "no: nobody may (says access.rules)"),
    ],
)
def test_answers(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, expected: str) -> None:
    """Yes or no, why, and who says so; the exit code is the answer."""
    who, method, *more = arguments
    found, out, _ = run(capsys, "test", who, f"lab.v1.Shop/{method}", *more)
    assert (found, out[: len(expected)]) == (code, expected)
    answer = json.loads(run(capsys, "test", who, f"lab.v1.Shop/{method}", *more, "--json")[1])
    assert answer["allowed"] is (code == 0)


def test_answer_about_a_token(capsys: pytest.CaptureFixture[str]) -> None:
    """A token is checked as a server would; `framework access token` makes one."""
    made = ("token", "--subject", "ann", "--key", "dev.pem", "--role", "buyer", "--scope", "buy", "--scope", "look")
    code, token, err = run(capsys, *made)
    assert code == 0
    assert err == "framework: dev.pem is a new key, for development; it is to stay on this machine\n"
    claims = library.decode(token.strip(), options={"verify_signature": False})
    assert (claims["sub"], claims["realm"], claims["scope"]) == ("ann", {"roles": ["buyer"]}, "buy look")
    assert claims["exp"] - claims["iat"] == 8 * 3600
    assert stat.S_IMODE(Path("dev.pem").stat().st_mode) == 0o600
    assert run(capsys, "test", token.strip(), "lab.v1.Shop/Buy")[0] == 0
    again = run(capsys, "token", "--subject", "ann", "--role", "guest")  # the key is in the settings
    assert again[2] == ""
    assert run(capsys, "test", again[1].strip(), "lab.v1.Shop/Buy")[0] == 1
    bad = token.strip()[:-4] + "AAAA"
    code, out, _ = run(capsys, "test", bad, "lab.v1.Shop/Look")
    assert (code, out.startswith("no: the token's signature does not hold")) == (1, True)


def test_token_without_settings(capsys: pytest.CaptureFixture[str], lab: Path) -> None:
    """What the settings need for it to count is said, and not mixed with the token."""
    (lab / "framework.toml").unlink()
    code, token, err = run(capsys, "token", "--subject", "ann", "--key", "mine.pem")
    assert code == 0
    settings = err.partition("the settings need:\n")[2]
    (lab / "framework.toml").write_text(settings)
    assert run(capsys, "test", token.strip(), "lab.v1.Shop/Look")[0] == 0


def test_new_key(capsys: pytest.CaptureFixture[str], lab: Path) -> None:
    """The key is shown once, and the line for the file makes it count."""
    _, out, _ = run(capsys, "key", "new", "bob", "--role", "buyer", "--scope", "buy")
    key = next(row.strip() for row in out.splitlines() if row.startswith("  fwk_bob_"))
    row = next(row.strip() for row in out.splitlines() if row.startswith("  bob = "))
    assert row == f'bob = {{ hash = "sha256:{hash_of(key).hex()}", roles = ["buyer"], scopes = ["buy"] }}'
    (lab / "keys.toml").write_text(row)
    assert run(capsys, "test", "key:bob", "lab.v1.Shop/Buy")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("test ann lab.v1.Shop/Bye", "there is no method lab.v1.Shop/Bye. Did you mean lab.v1.Shop/Buy?"),
        ("test key:cj lab.v1.Shop/Buy", "there is no key cj in keys.toml. There are: ci"),
        ("test nobody lab.v1.Shop/Buy --role buyer", "nobody has no roles and no scopes"),
        ("key new a_b", "'a_b' cannot name a key: up to 64 letters, digits and -"),
        ("token --subject ann", "dev.pem cannot be read: No such file or directory"),
        (
            "token --subject ann --key public.pem",
            "public.pem holds no private key, which signing takes; say --key FILE",
        ),
        ("token --subject ann --key rsa.pem", "rsa.pem is a key for none of the algorithms of [auth.jwt]: EdDSA"),
        ("token --subject ann --key none/a.pem", "none/a.pem cannot be written: No such file or directory"),
        ("show --registry sqlite:///none.db", "nothing is registered in sqlite:///"),
    ],
)
def test_mistakes(capsys: pytest.CaptureFixture[str], lab: Path, arguments: str, expected: str) -> None:
    """One line says what is wrong."""
    (lab / "public.pem").write_bytes(public_pem(RSA))
    (lab / "rsa.pem").write_bytes(private_pem(RSA))
    code, out, err = run(capsys, *arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith(f"framework: {expected}")
    assert len(err.splitlines()) == 1


def test_the_development_key_is_an_ordinary_one(capsys: pytest.CaptureFixture[str]) -> None:
    """Other tools read it."""
    run(capsys, "token", "--subject", "ann", "--key", "dev.pem")
    assert serialization.load_pem_private_key(Path("dev.pem").read_bytes(), None) is not None
