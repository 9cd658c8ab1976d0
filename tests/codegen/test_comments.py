"""Comments of proto files, as the generated modules carry them."""

from __future__ import annotations

from framework.codegen.comments import cleaned, comments_of_all
from framework.codegen.compiler import describe_protos
from tests.codegen.conftest import Tree

PROTO = """\
// Of the file; about nothing that has a name.

// What it serves.
service S {
  // What it does.
  rpc M(Outer) returns (Outer) {
    // Of an option.
    option deprecated = true;
  }
}
// Above.
//
//   indented
message Outer { // behind, and not needed
  /* In a block.
   * Two lines. */
  string a = 1;
  string b = 2; // Behind.
  // Of a choice.
  oneof choice { string c = 3; }
  // Inside.
  message Inner { int32 n = 1; }
  enum Kind {
    // Nothing.
    KIND_UNSPECIFIED = 0;
  }
  int32 silent = 4;
}
"""


def test_comments_by_full_name(tree: Tree) -> None:
    """Everything with a name has its comment: the one above, else the one behind."""
    tree.write("a/v1/a.proto", PROTO)
    found = comments_of_all(describe_protos(tree.protos, ["a/v1/a.proto"]).values())
    assert found == {
        "a.v1.Outer": "Above.\n\n  indented",
        "a.v1.Outer.Inner": "Inside.",
        "a.v1.Outer.Kind.KIND_UNSPECIFIED": "Nothing.",
        "a.v1.Outer.a": "In a block.\nTwo lines.",
        "a.v1.Outer.b": "Behind.",
        "a.v1.Outer.choice": "Of a choice.",
        "a.v1.S": "What it serves.",
        "a.v1.S.M": "What it does.",
    }


def test_what_is_not_for_readers_is_left_out() -> None:
    """Notes between authors and words for tools."""
    assert cleaned(" (-- api-linter: x\n --) For all.\n buf:lint:ignore Y\n") == "For all."


def test_modules_carry_comments(tree: Tree) -> None:
    """They can be read after an import, and a file without comments has none."""
    tree.write("a.proto", '// It\'s "quoted" \\ and é.\nmessage A {}')
    tree.write("b.proto", "message B {}")
    tree.generate()
    assert tree.read("a_pb2.py").endswith("__comments__ = {\n  'A': 'It\\'s \"quoted\" \\\\ and é.',\n}\n")
    assert "__comments__" not in tree.read("b_pb2.py")
