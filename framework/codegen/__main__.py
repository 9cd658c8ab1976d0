"""`python -m framework.codegen`: make `framework/options_pb2` again after a change of `framework/options.proto`."""

from pathlib import Path

from framework.codegen.compiler import OWN_PROTOS
from framework.codegen.tree import render


def own_modules() -> dict[Path, str]:
    """The text of the modules that are generated from the framework's own proto files."""
    texts, _ = render(OWN_PROTOS, ["framework/options.proto"], root=False)
    return {OWN_PROTOS.parent.parent / path: text for path, text in texts.items() if not path.endswith("__init__.py")}


if __name__ == "__main__":
    for path, text in own_modules().items():
        path.write_text(text, encoding="utf-8", newline="\n")
