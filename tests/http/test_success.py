"""What a method declares about its success: status, Location, entity tags and conditional requests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from framework.call import Call, Handler, Method
from framework.errors import Aborted, AlreadyExists, Code, FailedPrecondition, NotFound, RpcError
from framework.http.app import HttpApp
from framework.http.methods import services_in
from framework.http.openapi import document
from framework.http.rules import RuleError
from tests.http.driver import Conversation, ask, scope
from tests.http.lab import compile_text

NOTES = """
syntax = "proto3";
package notes;
import "framework/options.proto";
import "google/api/annotations.proto";

service Notes {
  rpc Create(Note) returns (Note) {
    option (google.api.http) = { post: "/v1/notes" body: "*" };
    option (framework.http) = { status: 201 location: "/v1/notes/{id}" etag: "meta.version" };
  }
  rpc Get(Note) returns (Note) {
    option (google.api.http) = { get: "/v1/notes/{id}" };
    option (framework.http) = { etag: "meta.version" };
  }
  rpc Read(Note) returns (Note) {
    option (google.api.http) = { get: "/v1/notes/{id}:read" };
    option (framework.http) = { etag: "*" };
  }
  rpc Print(Note) returns (Note) {
    option (google.api.http) = { get: "/v1/notes/{id}:print" };
  }
  rpc Change(Note) returns (Note) {
    option (google.api.http) = { put: "/v1/notes/{id}" body: "*" };
    option (framework.http) = { if_match: "etag" };
  }
  rpc Renumber(Note) returns (Note) {
    option (google.api.http) = { patch: "/v1/notes/{id}" body: "*" };
    option (framework.http) = { if_match: "meta.number" };
  }
  rpc Delete(Note) returns (Note) {
    option (google.api.http) = { delete: "/v1/notes/{id}" };
    option (framework.http) = { status: 204 };
  }
  rpc Move(Note) returns (Note) {
    option (google.api.http) = { post: "/v1/{id=notes/**}:move" body: "*" };
    option (framework.http) = { status: 202 location: "/v1/{id=notes/**}:read" };
  }
}

message Note { string id = 1; string etag = 2; string text = 3; Meta meta = 4; }
message Meta { string version = 1; int64 number = 2; }
"""


@cache
def notes() -> Any:
    """The service."""
    return services_in(compile_text(NOTES), ["notes.Notes"])


def application(answer: Callable[[Call], Any] = lambda call: call.request) -> HttpApp:
    """An application whose methods all answer like this."""

    def bind(method: Method[Any, Any]) -> Handler:
        async def handler(call: Call) -> Any:
            return answer(call)

        return handler

    return HttpApp(notes(), bind)


def failing(error: RpcError) -> HttpApp:
    """An application whose methods all fail like this."""

    def fail(call: Call) -> Any:
        raise error

    return application(fail)


async def test_created() -> None:
    """The status is the declared one, and Location is made of the reply."""
    response = await ask(application(), "POST /v1/notes", '{"id": "a/b c", "meta": {"version": "7"}}')
    assert response.status == 201
    assert (response.headers["location"], response.headers["etag"]) == ("/v1/notes/a%2Fb%20c", '"7"')
    assert response.json["id"] == "a/b c"


async def test_location_of_several_segments() -> None:
    """A variable of many segments keeps its slashes, as it does in the path of a rule."""
    response = await ask(application(), "POST /v1/notes/a/b:move", "{}")
    assert (response.status, response.headers["location"]) == (202, "/v1/notes/a/b:read")


async def test_nowhere() -> None:
    """There is no Location, and no tag, when the reply lacks what they are made of."""
    response = await ask(application(), "POST /v1/notes", "{}")
    assert (response.status, response.headers.keys() & {"location", "etag"}) == (201, set())


async def test_failures_keep_their_status() -> None:
    """What is declared is about success."""
    assert (await ask(failing(NotFound("no")), "POST /v1/notes", "{}")).status == 404


async def test_no_content() -> None:
    """With 204 the reply is not sent, nor its type."""
    response = await ask(application(), "DELETE /v1/notes/a")
    assert (response.status, response.body, response.headers.keys() & {"content-type"}) == (204, b"", set())


async def test_the_path_that_every_method_has() -> None:
    """Under its own name a method is answered with 200, as clients of Connect expect."""
    response = await ask(application(), "POST /notes.Notes/Create", '{"id": "a"}')
    assert (response.status, response.headers.keys() & {"location", "etag"}) == (200, set())


@pytest.mark.parametrize(
    ("wanted", "status"),
    [('"v 1"', 200), ('"v%201"', 304), ('"x", W/"v%201"', 304), ("*", 304), ('"v%202"', 200), ("v%201", 200)],
)
async def test_what_the_client_has_already(wanted: str, status: int) -> None:
    """If-None-Match with the tag is answered with 304, which has the tag and no body; a tag can be any text."""

    def answer(call: Call) -> Any:
        call.request.meta.version = "v 1"
        return call.request

    response = await ask(application(answer), "GET /v1/notes/a", if_none_match=wanted)
    assert (response.status, response.headers["etag"]) == (status, '"v%201"')
    assert (response.body == b"", "content-type" in response.headers) == (status == 304, status == 200)


async def test_a_tag_of_the_whole_reply() -> None:
    """It is the same for the same reply, another for another, and weak: an encoding may differ."""
    app = application()
    one = await ask(app, "GET /v1/notes/a:read")
    other = await ask(app, "GET /v1/notes/b:read")
    assert one.headers["etag"].startswith('W/"')
    assert one.headers["etag"] != other.headers["etag"]
    seen = {"if_none_match": one.headers["etag"]}
    assert (await ask(app, "GET /v1/notes/a:read", **seen)).status == 304
    assert (await ask(app, "HEAD /v1/notes/a:read", **seen)).status == 304
    assert (await ask(app, "GET /v1/notes/b:read", **seen)).status == 200


async def test_a_tag_in_metadata() -> None:
    """A handler may send it itself, with nothing declared."""

    def answer(call: Call) -> Any:
        call.header = (("etag", '"mine"'),)
        return call.request

    response = await ask(application(answer), "GET /v1/notes/a:print", if_none_match='"mine"')
    assert (response.status, response.headers["etag"]) == (304, '"mine"')


async def test_a_handler_knows_better() -> None:
    """What it sends itself is not said twice."""

    def answer(call: Call) -> Any:
        call.header = (("location", "/elsewhere"), ("etag", '"mine"'))
        return call.request

    body = '{"id": "a", "meta": {"version": "7"}}'
    response = await ask(application(answer), "POST /v1/notes", body)
    assert (response.headers["location"], response.headers["etag"]) == ("/elsewhere", '"mine"')


async def test_a_change_of_what_was_seen() -> None:
    """If-Match sets a field, and is metadata as well."""
    calls: list[Call] = []

    def answer(call: Call) -> Any:
        calls.append(call)
        return call.request

    app = application(answer)
    for tag in ('"v%201"', "*", None):
        headers = {} if tag is None else {"if_match": tag}
        assert (await ask(app, "PUT /v1/notes/a", '{"text": "x"}', **headers)).status == 200
    assert [call.request.etag for call in calls] == ["v 1", "", ""]
    assert dict(calls[0].metadata)["if-match"] == '"v%201"'
    assert (await ask(app, "PATCH /v1/notes/a", "{}", if_match='"7"')).status == 200
    assert calls[-1].request.meta.number == 7


@pytest.mark.parametrize(
    ("request_line", "tag", "status"),
    [
        ("PUT /v1/notes/a", 'W/"7"', 412),
        ("PUT /v1/notes/a", "7", 400),
        ("PUT /v1/notes/a", '"7", "8"', 400),
        ("PATCH /v1/notes/a", '"seven"', 412),
        ("PATCH /v1/notes/a", '"99999999999999999999"', 412),
    ],
)
async def test_tags_that_cannot_be(request_line: str, tag: str, status: int) -> None:
    """A tag that never matches is answered without a call, and so is what is no tag."""
    response = await ask(failing(NotFound("called")), request_line, "{}", if_match=tag)
    assert response.status == status


@pytest.mark.parametrize(
    ("header", "error", "status"),
    [
        ("if-match", Aborted("it has changed"), 412),
        ("if-match", FailedPrecondition("it has changed"), 412),
        ("if-match", AlreadyExists("there is one"), 409),
        ("if-none-match", AlreadyExists("there is one"), 412),
        ("if-match", NotFound("there is none"), 404),
        ("x-other", Aborted("it has changed"), 409),
    ],
)
async def test_what_has_changed_meanwhile(header: str, error: RpcError, status: int) -> None:
    """The service compares; its refusal of a conditional request is 412, with the code that it said."""
    response = await ask(failing(error), "PUT /v1/notes/a", "{}", **{header: '"7"'})
    assert (response.status, response.json["code"]) == (status, Code(error.code).value)


async def test_a_get_that_fails() -> None:
    """A GET that names what it has demands nothing."""
    response = await ask(failing(FailedPrecondition("not now")), "GET /v1/notes/a", if_none_match='"7"')
    assert response.status == 400


async def test_mounted_below_a_path() -> None:
    """Location is where clients see it."""
    conversation = Conversation(application(), scope("POST", "/api/v1/notes", root_path="/api"))
    conversation.body(b'{"id": "a"}')
    response = await conversation.done()
    assert response.headers["location"] == "/api/v1/notes/a"


def test_in_openapi() -> None:
    """The document tells the status, the headers, and that 304 and 412 may be."""
    shown = document(notes())
    paths = shown["paths"]
    created = paths["/v1/notes"]["post"]["responses"]
    assert list(created["201"]["headers"]) == ["Location", "ETag"]
    assert "200" not in created
    assert {"200", "304"} < paths["/v1/notes/{id}"]["get"]["responses"].keys()
    assert "If-None-Match" in [one["name"] for one in paths["/v1/notes/{id}"]["get"]["parameters"]]
    assert {"200", "412"} < paths["/v1/notes/{id}"]["put"]["responses"].keys()
    assert "content" not in paths["/v1/notes/{id}"]["delete"]["responses"]["204"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("status: 404", "status 404 is no success; choose one from 200 to 299"),
        ('location: "/v1/notes/{uid}"', "location 'uid' is no field of notes.Note; it has id, etag, text, meta"),
        ('location: "/v1/*"', 'location "/v1/*" has a * outside of a variable'),
        ('location: "notes"', 'location "notes": a path begins with "/"'),
        ('etag: "meta"', "etag 'meta' must be a string or a whole number"),
        ('if_match: "meta.none"', "if_match 'meta.none' is no field of notes.Meta; it has version, number"),
        ('if_match: "id.none"', "if_match 'id.none': id holds no fields"),
    ],
)
def test_mistakes(options: str, message: str) -> None:
    """What cannot be is said at start, with the method."""
    text = NOTES.replace('{ if_match: "etag" }', f"{{ {options} }}")
    with pytest.raises(RuleError) as raised:
        HttpApp(services_in(compile_text(text), ["notes.Notes"]), lambda method: None)  # type: ignore[arg-type, return-value]  # none is called
    assert str(raised.value) == f"notes.Notes/Change: (framework.http): {message}"


def test_without_a_rule() -> None:
    """It says nothing about the path that every method has, and is taken for a mistake there."""
    text = NOTES.replace('option (google.api.http) = { put: "/v1/notes/{id}" body: "*" };', "")
    with pytest.raises(
        RuleError, match=r"notes.Notes/Change: \(framework.http\) is of use with a google.api.http rule"
    ):
        HttpApp(services_in(compile_text(text), ["notes.Notes"]), lambda method: None)  # type: ignore[arg-type, return-value]  # none is called
