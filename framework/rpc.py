"""What generated code is made of; users get these names from the generated modules, or from `framework`."""

from framework.call import Idempotency, Metadata, Method
from framework.client.stub import Channel, StreamReply, UnaryReply
from framework.server.context import Context
from framework.server.servicer import Servicer

__all__ = [
    "Channel",
    "Context",
    "Idempotency",
    "Metadata",
    "Method",
    "Servicer",
    "StreamReply",
    "UnaryReply",
]
