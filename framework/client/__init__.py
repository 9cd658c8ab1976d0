"""Making calls: stub -> channel -> [interceptors] -> balancer -> endpoint -> wire.

Reading order: `stub` (what a generated client returns), `channel` (binds a method to its handler), `balancer` (picks an
endpoint), `pool` (the endpoints of a service, as the registry reports them), `wire` (grpc.aio), `connect`, and `dropin`
for stubs that grpc's own plugin generated.
"""
