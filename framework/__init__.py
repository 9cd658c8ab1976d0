"""A gRPC microservice framework for Python: services defined in protobuf, discovered, balanced, observable, testable.

    from framework import NotFound, Service, connect

Reading order of the whole: `call` (the one idea), `errors`, `server`, `client`, `discovery`, `service`.
"""

from framework.call import Call, Handler, Interceptor, Metadata, Method, Outcome, Reply, Stream
from framework.client.connect import connect
from framework.client.dropin import Channel
from framework.client.stub import StreamReply, UnaryReply
from framework.config import ClientSettings, Drain, MethodSettings, ServerSettings, Settings
from framework.discovery import Instance, Registry
from framework.errors import (
    Aborted,
    AlreadyExists,
    Cancelled,
    Code,
    ConfigError,
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    FrameworkError,
    Internal,
    InvalidArgument,
    NotFound,
    OutOfRange,
    PermissionDenied,
    ResourceExhausted,
    RpcError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Unknown,
)
from framework.server.context import Context
from framework.server.servicer import Servicer
from framework.service import Service

__version__ = "0.1.0"

__all__ = [
    "Aborted",
    "AlreadyExists",
    "Call",
    "Cancelled",
    "Channel",
    "ClientSettings",
    "Code",
    "ConfigError",
    "Context",
    "DataLoss",
    "DeadlineExceeded",
    "Drain",
    "FailedPrecondition",
    "FrameworkError",
    "Handler",
    "Instance",
    "Interceptor",
    "Internal",
    "InvalidArgument",
    "Metadata",
    "Method",
    "MethodSettings",
    "NotFound",
    "Outcome",
    "OutOfRange",
    "PermissionDenied",
    "Registry",
    "Reply",
    "ResourceExhausted",
    "RpcError",
    "ServerSettings",
    "Service",
    "Servicer",
    "Settings",
    "Stream",
    "StreamReply",
    "Unauthenticated",
    "UnaryReply",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "connect",
]
