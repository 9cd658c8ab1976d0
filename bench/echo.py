"""The service of the benchmarks, as our servicer and as a bare grpc.aio one; run as a process of its own.

python -m bench.echo ours|bare [FOLDER]      with the certificates in a folder, as `framework certs` makes them
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import uvloop
from google.protobuf.struct_pb2 import Value
from google.protobuf.wrappers_pb2 import BytesValue, DoubleValue, Int64Value

from framework import Context, Drain, Method, ServerSettings, Service, Servicer, Settings
from framework.call import Idempotency
from framework.tls import ServerTls

SERVICE = "bench.Echo"
UNARY = Method(SERVICE, "Unary", BytesValue, BytesValue)
READ = Method(SERVICE, "Unary", BytesValue, BytesValue, idempotency=Idempotency.NO_SIDE_EFFECTS)  # so it is hedged
STREAM = Method(SERVICE, "Stream", Int64Value, BytesValue, server_streaming=True)
UPLOAD = Method(SERVICE, "Upload", BytesValue, Int64Value, client_streaming=True)
CPU = Method(SERVICE, "Cpu", Value, DoubleValue)
PAYLOAD = b"x" * 100


class Echo(Servicer):
    """Ours."""

    __methods__ = (UNARY, STREAM, UPLOAD, CPU)

    async def Unary(self, request: BytesValue, context: Any) -> BytesValue:
        return BytesValue(value=request.value)

    async def Stream(self, request: Int64Value, context: Any) -> AsyncIterator[BytesValue]:
        for _ in range(request.value):
            yield BytesValue(value=PAYLOAD)

    async def Upload(self, requests: AsyncIterator[BytesValue], context: Any) -> Int64Value:
        count = 0
        async for _ in requests:
            count += 1
        return Int64Value(value=count)

    async def Cpu(self, request: Value, context: Context) -> DoubleValue:
        return DoubleValue(value=time.process_time())


service = Service("echo", servicers=[Echo()])
"""For `framework run`."""


def bare_handlers() -> grpc.GenericRpcHandler:
    """The same methods as grpc.aio alone serves them."""
    echo = Echo()
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Unary": grpc.unary_unary_rpc_method_handler(
                echo.Unary, BytesValue.FromString, BytesValue.SerializeToString
            ),
            "Stream": grpc.unary_stream_rpc_method_handler(
                echo.Stream, Int64Value.FromString, BytesValue.SerializeToString
            ),
            "Upload": grpc.stream_unary_rpc_method_handler(
                echo.Upload, BytesValue.FromString, Int64Value.SerializeToString
            ),
            "Cpu": grpc.unary_unary_rpc_method_handler(echo.Cpu, Value.FromString, DoubleValue.SerializeToString),
        },
    )


async def serve(kind: str, folder: str = "") -> None:
    """Serve on a free port, print it, and stop when standard input ends."""
    if kind == "ours":
        tls = ServerTls(f"{folder}/echo.pem", f"{folder}/echo.key", f"{folder}/ca.pem") if folder else ServerTls()
        settings = Settings(registry="none", server=ServerSettings(drain=Drain(0, 0.1, 0.1), tls=tls))
        async with Service("echo", servicers=[Echo()]).running(settings) as server:
            print(server.port, flush=True)
            await asyncio.to_thread(sys.stdin.read)
    else:
        bare = grpc.aio.server(options=(("grpc.so_reuseport", 0),))
        bare.add_generic_rpc_handlers((bare_handlers(),))
        port = bare.add_insecure_port("127.0.0.1:0")
        await bare.start()
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await bare.stop(0)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(*sys.argv[1:]))
