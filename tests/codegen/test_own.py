"""The framework's own proto file."""

from __future__ import annotations

from google.protobuf.descriptor_pb2 import MethodOptions

from framework import options_pb2
from framework.codegen.__main__ import own_modules


def test_own_modules_are_up_to_date() -> None:
    """`python -m framework.codegen` would change nothing."""
    assert {path: path.read_text(encoding="utf-8") for path in own_modules()} == own_modules()


def test_option_is_read_from_a_descriptor() -> None:
    """A message of options that went over the wire still has the framework's."""
    options = MethodOptions()
    options.Extensions[options_pb2.method].timeout.FromMilliseconds(1500)
    again = MethodOptions.FromString(options.SerializeToString())
    assert again.Extensions[options_pb2.method].timeout.ToMilliseconds() == 1500
