"""HTTP in front of gRPC methods: one ASGI application that turns requests into calls.

Reading order: `methods` (what is served), `rules` and `routes` (from a path to a method), `json` and `binding` (from a
request to a message), `app` (from ASGI to one of the protocols), `rest`, `connect`, `grpc_web`. What is told of it all:
`schemas`, `operations` and `openapi`, and `docs`, the page.
"""

from framework.http.app import HttpApp
from framework.http.json import JsonOptions
from framework.http.settings import HttpSettings

__all__ = ["HttpApp", "HttpSettings", "JsonOptions"]
