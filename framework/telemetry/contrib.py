"""Spans by the conventions of opentelemetry-instrumentation-grpc: its interceptors of grpc.aio, instead of ours.

They know of no retries, and of no call that grpc.aio does not serve; what it says of endings is as it says it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from opentelemetry.trace import TracerProvider

from framework.errors import ConfigError


def client_interceptors(provider: TracerProvider | None) -> tuple[Any, ...]:
    """For channels of grpc.aio, one for each arity.

    Raises:
        ConfigError: the package is not installed.
    """
    return tuple(_contrib().aio_client_interceptors(tracer_provider=provider))


def server_interceptor(provider: TracerProvider | None) -> Any:
    """For servers of grpc.aio.

    Raises:
        ConfigError: the package is not installed.
    """
    kind = type(_contrib().aio_server_interceptor(tracer_provider=provider))

    class Interceptor(kind):  # type: ignore[misc, valid-type]  # it is only known now
        """Its interceptor, for handlers that write their replies and do not yield them."""

        def _intercept_aio_server_stream(self, behavior: Callable[..., Any], details: Any) -> Any:
            return self._intercept_aio_server_unary(behavior, details)

    from opentelemetry import trace

    return Interceptor(trace.get_tracer("framework", tracer_provider=provider))


def _contrib() -> Any:
    try:
        from opentelemetry.instrumentation import grpc
    except ModuleNotFoundError as error:
        raise ConfigError(
            f'{error.name} is not installed; telemetry.instrumentation = "contrib" takes:'
            " pip install opentelemetry-instrumentation-grpc"
        ) from None
    return grpc
