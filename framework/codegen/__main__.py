"""`python -m framework.codegen`: make the modules of `framework/protos` again after a change there."""

from pathlib import Path

from framework.codegen.compiler import OWN_PROTOS, compile_protos
from framework.codegen.messages import header
from framework.codegen.tree import render

OPTIONS = "framework/options.proto"
RULES = "buf/validate/validate.proto"

RULES_MODULE = """\
{header}
# ruff: noqa: E501
\"\"\"The rules of `{proto}` in the default pool, which a module that imports that file needs.

Somebody else's module of the same file is preferred where there is one: a pool takes only one version of a file.
\"\"\"

import importlib

from google.protobuf import descriptor_pb2 as _descriptor_pb2  # noqa: F401  # in the pool before what imports it
from google.protobuf import descriptor_pool as _descriptor_pool
from google.protobuf import duration_pb2 as _duration_pb2  # noqa: F401  # as above
from google.protobuf import field_mask_pb2 as _field_mask_pb2  # noqa: F401  # as above
from google.protobuf import timestamp_pb2 as _timestamp_pb2  # noqa: F401  # as above

try:
    importlib.import_module("buf.validate.validate_pb2")
except ModuleNotFoundError:
    pass
try:
    DESCRIPTOR = _descriptor_pool.Default().FindFileByName("{proto}")
except KeyError:
    DESCRIPTOR = _descriptor_pool.Default().AddSerializedFile({bytes})
"""


def own_modules() -> dict[Path, str]:
    """The text of the modules that are generated from the framework's own proto files."""
    package = OWN_PROTOS.parent
    texts, _ = render(OWN_PROTOS, [OPTIONS], root=False)
    modules = {package.parent / path: text for path, text in texts.items() if not path.endswith("__init__.py")}
    file = type(rules := compile_protos(OWN_PROTOS, [RULES]).files[RULES])()
    file.CopyFrom(rules)
    file.ClearField("source_code_info")  # the comments, which are most of it
    modules[package / "validate_pb2.py"] = RULES_MODULE.format(
        header=header(RULES), proto=RULES, bytes=repr(file.SerializeToString())
    )
    return modules


if __name__ == "__main__":
    for path, text in own_modules().items():
        path.write_text(text, encoding="utf-8", newline="\n")
