"""An experiment: gRPC and HTTP on one port, served by Envoy with this service inside of it.

`pyvoy` is a build of Envoy that embeds Python and serves ASGI. Two processes take part: `engine` starts Envoy,
registers the service and waits for signals; `embedded` is what Envoy imports, the service itself.
"""
