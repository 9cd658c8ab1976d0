"""Serving calls: wire -> pipeline -> servicer.

Reading order: `context` (what a handler is given), `servicer` (one handler out of one method of a servicer), `pipeline`
(methods by path, interceptors, errors, calls in flight), `wire` (grpc.aio), `server` (listen and drain), then the
ordinary servicers `health` and `reflection`, and `dropin` for servicers that grpc's own plugin generated.
"""
