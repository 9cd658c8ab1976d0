"""Clients that others wrote, against uvicorn in front of a service over gRPC: Connect's, gRPC-Web's, and curl."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2

from tests.http.library import SERVICE, Library
from tests.http.test_envoy import descriptors
from tests.http.test_serving import gateway, serving
from tests.tools import on_path, tool

SCRIPT = Path(__file__).with_name("clients.mjs")
BOOK = {"name": "ü", "pages": "7", "color": "RED"}
ALL = ["book 1", "book 2", "book 3"]


@pytest_asyncio.fixture
async def url(library: Library) -> AsyncIterator[str]:
    async with gateway(library) as app, serving(app) as address:
        yield f"http://{address}"


async def told(*command: str) -> str:
    """What a command prints."""
    process = await asyncio.create_subprocess_exec(*command, stdout=-1, stderr=-1)
    try:
        out, error = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, error.decode()
    return out.decode()


async def test_the_clients_of_connect_and_grpc_web(tmp_path: Path, url: str) -> None:
    """Replies, streams, uploads, errors with details before and in a stream, and deadlines, in every protocol."""
    node, found = on_path("node"), tool("web-clients")
    files = descriptor_pb2.FileDescriptorSet.FromString(descriptors(SERVICE))
    files.file.append(descriptor_pb2.FileDescriptorProto.FromString(error_details_pb2.DESCRIPTOR.serialized_pb))
    described = tmp_path / "set"
    described.write_bytes(files.SerializeToString())
    seen = json.loads(await told(node, str(SCRIPT), str(Path(found).parents[3]), str(described), url))
    lost = {"code": "NotFound", "message": "no such book", "reasons": ["LOST"], "why": "fire"}
    tired = {"code": "Aborted", "message": "enough", "reasons": ["TIRED"], "why": None}
    connect: dict[str, Any] = {
        "unary": BOOK,
        "large": 500,
        "stream": ALL,
        "upload": ["a", "b"],
        "error": lost,
        "late": [["book 1"], tired],
        "slow": "DeadlineExceeded",
    }
    web = {"unary": BOOK, "error": {"code": 5, "message": "no such book", "why": "fire"}}
    streams = {"stream": ALL, "late": [["book 1"], {"code": 10, "message": "enough"}]}
    assert {
        **dict.fromkeys(("connect json", "connect proto", "connect get", "connect grpc-web"), connect),
        "grpc-web text": {**web, **streams},
        "grpc-web binary": web,
    } == seen


async def test_curl(tmp_path: Path, url: str) -> None:
    """REST with a body, an error, an upload and a download, packed replies, and events as they come."""
    curl = (on_path("curl"), "--silent", "--show-error")
    status = ("--write-out", " %{http_code}")
    post = ("-H", "content-type: application/json", "--data", '{"title": "Café"}')
    made = await told(*curl, *status, *post, f"{url}/v1/shelves/1/books?request_id=a+b")
    assert made == '{"name":"shelves/1/books/a b","title":"Café"} 200'
    missing = await told(*curl, *status, f"{url}/v1/books/fail")
    assert (json.loads(missing[:-4])["details"][0]["reason"], missing[-4:]) == ("LOST", " 404")
    (tmp_path / "file").write_bytes(bytes(range(256)) * 1000)
    sent = (
        "--upload-file",
        str(tmp_path / "file"),
        "-H",
        "content-type: image/png",
        "--output",
        str(tmp_path / "back"),
    )
    await told(*curl, *sent, f"{url}/v1/files/x")
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    large = await told(*curl, "--compressed", f"{url}/v1/books/x?big=true")
    assert len(json.loads(large)["tags"]) == 500
    events = await told(*curl, "--no-buffer", "-H", "accept: text/event-stream", f"{url}/v1/shelves/1:watch?count=2")
    assert events == (
        "retry: 3000\n\n"
        'id: 1\ndata: {"name":"shelves/1","title":"book 1"}\n\n'
        'id: 2\ndata: {"name":"shelves/1","title":"book 2"}\n\n'
        "event: end\ndata: {}\n\n"
    )
