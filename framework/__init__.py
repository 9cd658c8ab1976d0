"""A gRPC microservice framework for Python: services defined in protobuf, discovered, balanced, observable, testable.

    from framework import NotFound, Service, connect

Reading order of the whole: `call` (the one idea), `errors`, `server`, `client`, `discovery`, `service`. The names below
are imported when they are first used, so that the command line and pytest do not load gRPC for nothing.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# What matters of grpc's own log is raised; it is read when grpc is imported, and GRPC_VERBOSITY=INFO shows it.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

if TYPE_CHECKING:
    from framework.call import Call, Criticality, Handler, Interceptor, Metadata, Method, Outcome, Reply, Stream
    from framework.client.connect import connect
    from framework.client.dropin import Channel
    from framework.client.stub import StreamReply, UnaryReply
    from framework.config import Drain, ServerSettings, Settings
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
        MessageTooLarge,
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
    from framework.identity import Identity, Peer
    from framework.interceptors.identity import bearer
    from framework.policy import (
        BackoffSettings,
        BreakerSettings,
        BudgetSettings,
        BulkheadSettings,
        ClientSettings,
        HedgeSettings,
        KeepaliveSettings,
        LimiterSettings,
        MethodSettings,
        OutlierSettings,
        RetrySettings,
    )
    from framework.security.authentication import Authenticator, Credentials
    from framework.server.context import Context
    from framework.server.servicer import Servicer
    from framework.service import Service

__version__ = "0.1.0"

_HOMES = {
    "framework.call": "Call Criticality Handler Interceptor Metadata Method Outcome Reply Stream",
    "framework.client.connect": "connect",
    "framework.client.dropin": "Channel",
    "framework.client.stub": "StreamReply UnaryReply",
    "framework.config": "Drain ServerSettings Settings",
    "framework.discovery": "Instance Registry",
    "framework.errors": (
        "Aborted AlreadyExists Cancelled Code ConfigError DataLoss "
        "DeadlineExceeded FailedPrecondition FrameworkError Internal InvalidArgument MessageTooLarge NotFound "
        "OutOfRange PermissionDenied ResourceExhausted RpcError Unauthenticated Unavailable "
        "Unimplemented Unknown"
    ),
    "framework.identity": "Identity Peer",
    "framework.interceptors.identity": "bearer",
    "framework.policy": (
        "BackoffSettings BreakerSettings BudgetSettings BulkheadSettings ClientSettings HedgeSettings "
        "KeepaliveSettings LimiterSettings MethodSettings OutlierSettings RetrySettings"
    ),
    "framework.security.authentication": "Authenticator Credentials",
    "framework.server.context": "Context",
    "framework.server.servicer": "Servicer",
    "framework.service": "Service",
}
_HOME = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})


__all__ = [
    "Aborted",
    "AlreadyExists",
    "Authenticator",
    "BackoffSettings",
    "BreakerSettings",
    "BudgetSettings",
    "BulkheadSettings",
    "Call",
    "Cancelled",
    "Channel",
    "ClientSettings",
    "Code",
    "ConfigError",
    "Context",
    "Credentials",
    "Criticality",
    "DataLoss",
    "DeadlineExceeded",
    "Drain",
    "FailedPrecondition",
    "FrameworkError",
    "Handler",
    "HedgeSettings",
    "Identity",
    "Instance",
    "Interceptor",
    "Internal",
    "InvalidArgument",
    "KeepaliveSettings",
    "LimiterSettings",
    "MessageTooLarge",
    "Metadata",
    "Method",
    "MethodSettings",
    "NotFound",
    "OutOfRange",
    "Outcome",
    "OutlierSettings",
    "Peer",
    "PermissionDenied",
    "Registry",
    "Reply",
    "ResourceExhausted",
    "RetrySettings",
    "RpcError",
    "ServerSettings",
    "Service",
    "Servicer",
    "Settings",
    "Stream",
    "StreamReply",
    "UnaryReply",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Unknown",
    "bearer",
    "connect",
]
