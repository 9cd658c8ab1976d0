"""Making calls: picking, connecting, and stubs of grpc's own."""
