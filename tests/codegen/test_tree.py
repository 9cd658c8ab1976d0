"""What `generate` does to the output directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from framework.codegen import ProtoError, generate
from framework.codegen import tree as tree_module
from framework.errors import FrameworkError
from tests.codegen.conftest import Tree

PROTOS = Path(__file__).parent / "protos"

IMPORT_ALL = """
import importlib, pathlib
for path in sorted(pathlib.Path("stubs").rglob("*.py")):
    importlib.import_module(".".join(path.with_suffix("").parts))
print("imported")
"""


def names(paths: tuple[Path, ...]) -> set[str]:
    return {path.name for path in paths}


def reasons(tree: Tree) -> dict[str, str]:
    return {file.path.relative_to(tree.out).as_posix(): file.reason for file in tree.generate(check=True).stale}


def test_whole_tree_imports_without_a_warning(tree: Tree) -> None:
    """Packages that import each other, odd names, three syntaxes: each module that comes out can be imported."""
    tree.protos = PROTOS
    tree.generate()
    assert tree.files() == {
        *("__init__.py", "bare_pb2.py", "bare_pb2.pyi", "bare_rpc.py"),
        *("odd/__init__.py", "odd/class_/__init__.py"),
        *("odd/class_/import_pb2.py", "odd/class_/import_pb2.pyi", "odd/class_/import_rpc.py"),
        *("odd/class_/two_words_pb2.py", "odd/class_/two_words_pb2.pyi"),
        *("shop/__init__.py", "shop/catalog/__init__.py", "shop/catalog/v1/__init__.py"),
        *("shop/catalog/v1/catalog_pb2.py", "shop/catalog/v1/catalog_pb2.pyi", "shop/catalog/v1/catalog_rpc.py"),
        *("shop/catalog/v1/product_pb2.py", "shop/catalog/v1/product_pb2.pyi"),
        *("shop/stock/__init__.py", "shop/stock/v1/__init__.py"),
        *("shop/stock/v1/stock_pb2.py", "shop/stock/v1/stock_pb2.pyi", "shop/stock/v1/stock_rpc.py"),
    }
    assert tree.python(IMPORT_ALL) == "imported\n"


def test_tree_can_be_moved(tree: Tree) -> None:
    """No module names another of the tree absolutely, so the output works as a package of any name at any depth."""
    tree.protos, tree.out = PROTOS, tree.out / "deep" / "down"
    tree.generate()
    code = "from deep.down.shop.catalog.v1 import catalog_rpc as rpc; print(rpc.CatalogMethods.Upload)"
    printed = tree.python(code, cwd=tree.out.parent.parent)
    assert printed == "<Method shop.catalog.v1.Catalog/Upload (stream Product) returns (Summary)>\n"


def test_output_depends_on_nothing_but_the_input(tree: Tree, tmp_path: Path) -> None:
    """Two runs in two places write the same bytes, the manifest's included."""
    first, second = tmp_path / "a" / "stubs", tmp_path / "b" / "stubs"
    for out in first, second:
        copy = out.parent / "protos"
        copy.parent.mkdir()
        copy.symlink_to(PROTOS)
        generate(copy, out)
    assert {path.relative_to(first): path.read_bytes() for path in first.rglob("*") if path.is_file()} == {
        path.relative_to(second): path.read_bytes() for path in second.rglob("*") if path.is_file()
    }


def test_unchanged_input_is_not_compiled(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run finds everything right and does not run protoc."""
    tree.write("a/v1/a.proto", "message A {}")
    tree.generate()
    monkeypatch.delattr(tree_module, "render")
    result = tree.generate()
    assert (result.written, len(result.unchanged)) == ((), 5)


def test_only_what_changed_is_written(tree: Tree) -> None:
    """A change of one proto file leaves the output of the others alone."""
    tree.write("a/a.proto", "message A {}")
    tree.write("a/b.proto", "message B {}")
    tree.generate()
    tree.write("a/b.proto", "message C {}")
    assert names(tree.generate().written) == {"b_pb2.py", "b_pb2.pyi"}


def test_outputs_of_deleted_protos_go(tree: Tree) -> None:
    """A proto file that is gone takes its modules and empty packages along, and nothing that the user put there."""
    tree.write("a/a.proto", "message A {}")
    tree.write("b/v1/b.proto", "message B {}")
    tree.write("c/c.proto", "message C {}")
    tree.generate()
    (tree.out / "c" / "mine.py").write_text("x = 1\n")
    (tree.protos / "b" / "v1" / "b.proto").unlink()
    (tree.protos / "c" / "c.proto").unlink()
    tree.generate()
    assert tree.files() == {"__init__.py", "a/__init__.py", "a/a_pb2.py", "a/a_pb2.pyi", "c/__init__.py", "c/mine.py"}


def test_left_over_that_somebody_edited_stays(tree: Tree) -> None:
    """A file is removed only while it is what was written: other people's work is not."""
    tree.write("a.proto", "message A {}")
    tree.write("b.proto", "message B {}")
    tree.generate()
    (tree.out / "b_pb2.py").write_text("mine = 1\n")
    (tree.protos / "b.proto").unlink()
    assert names(tree.generate().removed) == {"b_pb2.pyi"}
    assert tree.read("b_pb2.py") == "mine = 1\n"


def test_package_files_belong_to_the_user(tree: Tree) -> None:
    """What somebody writes into an __init__.py stays, before and after it was generated."""
    tree.write("a/a.proto", "message A {}")
    tree.out.mkdir()
    (tree.out / "__init__.py").write_text("before = 1\n")
    tree.generate()
    (tree.out / "a" / "__init__.py").write_text("after = 1\n")
    assert tree.generate().written == ()
    assert reasons(tree) == {}
    assert (tree.read("__init__.py"), tree.read("a/__init__.py")) == ("before = 1\n", "after = 1\n")


def test_check_names_each_file_and_writes_nothing(tree: Tree) -> None:
    """A check tells a missing, an outdated, an edited and a left-over file apart."""
    for name in "abcd":
        tree.write(f"{name}.proto", f"message {name.upper()} {{}}")
    tree.generate()
    assert reasons(tree) == {}
    (tree.out / "a_pb2.py").unlink()
    tree.write("b.proto", "message B { int32 x = 1; }")
    (tree.out / "c_pb2.pyi").write_text("x: int\n")
    (tree.protos / "d.proto").unlink()
    before = {path: path.read_bytes() for path in tree.out.iterdir()}
    assert reasons(tree) == {
        "a_pb2.py": "missing",
        "b_pb2.py": "out of date",
        "b_pb2.pyi": "out of date",
        "c_pb2.pyi": "edited by hand",
        "d_pb2.py": "left over",
        "d_pb2.pyi": "left over",
    }
    assert {path: path.read_bytes() for path in tree.out.iterdir()} == before


def test_generate_repairs_what_check_finds(tree: Tree) -> None:
    """After `generate` a check has nothing to say, whatever happened to the output before."""
    tree.write("a.proto", "message A {}")
    tree.generate()
    (tree.out / "a_pb2.py").write_text("x = 1\n")
    (tree.out / "a_pb2.pyi").unlink()
    assert names(tree.generate().written) == {"a_pb2.py", "a_pb2.pyi"}
    assert reasons(tree) == {}


def test_bad_proto_leaves_the_old_output(tree: Tree) -> None:
    """Mistakes are reported with file, line and column, and nothing is written."""
    tree.write("a/a.proto", "message A {}")
    tree.generate()
    before = tree.read("a/a_pb2.py")
    tree.write("a/a.proto", "message A { strin x = 1; }\nmessage B { A a = 1; C c = 2; }")
    with pytest.raises(ProtoError) as caught:
        tree.generate()
    path = tree.protos / "a" / "a.proto"
    assert str(caught.value) == f'{path}:3:13: "strin" is not defined.\n{path}:4:22: "C" is not defined.'
    assert tree.read("a/a_pb2.py") == before


def test_two_sources_share_an_output(tree: Tree) -> None:
    """Two proto directories generated into one package do not remove each other's modules."""
    tree.write("shop/a.proto", "message A {}")
    tree.generate()
    other = Tree(tree.protos.parent / "more", tree.out)
    other.write("shop/b.proto", "message B {}")
    other.generate()
    assert tree.generate().written == other.generate().written == ()
    assert {"shop/a_pb2.py", "shop/b_pb2.py"} < tree.files()


def test_renamed_source_takes_its_output_along(tree: Tree) -> None:
    """After the proto directory has got another name, what is deleted from it is still removed from the output."""
    tree.write("a.proto", "message A {}")
    tree.write("b.proto", "message B {}")
    tree.generate()
    tree.protos = tree.protos.rename(tree.protos.with_name("api"))
    tree.generate()
    assert list(json.loads(tree.read(".framework-generate.json"))) == ["../api"]
    (tree.protos / "b.proto").unlink()
    assert names(tree.generate().removed) == {"b_pb2.py", "b_pb2.pyi"}


def test_import_root(tree: Tree) -> None:
    """Below `src`, which is on the path itself, top-level packages import each other absolutely."""
    tree.out = tree.out / "src"
    tree.write("shop/v1/a.proto", 'import "common/v1/b.proto";\nmessage A { common.v1.B b = 1; }')
    tree.write("common/v1/b.proto", "message B { int32 x = 1; }")
    tree.generate()
    assert "__init__.py" not in tree.files()
    printed = tree.python("from shop.v1.a_pb2 import A; print(A(b={'x': 1}).b.x)", cwd=tree.out)
    assert printed == "1\n"


def test_copies_of_installed_protos_are_left_out(tree: Tree) -> None:
    """Who has a copy of google/api in the tree still imports the installed modules, which others import as well."""
    tree.write("google/api/http.proto", 'syntax = "proto3";\npackage google.api;\nmessage Http {}')
    tree.write("a/a.proto", 'import "google/api/http.proto";\nmessage A { google.api.Http http = 1; }')
    tree.generate()
    assert tree.files() == {"__init__.py", "a/__init__.py", "a/a_pb2.py", "a/a_pb2.pyi"}
    assert "from google.api import http_pb2 as" in tree.read("a/a_pb2.py")


@pytest.mark.parametrize(
    ("proto", "out", "message"),
    [
        (
            "a/b-c.proto a/b_c.proto",
            "stubs",
            "a/b-c.proto and a/b_c.proto would both become the Python module a.b_c_pb2",
        ),
        ("calendar/v1/a.proto", "src", "would become a top-level package 'calendar' and hide the one"),
        ("a.proto", "protos/a.proto", "cannot write to"),
        ("taken.proto", ".", "taken_pb2.py is in the way: it was not generated"),
        ("", "stubs", "there are no .proto files in"),
    ],
)
def test_mistakes_are_explained(tree: Tree, proto: str, out: str, message: str) -> None:
    """What cannot be generated ends in one sentence, and with what to do."""
    for name in proto.split():
        tree.write(name, "message A {}")
    tree.out = tree.protos.parent / out
    (tree.protos.parent / "taken_pb2.py").write_text("mine = 1\n")
    with pytest.raises(FrameworkError) as caught:
        tree.generate()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
