"""Path templates: what is parsed, and what is refused with which words."""

from __future__ import annotations

import re
from typing import Any

import pytest
from google.api import http_pb2
from google.protobuf import descriptor_pb2, text_format

from framework.call import Method
from framework.errors import ConfigError
from framework.http.methods import http_rule_of, pool_of, services_in
from framework.http.rules import RuleError, Template, default_rule, rules_of
from framework.options import method_of
from tests.http import lab


@pytest.mark.parametrize(
    ("text", "segments", "variables", "verb"),
    [
        ("/", (), [], ""),
        ("/v1", ("v1",), [], ""),
        ("/v1:run", ("v1",), [], "run"),
        ("/:run", (), [], "run"),
        ("/v1/*/b/**", ("v1", "*", "b", "**"), [], ""),
        ("/v1/{a}", ("v1", "*"), [(("a",), 1, 2, True)], ""),
        ("/v1/{a.b=*}/{c}", ("v1", "*", "*"), [(("a", "b"), 1, 2, True), (("c",), 2, 3, True)], ""),
        ("/v1/{a=x/*/y}:z", ("v1", "x", "*", "y"), [(("a",), 1, 4, False)], "z"),
        ("/{a=**}", ("**",), [(("a",), 0, None, False)], ""),
        ("/{a=x/**}:v", ("x", "**"), [(("a",), 0, None, False)], "v"),
        ("/{a=x}", ("x",), [(("a",), 0, 1, False)], ""),
        ("/caf%C3%A9/@me,you", ("café", "@me,you"), [], ""),
    ],
)
def test_templates(text: str, segments: tuple[str, ...], variables: list[Any], verb: str) -> None:
    """Every form of the grammar."""
    found = Template.parse(text)
    assert (segments, verb) == (found.segments, found.verb)
    assert variables == [(one.path, one.start, one.end, one.single) for one in found.variables]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'a path begins with "/"'),
        ("v1", 'a path begins with "/"'),
        ("//", "a segment expected at character 2, not '/'"),
        ("/v1/", "a segment expected at character 5, not the end"),
        ("/v1/{a", '"}" expected at character 7, not the end'),
        ("/v1/{a=b/{c}}", "a variable inside a variable at character 10"),
        ("/v1/{1}", "the name of a field expected at character 6, not '1'"),
        ("/v1/{a.}", "the name of a field expected at character 8, not '}'"),
        ("/v1/**/b", '"**" must be the last segment'),
        ("/v1/{a=**}/b", '"**" must be the last segment'),
        ("/v1:", "a verb expected at character 5, not the end"),
        ("/v1:a:b", "the end expected at character 6, not ':'"),
        ("/v1/a?b", "the end expected at character 6, not '?'"),
        ("/v1/a*", "the end expected at character 6, not '*'"),
        ("/v1/***", "the end expected at character 7, not '*'"),
        ("/v1/%zz", "a segment expected at character 5, not '%'"),
    ],
)
def test_templates_that_are_none(text: str, message: str) -> None:
    """What is wrong is said with the place."""
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        Template.parse(text)
    assert message == str(raised.value)


def method(name: str) -> Method[Any, Any]:
    (service,) = services_in(lab.pool(), ["lab.v1.Library"])
    return method_of(service.methods_by_name[name])


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        ("GetBook", 'get: "/{x}"', "variable 'x' is no field of lab.v1.GetBookRequest; it has name, read_mask, big"),
        ("GetBook", 'get: "/{name.x}"', "{name.x}: name holds no fields"),
        (
            "ListBooks",
            'get: "/{filter}"',
            "{filter}: lab.v1.ListBooksRequest.Filter cannot be in a path; take one of its fields",
        ),
        ("ListBooks", 'get: "/{filter.tags}"', "{filter.tags}: tags is repeated, and cannot be in a path"),
        ("ListBooks", 'get: "/{filter.scores}"', "{filter.scores}: scores is a map, and cannot be in a path"),
        ("GetBook", 'get: "/{name}/{name}"', "{name} and {name} set the same field"),
        ("GetBook", 'get: "/{name"', '"}" expected at character 7, not the end'),
        (
            "CreateBook",
            'post: "/" body: "x"',
            "body 'x' is no field of lab.v1.CreateBookRequest; it has shelf, book, request_id",
        ),
        ("CreateBook", 'post: "/" body: "book.name"', "body 'book.name' must be a field of the request itself"),
        ("Echo", 'post: "/" body: "ri64"', "body 'ri64' is repeated; it must be one value"),
        ("Echo", 'post: "/" body: "minner"', "body 'minner' is a map; it must be one value"),
        (
            "GetBook",
            'get: "/" response_body: "x"',
            "response_body 'x' is no field of lab.v1.Book; "
            "it has name, title, pages, color, tags, author, labels, published, extra",
        ),
        ("GetBook", 'custom { kind: "get" path: "/" }', "'get' is no HTTP method; they are written in capitals"),
        ("GetBook", 'body: "*"', "an HTTP rule without a path; write get, put, post, delete, patch or custom"),
        (
            "GetBook",
            'get: "/a" additional_bindings { get: "/b" additional_bindings { get: "/c" } }',
            "additional_bindings have additional_bindings; one level is allowed",
        ),
    ],
)
def test_rules_that_cannot_be_served(name: str, rule: str, message: str) -> None:
    """One line says which method, which rule, and what is wrong."""
    with pytest.raises(RuleError) as raised:
        rules_of(method(name), text_format.Parse(rule, http_pb2.HttpRule()))
    told = str(raised.value).removeprefix(f"lab.v1.Library/{name}: ")
    assert message == (told.partition('": ')[2] or told)  # behind the path of the rule, where it has one


def test_the_annotations_of_a_dynamic_pool() -> None:
    """Annotations are read from descriptors of any pool, additional bindings in order."""
    (service,) = services_in(lab.pool(), ["lab.v1.Library"])
    descriptor = service.methods_by_name["GetBook"]
    annotation = http_rule_of(descriptor)
    assert annotation is not None
    found = rules_of(method_of(descriptor), annotation)
    assert [str(rule) for rule in found] == [
        "GET /v1/{name=shelves/*/books/*} (lab.v1.Library/GetBook)",
        "GET /v1/books/{name} (lab.v1.Library/GetBook)",
        "POST /v1/books:get (lab.v1.Library/GetBook)",
    ]


def test_a_method_of_a_descriptor() -> None:
    """Arity, idempotency and the framework's options come from the descriptor."""
    found = method("GetBook")
    assert (found.full_name, found.idempotency, found.timeout) == ("lab.v1.Library/GetBook", 1, 30.5)
    assert str(default_rule(found)) == "POST /lab.v1.Library/GetBook (lab.v1.Library/GetBook)"
    chat = method("Chat")
    assert (chat.client_streaming, chat.server_streaming) == (True, True)
    assert chat.request.__name__ == "Line"


def test_a_set_of_files_in_any_order() -> None:
    """A file may come before what it imports; one whose import is missing is told."""
    files = descriptor_pb2.FileDescriptorSet()

    def add(descriptor: Any) -> None:
        if descriptor.name not in [file.name for file in files.file]:
            descriptor.CopyToProto(files.file.add())
            for imported in descriptor.dependencies:
                add(imported)

    add(lab.file("library"))
    (service,) = services_in(pool_of(files), ["lab.v1.Library"])
    assert service.methods_by_name["Echo"].input_type.full_name == "lab.v1.All"
    del files.file[-1]
    with pytest.raises(ConfigError, match=r" cannot be used: "):
        pool_of(files)


def test_a_service_that_is_not_there() -> None:
    """A name that the descriptors do not have is told."""
    with pytest.raises(ConfigError, match=r"there is no service lab.v1.Nope in these descriptors"):
        services_in(lab.pool(), ["lab.v1.Nope"])
