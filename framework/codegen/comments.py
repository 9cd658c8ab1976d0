"""What the comments of a proto file say, by the full name of what each is about.

Python's descriptors have no comments, so `_pb2` modules carry them as `__comments__`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

NAMED = frozenset(
    ("message_type", "enum_type", "service", "extension", "field", "nested_type", "value", "method", "oneof_decl")
)
"""The parts of descriptors that lead to something with a name."""

_INTERNAL = re.compile(r"\(--.*?--\)", re.DOTALL)
_FOR_TOOLS = re.compile(r"^\s*buf:lint:.*$", re.MULTILINE)


def cleaned(comment: str) -> str:
    """A comment as text: without the space behind the `//`, and without what is for tools or for its authors."""
    comment = _FOR_TOOLS.sub("", _INTERNAL.sub("", comment))
    return "\n".join(line.removeprefix(" ").rstrip() for line in comment.strip("\n").splitlines()).strip()


def comments_of(file: FileDescriptorProto) -> dict[str, str]:
    """The comments of a file described with its source: those above, else those behind.

    The value of an enum is named below the enum, `shop.v1.Order.State.PLACED`.
    """
    found: dict[str, str] = {}
    for where in file.source_code_info.location:
        text = cleaned(where.leading_comments) or cleaned(where.trailing_comments)
        if text and (name := _named(file, where.path)):
            found[name] = text
    return dict(sorted(found.items()))


def comments_of_all(files: Iterable[FileDescriptorProto]) -> dict[str, str]:
    """The comments of several files."""
    return {name: text for file in files for name, text in comments_of(file).items()}


def _named(file: FileDescriptorProto, path: Iterable[int]) -> str:
    """The full name of what a path of a source location leads to, empty for what has none."""
    steps = list(path)
    at: Any = file
    names = [file.package] if file.package else []
    if len(steps) % 2:
        return ""
    for number, index in zip(steps[::2], steps[1::2], strict=True):
        part = at.DESCRIPTOR.fields_by_number[number].name
        if part not in NAMED:
            return ""
        at = getattr(at, part)[index]
        names.append(at.name)
    return ".".join(names)
