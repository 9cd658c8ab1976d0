"""REST streams: of replies, of requests, of both, and over WebSocket."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from typing import Any

import pytest

from framework.call import Call
from framework.http import rpc
from framework.http.app import HttpApp
from framework.http.conduct import PATIENCE
from framework.http.settings import HttpSettings
from tests.http.driver import Conversation, ask, open_request, open_socket, scope
from tests.http.library import SERVICE, Library, application

WATCH = "GET /v1/shelves/1:watch"
JSON = [("content-type", "application/json")]


def books(count: int) -> list[dict[str, str]]:
    return [{"name": "shelves/1", "title": f"book {number}"} for number in range(1, count + 1)]


async def test_lines(app: HttpApp) -> None:
    """One JSON text a line, each sent as soon as it is there."""
    response = await ask(app, WATCH)
    assert (response.status, response.headers["content-type"]) == (200, "application/x-ndjson")
    assert [json.loads(part) for part in response.parts] == books(3)


async def test_an_array(app: HttpApp) -> None:
    """For a client that takes only JSON, one array; empty when there is nothing."""
    response = await ask(app, WATCH, accept="application/json")
    assert (response.headers["content-type"], response.json) == ("application/json", books(3))
    response = await ask(app, "POST /v1/rooms/r:chat", accept="application/json", content_type="application/json")
    assert response.json == []


async def test_events(app: HttpApp) -> None:
    """Events have numbers to go on from, and the end of the stream is told."""
    response = await ask(app, f"{WATCH}?count=2", accept="text/event-stream")
    assert response.headers["content-type"] == "text/event-stream"
    assert response.headers["cache-control"] == "no-cache"
    assert response.body.decode() == (
        "retry: 3000\n\n"
        'id: 1\ndata: {"name":"shelves/1","title":"book 1"}\n\n'
        'id: 2\ndata: {"name":"shelves/1","title":"book 2"}\n\n'
        "event: end\ndata: {}\n\n"
    )


async def test_events_go_on(library: Library, app: HttpApp) -> None:
    """A client that comes back says what it had last: the handler is told, and the numbers go on."""
    response = await ask(app, f"{WATCH}?count=1", accept="text/event-stream", last_event_id="41")
    assert b"id: 42\n" in response.body
    assert dict(library.metadata)["last-event-id"] == "41"


@pytest.mark.virtual_time
async def test_events_of_a_silent_stream() -> None:
    """Between events a comment says that the stream is alive, and before the first one too."""
    library = Library()
    conversation = open_request(
        application(library, heartbeat=60), "GET /v1/shelves/slow:watch", [("accept", "text/event-stream")]
    )
    conversation.body()
    await conversation.until(4)
    assert conversation.response.parts[2:] == [b":\n\n", b":\n\n"]
    conversation.leave()
    await conversation.done()
    assert library.cancelled.is_set()


async def test_one_field_of_each_reply(app: HttpApp) -> None:
    """`response_body` holds for every message of a stream."""
    assert (await ask(app, "GET /v1/shelves/1:titles")).lines == ["book 1", "book 2", "book 3"]


STATUS = {
    "code": 10,
    "message": "enough",
    "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "TIRED"}],
}


async def test_a_failure_before_the_first_message(app: HttpApp) -> None:
    """As long as nothing is sent, a failure has its HTTP status."""
    for accept in ("*/*", "application/json", "text/event-stream"):
        response = await ask(app, f"{WATCH}?failAt=1", accept=accept)
        assert (response.status, response.json) == (409, STATUS)


async def test_a_failure_later(app: HttpApp) -> None:
    """After a message, a failure is the last record, whatever the format."""
    request = f"{WATCH}?failAt=2"
    assert (await ask(app, request)).lines == [*books(1), {"error": STATUS}]
    assert (await ask(app, request, accept="application/json")).json == [*books(1), {"error": STATUS}]
    events = (await ask(app, request, accept="text/event-stream")).body.decode().split("\n\n")
    assert events[-2].split("\n")[0] == "event: error"
    assert json.loads(events[-2].split("\ndata: ")[1]) == STATUS


async def test_a_stream_of_bytes(app: HttpApp) -> None:
    """HttpBody messages go out as they are, under the type of the first."""
    response = await ask(app, "GET /v1/streams/x", accept="application/json")
    assert (response.headers["content-type"], response.parts) == ("text/csv", [b"one", b"two"])


async def test_a_compressed_stream(app: HttpApp) -> None:
    """Each message can be unpacked as soon as it is there."""
    response = await ask(app, WATCH, accept_encoding="gzip")
    unpacking = zlib.decompressobj(31)
    assert [json.loads(unpacking.decompress(part)) for part in response.parts[:3]] == books(3)
    assert gzip.decompress(response.body).count(b"\n") == 3


async def test_the_client_goes(library: Library, app: HttpApp) -> None:
    """A stream is cancelled when its reader goes while it is silent."""
    conversation = open_request(app, "GET /v1/shelves/slow:watch")
    conversation.body()
    await conversation.until(1)
    conversation.leave()
    await conversation.done()
    assert library.cancelled.is_set()
    assert not conversation.response.complete


@pytest.mark.parametrize("target", ["GET /v1/shelves/1:watch?count=100", "GET /v1/books/x", "WS /v1/shelves/1:watch"])
async def test_a_connection_that_is_lost(app: HttpApp, caplog: pytest.LogCaptureFixture, target: str) -> None:
    """A server that raises when it cannot send says that the client has gone; nothing is wrong here."""
    if target.startswith("WS"):
        conversation = open_socket(app, target[3:])
        await conversation.until(2)
    else:
        conversation = open_request(app, target, hold=True)
        conversation.body()
    conversation.broken = True
    conversation.release()
    await conversation.done()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_backpressure(library: Library, app: HttpApp) -> None:
    """A client that does not read holds the handler up."""
    conversation = open_request(app, f"{WATCH}?count=1000", hold=True)
    conversation.body()
    await library.entered.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(library.seen) < 20  # a channel keeps some ready
    conversation.release()
    assert len((await conversation.done()).lines) == 1000


# Requests


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/x-ndjson", '{"text": "a"}\n{"text": "b"}\n'),
        ("application/json", '{"text": "a"}{"text": "b"}'),
        ("application/json", '[{"text": "a"}, {"text": "b"}]'),
    ],
)
async def test_requests(app: HttpApp, content_type: str, body: str) -> None:
    """Messages come one a line, one after another, or in an array; path and query hold for each."""
    response = await ask(app, "POST /v1/rooms/r1/lines", body, content_type=content_type)
    assert response.json == {"texts": ["a", "b"], "room": "r1"}


async def test_requests_are_served_as_they_come(library: Library, app: HttpApp) -> None:
    """The handler has a message before the next one is sent."""
    conversation = open_request(app, "POST /v1/rooms/r1/lines", JSON)
    conversation.body(b'{"text": "a"}{"te', more=True)
    await library.entered.wait()
    assert library.seen == ["a"]
    conversation.body(b'xt": "b"}')
    assert (await conversation.done()).json["texts"] == ["a", "b"]


async def test_no_requests(app: HttpApp) -> None:
    """An empty body is no messages."""
    response = await ask(app, "POST /v1/rooms/r1/lines")
    assert (response.status, response.json) == (200, {})


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ('{"text": "a"} {"text": 1}', 400, "text: expected string got: number"),
        ('{"text": "a"} {"nope": 1}', 400, 'nope: lab.v1.Line has no field "nope"'),
        ('[{"text": "a"}', 400, "the body ends in the middle of a message"),
        ('{"text": "%s"}' % ("x" * 300), 413, "the message is larger than 200 bytes"),
    ],
)
async def test_requests_that_do_not_fit(library: Library, body: str, status: int, message: str) -> None:
    """A message that does not fit fails the call, and the handler never sees the end of its requests."""
    response = await ask(application(library, max_message=200), "POST /v1/rooms/r1/lines", body)
    assert (response.status, response.json["message"]) == (status, message)
    assert "end" not in library.seen


async def test_many_requests_may_be_larger_than_one(library: Library) -> None:
    """What one message may have does not bound all of them."""
    body = '{"text": "0123456789"}' * 50
    response = await ask(application(library, max_message=200), "POST /v1/rooms/r1/lines", body)
    assert len(response.json["texts"]) == 50


async def test_compressed_requests(app: HttpApp) -> None:
    """A packed stream is unpacked as it comes."""
    body = gzip.compress(b'{"text": "a"}{"text": "b"}')
    response = await ask(app, "POST /v1/rooms/r1/lines", body, content_encoding="gzip")
    assert response.json["texts"] == ["a", "b"]
    broken = await ask(app, "POST /v1/rooms/r1/lines", body[:-4], content_encoding="gzip")
    assert broken.status == 400
    unknown = await ask(app, "POST /v1/rooms/r1/lines", body, content_encoding="lzw")
    assert unknown.status == 415


async def test_an_upload_that_breaks_off(library: Library, app: HttpApp) -> None:
    """A handler is not told that its requests have ended when the client has gone."""
    conversation = open_request(app, "POST /v1/rooms/r1/lines", JSON)
    conversation.body(b'{"text": "a"}', more=True)
    await library.entered.wait()
    conversation.leave()
    response = await conversation.done()
    assert (library.seen, response.status) == (["a"], 0)


@pytest.mark.parametrize(
    ("request_", "content_type", "part", "answer"),
    [
        ("POST /v1/rooms/r1/lines", "application/json", b'{"text": "a"}', (408, '"code":4')),
        ("POST /v1/stores", "text/csv", b"a,b", (408, '"code":4')),
        (
            "POST /lab.v1.Library/Collect",
            "application/connect+json",
            rpc.frame(0, b'{"text": "a"}'),
            (200, '"code":"deadline_exceeded"'),
        ),
        ("POST /lab.v1.Library/GetBook", "application/grpc-web+json", b"\0\0", (200, "grpc-status: 4")),
    ],
)
async def test_an_upload_that_stops(
    library: Library, request_: str, content_type: str, part: bytes, answer: tuple[int, str]
) -> None:
    """Whoever sends nothing more does not keep a call for ever; the handler does not see an end of its requests."""
    app = application(library, body_timeout=0.05)
    conversation = open_request(app, request_, [("content-type", content_type)])
    conversation.body(part, more=True)
    response = await conversation.done()
    status, text = answer
    assert (response.status, text in response.body.decode("latin-1")) == (status, True)
    assert "end" not in library.seen


async def test_a_body_of_http_2_that_is_not_announced(library: Library) -> None:
    """It has neither a length nor an encoding, and has to arrive in time as any other."""
    app = application(library, body_timeout=0.05)
    conversation = Conversation(app, scope("POST", "/v1/books:get", JSON, http_version="2"))
    conversation.body(b'{"na', more=True)
    assert (await asyncio.wait_for(conversation.done(), 10)).status == 408


async def test_a_conversation_may_pause(library: Library) -> None:
    """While replies are sent too, a client may have its reasons to be silent."""
    conversation = open_request(application(library, body_timeout=0.01), "POST /v1/rooms/r1:chat", JSON)
    conversation.body(b'{"text": "a"}', more=True)
    await conversation.until(1)
    await asyncio.sleep(0.05)
    conversation.body(b'{"text": "b"}')
    assert [line["text"] for line in (await conversation.done()).lines] == ["A", "B"]


async def test_a_deadline_in_the_middle_of_an_upload() -> None:
    """It is answered, although the client was looked for before the handler read on."""

    async def late(call: Call) -> Any:
        async with asyncio.timeout(5):
            await asyncio.sleep(3 * PATIENCE)
            return [one async for one in call.request]

    app = HttpApp([SERVICE], lambda method: late, HttpSettings())
    conversation = open_request(app, "POST /v1/rooms/r1/lines", [*JSON, ("x-server-timeout", "0.15")])
    assert (await conversation.done()).status == 504


async def test_an_upload_of_bytes(app: HttpApp) -> None:
    """A body for a stream of HttpBody comes in the parts in which it arrives."""
    conversation = open_request(app, "POST /v1/stores", [("content-type", "text/csv")])
    conversation.body(b"a,b\n", more=True)
    conversation.body(b"c,d\n")
    assert (await conversation.done()).json == {"file": {"contentType": "text/csv"}, "size": "8"}


async def test_half_duplex(app: HttpApp) -> None:
    """Both directions at once, as far as the client reads while it writes."""
    conversation = open_request(app, "POST /v1/rooms/r1:chat", JSON)
    conversation.body(b'{"text": "a"}', more=True)
    await conversation.until(1)
    assert conversation.response.lines == [{"room": "r1", "text": "A", "number": 1}]
    conversation.body(b'{"text": "b"}')
    assert [line["text"] for line in (await conversation.done()).lines] == ["A", "B"]


# WebSocket


def texts(conversation: Conversation) -> list[Any]:
    return [json.loads(message["text"]) for message in conversation.sent if message["type"] == "websocket.send"]


async def test_a_websocket(library: Library, app: HttpApp) -> None:
    """Frames both ways; an empty one ends the requests, and 1000 the call."""
    conversation = open_socket(app, "/v1/rooms/r1:chat")
    conversation.text('{"text": "a"}')
    await conversation.until(2)
    conversation.text('{"text": "b"}')
    conversation.text("")
    await conversation.done()
    assert conversation.sent[0]["type"] == "websocket.accept"
    assert texts(conversation) == [
        {"room": "r1", "text": "A", "number": 1},
        {"room": "r1", "text": "B", "number": 2},
    ]
    assert conversation.sent[-1] == {"type": "websocket.close", "code": 1000, "reason": ""}


@pytest.mark.parametrize(
    ("target", "frames"),
    [
        ("/v1/shelves/1:watch?count=2", []),
        ("/lab.v1.Library/Watch", ['{"shelf": "shelves/1", "count": 2}']),
    ],
)
async def test_a_websocket_of_replies_only(app: HttpApp, target: str, frames: list[str]) -> None:
    """A method that streams replies takes its request from the first frame, or from the path when it has no body."""
    conversation = open_socket(app, target)
    for frame in frames:
        conversation.text(frame)
    await conversation.done()
    assert texts(conversation) == books(2)


async def test_a_websocket_of_requests_only(app: HttpApp) -> None:
    """A method that streams requests answers with one frame."""
    conversation = open_socket(app, "/v1/rooms/r1/lines")
    conversation.text('{"text": "a"}')
    conversation.text("")
    await conversation.done()
    assert texts(conversation) == [{"texts": ["a"], "room": "r1"}]


@pytest.mark.parametrize(
    ("frame", "code", "message"),
    [
        ('{"text": "boom"}', 4003, "no such word"),
        ("{", 4003, "this is no JSON: EOF while parsing an object, line 1 column 2"),
        ('{"text": "%s"}' % ("x" * 300), 4008, "the message is larger than 200 bytes"),
    ],
)
async def test_a_websocket_that_fails(library: Library, frame: str, code: int, message: str) -> None:
    """A failure is the last frame, and the code of gRPC the code of the close."""
    conversation = open_socket(application(library, max_message=200), "/v1/rooms/r1:chat")
    conversation.text('{"text": "a"}')
    conversation.text(frame)
    await conversation.done()
    assert texts(conversation)[1]["error"]["message"] == message
    assert conversation.sent[-1] == {"type": "websocket.close", "code": code, "reason": message}


async def test_a_websocket_that_is_closed(library: Library, app: HttpApp) -> None:
    """A client that closes cancels the call."""
    conversation = open_socket(app, "/v1/rooms/r1:chat")
    conversation.text('{"text": "a"}')
    await conversation.until(2)
    conversation.leave("websocket.disconnect")
    await conversation.done()
    assert library.cancelled.is_set()
    assert conversation.sent[-1]["type"] == "websocket.send"


@pytest.mark.virtual_time
async def test_a_websocket_has_a_deadline() -> None:
    """A timeout in the headers holds here too."""
    conversation = open_socket(application(Library()), "/v1/rooms/r1:chat", [("x-server-timeout", "5")])
    await conversation.done()
    assert conversation.sent[-1]["code"] == 4004


@pytest.mark.parametrize(
    ("target", "code"),
    [("/nope", 4005), ("/v1/books/x", 4005), ("/v1/rooms/%zz:chat", 4003), ("/v1/rooms/r:chat?a=b", 4003)],
)
async def test_no_websocket(app: HttpApp, target: str, code: int) -> None:
    """A path without a stream, and a request that does not fit, are turned down before they are accepted."""
    conversation = open_socket(app, target)
    await conversation.done()
    assert [(message["type"], message["code"]) for message in conversation.sent] == [("websocket.close", code)]


async def test_no_websocket_with_a_status(app: HttpApp) -> None:
    """A server that can send a response instead sends a real status."""
    from tests.http.driver import scope

    extensions: dict[str, Any] = {"websocket.http.response": {}}
    conversation = Conversation(app, {**scope("GET", "/nope"), "type": "websocket", "extensions": extensions})
    conversation.event("websocket.connect")
    await conversation.done()
    assert conversation.sent[0]["status"] == 404
    assert json.loads(conversation.sent[1]["body"])["code"] == 5
