"""HTTP beside gRPC in one process: the same servicers, interceptors and statuses behind both.

A call that comes over HTTP runs the pipeline of the server, on the messages that it was read into; nothing is encoded
and decoded in between, and no other task takes part.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

from google.protobuf.descriptor import ServiceDescriptor

from framework.certificates import TlsFiles
from framework.config import ServerSettings
from framework.errors import ConfigError
from framework.http.admission import Admission
from framework.http.app import HttpApp
from framework.http.conduct import Conduct
from framework.http.front import Front
from framework.http.pages import Grpc, docs_pages, health_pages
from framework.http.server import HttpServer
from framework.http.settings import HttpSettings
from framework.security.guard import Guard
from framework.server.local import Local
from framework.server.pipeline import Pipeline
from framework.server.server import Server
from framework.tls import refuse_plain_text
from framework.web import WebSettings

log = logging.getLogger("framework.http")


def http_beside(
    name: str, server: Server, settings: ServerSettings, security: Guard | None = None, *, shared: bool = False
) -> HttpServer:
    """The HTTP server for the methods of a gRPC server, which has started.

    Args:
        name: of the service.
        security: who callers are, and whether they may.
        shared: other processes serve on the same port.

    Raises:
        ConfigError: such a port must have a number.
        RuleError: a google.api.http rule that cannot be served.
    """
    web = settings.http
    if shared and not web.port:
        raise ConfigError("workers cannot share any free port for HTTP; choose one with --http")
    front, live = http_front(name, server, web, security)
    age = settings.connection_age if shared else None
    return HttpServer(
        front, settings.host, web.port or 0, web.limits, live,
        option="--http", connection_age=age, tls=tls_beside(settings),
    )  # fmt: skip


def http_front(
    name: str, server: Server, web: WebSettings, security: Guard | None = None
) -> tuple[Front, set[Conduct]]:
    """The ASGI application for the methods of a gRPC server, and its calls in flight.

    Raises:
        RuleError: a google.api.http rule that cannot be served.
    """
    live: set[Conduct] = set()
    admission = Admission(web, security)
    app = HttpApp(
        _described(server.pipeline),
        Local(server.pipeline).bind,
        HttpSettings.of(web),
        guard=admission if admission.needed else None,
        live=live,
    )

    for line in admission.doubts(rpc.method for rpc in app.methods.values()):
        log.warning("%s", line)

    def unready() -> str:
        return "" if server.health.is_serving else f"{server.address} does not serve"

    grpc = Grpc(server.address, bool(server.settings.tls)) if server.port else None  # none in Envoy, which has it
    docs = docs_pages(lambda: app.services, name, app.settings, security, grpc)
    return Front(app, web, health_pages(unready), docs, admission.known), live


def tls_beside(settings: ServerSettings) -> TlsFiles | None:
    """Certificates for HTTP: its own, or those of gRPC unless plain text is asked for.

    Raises:
        ConfigError: they cannot be used, or plain text would be served beyond this machine.
    """
    web = settings.http
    if web.tls:
        return TlsFiles(web.tls, "server.http.tls")
    if settings.tls and not web.plaintext:
        return TlsFiles(settings.tls, "server.tls")
    if not (web.plaintext or settings.plaintext):
        refuse_plain_text("HTTP", settings.host, "server.http")
    return None


def _described(pipeline: Pipeline) -> Iterator[ServiceDescriptor]:
    """The services of a pipeline but gRPC's own, as far as they have descriptors."""
    methods = {bound.method.service: bound.method for bound in pipeline.methods}
    for name, method in methods.items():
        if name.startswith("grpc."):
            continue
        descriptor = getattr(method.request, "DESCRIPTOR", None)
        try:
            if descriptor is None:
                raise KeyError(name)
            yield descriptor.file.pool.FindServiceByName(name)
        except KeyError:
            log.warning("%s is served over gRPC only: its descriptors are not here", name)
