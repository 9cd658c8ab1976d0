"""The OpenAPI document: what it says of rules, messages, streams and errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from openapi_spec_validator import validate

from example_services.shop.catalog.v1 import catalog_pb2
from framework.http.json import Json, JsonOptions
from framework.http.methods import files_of, pool_of, services_in
from framework.http.openapi import Info, Security, document, json_text, yaml_text
from framework.http.settings import HttpSettings
from tests.http import kiosk, lab

LIBRARY = services_in(lab.pool(), ["lab.v1.Library"])


@cache
def kiosk_document() -> dict[str, Any]:
    return kiosk.described()


def operation(http: str, path: str) -> dict[str, Any]:
    found: dict[str, Any] = kiosk_document()["paths"][path][http]
    return found


def parameters(http: str, path: str) -> dict[str, Any]:
    """Of an operation, by place and name, without their descriptions."""
    return {
        f"{one['in']} {one['name']}": {key: value for key, value in one.items() if key not in ("in", "name")}
        for one in operation(http, path).get("parameters", [])
    }


def schema(name: str) -> dict[str, Any]:
    found: dict[str, Any] = kiosk_document()["components"]["schemas"][f"kiosk.v1.{name}"]
    return found


def described(text: str, **more: Any) -> dict[str, Any]:
    """The document of the service `t.S` of a proto file."""
    proto = f'syntax = "proto3"; package t; import "google/api/annotations.proto"; {text}'
    return document(services_in(lab.compile_text(proto), ["t.S"]), **more)


def rules(*lines: str) -> str:
    """A service of which method M1, M2, ... have these rules."""
    methods = (
        f"rpc M{at}(Q) returns (Q) {{ option (google.api.http) = {{ {one} }}; }}" for at, one in enumerate(lines, 1)
    )
    return f"message Q {{ string a = 1; string b = 2; int32 n = 3; Q q = 4; }} service S {{ {' '.join(methods)} }}"


@pytest.mark.parametrize("services", [kiosk.SERVICES, LIBRARY, (catalog_pb2.DESCRIPTOR.services_by_name["Catalog"],)])
def test_documents_are_valid(services: tuple[ServiceDescriptor, ...]) -> None:
    """An independent validator has nothing to say."""
    validate(document(services, Info("All", servers=("https://example.com/api",)), security=kiosk.BEARER))


def test_the_same_text_every_time() -> None:
    """It depends neither on the order of the files nor on the run."""
    again = pool_of(descriptor_pb2.FileDescriptorSet(file=reversed(list(kiosk._FILES.values()))))
    one = document(services_in(again, ["kiosk.v1.Kiosk"]), comments=kiosk.COMMENTS)
    other = document(kiosk.SERVICES, comments=dict(reversed(kiosk.COMMENTS.items())))
    assert json_text(one) == json_text(other)


def test_json_and_yaml_say_the_same() -> None:
    """Words that YAML would read as something else are kept, and what has lines is shown in lines."""
    shown = kiosk_document()
    assert shown == json.loads(json_text(shown))
    assert shown == yaml.safe_load(yaml_text(shown))
    tricky: Mapping[str, Any] = {"a": ["no", "1e3", "12:30", "=", "~", "\u2028é\x7f", "x: y", "# x"], "b": "one\ntwo"}
    assert tricky == yaml.safe_load(yaml_text(tricky))
    assert "b: |-\n  one\n  two\n" in yaml_text(tricky)


def test_every_binding_is_an_operation() -> None:
    """Annotations with all their bindings; POST under its own name for a method that has none."""
    found = {
        (http, path): one["operationId"]
        for path, item in kiosk_document()["paths"].items()
        for http, one in [*item.items(), *item.get("x-additionalOperations", {}).items()]
        if not http.startswith("x-")
    }
    assert found == {
        ("get", "/v1/racks/{rack}/items/{item}"): "Kiosk_GetItem",
        ("get", "/v1/items/{name}"): "Kiosk_GetItem_2",
        ("delete", "/v1/racks/{rack}/items/{item}"): "Kiosk_DeleteItem",
        ("patch", "/v1/racks/{rack}/items/{item}"): "Kiosk_UpdateItem",
        ("patch", "/v1/shelves/{item.shelf}/item"): "Kiosk_UpdateItem_2",
        ("get", "/v1/items"): "Kiosk_ListItems",
        ("get", "/v1/items:only"): "Kiosk_ListItems_2",
        ("post", "/v1/racks/{rack}/items"): "Kiosk_CreateItem",
        ("QUERY", "/v1/find"): "Kiosk_FindItem",
        ("post", "/kiosk.v1.Kiosk/Echo"): "Kiosk_Echo",
        ("get", "/v1/items:watch"): "Kiosk_Watch",
        ("post", "/v1/racks/{rack}/notes"): "Kiosk_Collect",
        ("post", "/v1/racks/{rack}:chat"): "Kiosk_Chat",
        ("get", "/v1/photos/{path}"): "Kiosk_Photo",
        ("put", "/v1/photos/{path}"): "Kiosk_Hang",
    }


@pytest.mark.parametrize(
    ("template", "path", "names"),
    [
        ("/v1/{a}", "/v1/{a}", {"a": "{a}"}),
        ("/v1/{q.a}:run", "/v1/{q.a}:run", {"q.a": "{q.a}"}),
        ("/v1/{a=shelves/*/boxes/*}/x", "/v1/shelves/{shelf}/boxes/{box}/x", {"a": "shelves/{shelf}/boxes/{box}"}),
        ("/v1/{a=addresses/*}/{b=companies/*}", "/v1/addresses/{address}/companies/{company}", None),
        ("/v1/{a=statuses/*}", "/v1/statuses/{status}", None),
        ("/v1/{a=x/*}/{b=x/*}", "/v1/x/{x}/x/{x_2}", {"a": "x/{x}", "b": "x/{x_2}"}),
        ("/v1/{a=fixed}", "/v1/fixed", {"a": "fixed"}),
        ("/v1/{a=x/**}", "/v1/x/{x}", {"a": "x/{x}"}),
        ("/*/{a=**}", "/{segment}/{a}", {"a": "{a}"}),
        ("/caf%C3%A9/a%20b", "/caf%C3%A9/a%20b", None),
    ],
)
def test_paths(template: str, path: str, names: dict[str, str] | None) -> None:
    """A `*` becomes a parameter with a name of its own, and it is told how the fields come from them."""
    paths = described(rules(f'get: "{template}"'))["paths"]
    assert [path] == list(paths)
    if names is not None:
        assert names == paths[path]["get"]["x-grpc"]["path"]


def test_paths_that_differ_in_names_only_are_one() -> None:
    """OpenAPI has one entry for them; what the first is called, all are."""
    paths = described(rules('get: "/v1/{a}/x"', 'delete: "/v1/{b}/x"', 'get: "/v1/{b}/x"'))["paths"]
    assert list(paths) == ["/v1/{a}/x"]
    item = paths["/v1/{a}/x"]
    assert {http: one["operationId"] for http, one in item.items()} == {"get": "S_M1", "delete": "S_M2"}
    assert item["delete"]["x-grpc"]["path"] == {"b": "{a}"}
    validate(described(rules('get: "/v1/{a}/x"', 'delete: "/v1/{b}/x"')))


def test_query_parameters() -> None:
    """Everything that neither path nor body sets and one text can say; a message that holds itself ends."""
    found = parameters("get", "/v1/items")
    assert list(found) == [
        "query pageSize",
        "query pageToken",
        "query kinds",
        "query labels",
        "query filter.after",
        "query filter.sold",
        "query filter.price.currency",
        "query filter.price.minorUnits",
    ]
    assert found["query pageSize"]["description"] == "At most 100."
    assert found["query kinds"]["schema"] == {"type": "array", "items": {"$ref": "#/components/schemas/kiosk.v1.Kind"}}
    assert found["query labels"]["style"] == "deepObject"
    assert found["query filter.sold"]["schema"] == {"type": "boolean"}
    found = parameters("patch", "/v1/racks/{rack}/items/{item}")
    assert list(found) == ["path rack", "path item", "query updateMask", "query revision", "header If-Match"]
    assert list(parameters("post", "/v1/racks/{rack}:chat")) == ["path rack"]
    assert list(parameters("get", "/v1/items/{name}")) == ["path name", "query readMask", "header If-None-Match"]


def test_path_parameters() -> None:
    """They have the types of their fields, and say when they may hold slashes."""
    assert parameters("get", "/v1/photos/{path}")["path path"] == {
        "required": True,
        "schema": {"type": "string"},
        "x-multi-segment": True,
    }
    number = described(rules('get: "/v1/{n}"'))["paths"]["/v1/{n}"]["get"]["parameters"][0]
    assert (number["name"], number["schema"]["type"], number["schema"]["format"]) == ("n", "integer", "int32")


def test_bodies() -> None:
    """The whole request without what the path sets, or one field; all of it is optional in a PATCH."""
    paths = described(rules('post: "/v1/{a}" body: "*"', 'post: "/v2" body: "*"', 'put: "/v3/{a}" body: "q"'))["paths"]
    schemas = [
        one["requestBody"]["content"]["application/json"]["schema"] for item in paths.values() for one in item.values()
    ]
    assert list(schemas[0]["properties"]) == ["b", "n", "q"]
    assert schemas[1:] == [{"$ref": "#/components/schemas/t.Q"}] * 2
    created = operation("post", "/v1/racks/{rack}/items")["requestBody"]
    assert created["required"] is True
    assert created["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/kiosk.v1.Item"}
    patched = operation("patch", "/v1/racks/{rack}/items/{item}")["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert "required" not in patched
    assert schema("Item")["required"] == ["title"]
    assert operation("put", "/v1/photos/{path}")["requestBody"]["content"] == {"application/octet-stream": {}}


def test_replies() -> None:
    """The whole reply, one field of it, or whatever an HttpBody holds."""
    whole = operation("get", "/v1/items")["responses"]["200"]["content"]["application/json"]["schema"]
    assert whole == {"$ref": "#/components/schemas/kiosk.v1.ListItemsReply"}
    part = operation("get", "/v1/items:only")["responses"]["200"]["content"]["application/json"]["schema"]
    assert part == {"type": "array", "items": {"$ref": "#/components/schemas/kiosk.v1.Item"}}
    assert operation("get", "/v1/photos/{path}")["responses"]["200"]["content"] == {"*/*": {}}


def test_streams() -> None:
    """Each format has its content type, and one message of it its schema."""
    watch, chat, collect, get = (
        operation("get", "/v1/items:watch"),
        operation("post", "/v1/racks/{rack}:chat"),
        operation("post", "/v1/racks/{rack}/notes"),
        operation("get", "/v1/items"),
    )
    item = {"$ref": "#/components/schemas/kiosk.v1.Item"}
    replies = watch["responses"]["200"]["content"]
    assert list(replies) == ["application/x-ndjson", "application/json", "text/event-stream"]
    assert item == replies["application/x-ndjson"]["x-itemSchema"] == replies["text/event-stream"]["x-itemSchema"]
    records = replies["application/json"]["schema"]["items"]["anyOf"]
    assert [item, {"error": {"$ref": "#/components/schemas/google.rpc.Status"}}] == [
        records[0],
        records[1]["properties"],
    ]
    assert list(chat["requestBody"]["content"]) == ["application/json", "application/x-ndjson"]
    assert list(collect["responses"]["200"]["content"]) == ["application/json"]
    assert [one.get("x-websocket") for one in (watch, chat, collect, get)] == [True, True, True, None]
    assert watch["x-grpc"] == {"method": "kiosk.v1.Kiosk/Watch", "serverStreaming": True}


def test_fields() -> None:
    """Every kind of field in the form that ProtoJSON has for it."""
    found = schema("Bag")["properties"]
    whole = {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}
    double = {
        "anyOf": [{"type": "number", "format": "double"}, {"type": "string", "enum": ["NaN", "Infinity", "-Infinity"]}]
    }
    kind = {"$ref": "#/components/schemas/kiosk.v1.Kind"}
    money = {"$ref": "#/components/schemas/kiosk.v1.Money"}
    expected = {
        "whole": whole,
        "large": {"type": "string", "format": "int64"},
        "natural": {"type": "integer", "format": "uint32", "minimum": 0, "maximum": 2**32 - 1},
        "largeNatural": {"type": "string", "format": "uint64"},
        "weight": double,
        "open": {"type": "boolean"},
        "label": {"type": "string"},
        "data": {"type": "string", "format": "byte", "contentEncoding": "base64"},
        "kind": kind,
        "kinds": {"type": "array", "items": kind},
        "prices": {"type": "object", "additionalProperties": money},
        "numbers": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "propertyNames": {"format": "int64"},
        },
        "answers": {
            "type": "object",
            "additionalProperties": double,
            "propertyNames": {"enum": ["true", "false"]},
        },
        "extra": {"type": "object", "additionalProperties": True},
        "anyValue": {},
        "list": {"type": "array", "items": {}},
        "nothing": {"type": "null"},
        "mask": {"type": "string", "format": "google-fieldmask"},
        "maybeLarge": {"type": ["string", "null"], "format": "int64"},
        "maybeText": {"type": ["string", "null"]},
        "optionalWhole": whole,
        "when": {"type": "string", "format": "date-time"},
        "empty": {"$ref": "#/components/schemas/google.protobuf.Empty"},
        "inner": {"$ref": "#/components/schemas/kiosk.v1.Bag", "description": "A bag in a bag."},
        "amount": money,
    }
    assert expected == {name: found[name] for name in expected}
    assert schema("Kind") == {
        "type": "string",
        "enum": ["KIND_UNSPECIFIED", "NEWSPAPER", "MAGAZINE"],
        "x-enum-descriptions": ["", "Of the day.", "Of the week, or the month."],
        "description": "What an item is.",
    }


def test_oneofs() -> None:
    """At most one of them; a field that is merely optional is no choice."""
    found = schema("Bag")
    names = ["word", "otherKind", "amount", "flag"]
    assert {"choice": names} == found["x-oneofs"]
    needed = [{"required": [name]} for name in names]
    assert [{"oneOf": [*needed, {"not": {"anyOf": needed}}]}] == found["allOf"]


def test_what_is_said_of_fields() -> None:
    """Behaviour, deprecation and comments; a required text is not empty, since an empty one is not written."""
    found = schema("Item")["properties"]
    assert found["name"]["readOnly"] is True
    assert found["shelf"]["deprecated"] is True
    assert found["title"] == {"type": "string", "minLength": 1, "description": "On the front page."}
    assert operation("get", "/v1/items/{name}").get("deprecated") is None
    assert kiosk_document()["paths"]["/v1/find"]["x-additionalOperations"]["QUERY"]["deprecated"] is True


def test_comments_become_descriptions() -> None:
    """Of services, methods, messages; what authors write to each other is left out."""
    (tag,) = kiosk_document()["tags"]
    assert tag["name"] == "kiosk.v1.Kiosk"
    assert tag["x-methods"][:3] == ["GetItem", "ListItems", "CreateItem"]
    assert tag["description"].startswith("Sells newspapers and whatever else is on its racks.\n\nEverything")
    assert "authors" not in tag["description"]
    found = operation("get", "/v1/items/{name}")
    assert (
        found["summary"],
        found["description"],
    ) == ("One item.", "One item. NOT_FOUND when the rack does not have it.")
    assert schema("Item")["description"] == "Something on a rack."
    assert found["responses"]["200"]["description"] == "Something on a rack."


CATALOG = "shop.catalog.v1.Catalog"


def files_below(file: FileDescriptor) -> list[descriptor_pb2.FileDescriptorProto]:
    """A file behind all that it imports."""
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    found = {one.name: one for dependency in file.dependencies for one in files_below(dependency)}
    return [*found.values(), proto]


def test_generated_modules_bring_their_comments() -> None:
    """What `framework generate` wrote is documented without the proto files."""
    found = document([catalog_pb2.DESCRIPTOR.services_by_name["Catalog"]])
    assert found["tags"][0]["description"] == "What the shop sells, and for how much."
    money = found["components"]["schemas"]["shop.common.v1.Money"]  # of a file that it imports
    assert money["description"]
    learnt = services_in(pool_of(descriptor_pb2.FileDescriptorSet(file=files_below(catalog_pb2.DESCRIPTOR))), [CATALOG])
    assert document(learnt) == found  # by reflection, from a service whose modules are here
    other = files_below(catalog_pb2.DESCRIPTOR)
    other[-1].service[0].method[0].options.deprecated = True
    changed = document(services_in(pool_of(descriptor_pb2.FileDescriptorSet(file=other)), [CATALOG]))
    assert "description" not in changed["tags"][0]  # the modules are of another version
    assert "tags" in (dynamic := document(LIBRARY))
    assert "description" not in dynamic["tags"][0]


def test_errors() -> None:
    """Every operation has every status that a gRPC code becomes, and the codes stand beside it."""
    found = operation("get", "/v1/items")["responses"]
    statuses = ["400", "401", "403", "404", "409", "429", "499", "500", "501", "503", "504"]
    assert ["200", *statuses, "default"] == list(found)
    responses = kiosk_document()["components"]["responses"]
    assert responses["Error400"]["description"] == "INVALID_ARGUMENT, FAILED_PRECONDITION, OUT_OF_RANGE"
    content = responses["Error400"]["content"]["application/json"]["schema"]
    assert content == {"$ref": "#/components/schemas/google.rpc.Status"}


def test_security() -> None:
    """Schemes are handed in; a method may need something else, or nothing."""
    security = Security(
        {"key": {"type": "apiKey", "in": "header", "name": "x-key"}},
        required=[{"key": []}],
        of=lambda method: () if method.name == "Echo" else [{"key": ["write"]}] if method.name == "Hang" else None,
    )
    found = document(kiosk.SERVICES, security=security)
    validate(found)
    assert found["security"] == [{"key": []}]
    assert found["paths"]["/kiosk.v1.Kiosk/Echo"]["post"]["security"] == []
    assert found["paths"]["/v1/photos/{path}"]["put"]["security"] == [{"key": ["write"]}]
    assert "security" not in found["paths"]["/v1/items"]["get"]
    assert list(found["components"]["securitySchemes"]) == ["key"]


def test_settings_are_followed() -> None:
    """Names, numbers of enums and unknown fields are documented as they are served."""
    options = JsonOptions(proto_names=True, enum_numbers=True, ignore_unknown=True)
    found = kiosk.described(settings=HttpSettings(json=options))
    schemas = found["components"]["schemas"]
    assert "minor_units" in schemas["kiosk.v1.Money"]["properties"]
    assert schemas["kiosk.v1.Kind"]["enum"] == [0, 1, 2]
    assert "additionalProperties" not in schemas["kiosk.v1.Bag"]
    assert schema("Bag")["additionalProperties"] is False
    assert "additionalProperties" not in schema("ListItemsReply")  # which is only received
    validate(found)


def test_services_of_the_same_name_are_told_apart() -> None:
    """Identifiers of operations are unique."""
    other = lab.compile_text('syntax = "proto3"; package b; message Q {} service Kiosk { rpc Echo(Q) returns (Q); }')
    found = document([*kiosk.SERVICES, *services_in(other, ["b.Kiosk"])])
    validate(found)
    assert found["paths"]["/b.Kiosk/Echo"]["post"]["operationId"] == "b_Kiosk_Echo"
    assert found["paths"]["/kiosk.v1.Kiosk/Echo"]["post"]["operationId"] == "kiosk_v1_Kiosk_Echo"


@pytest.mark.parametrize("services", [kiosk.SERVICES, LIBRARY], ids=["kiosk", "library"])
def test_examples_are_messages(services: tuple[ServiceDescriptor, ...]) -> None:
    """Each can be read as the message that it is an example of."""
    codecs = Json(files_of(services))
    pool: Any = services[0].file.pool
    examples = document(services)["components"]["examples"]
    assert len(examples) > 5
    for name, example in examples.items():
        kind = message_factory.GetMessageClass(pool.FindMessageTypeByName(name.removesuffix(".sent")))
        codecs.codec(kind).parse(json.dumps(example["value"]).encode())


def test_examples_show_what_is_sent_and_what_comes_back() -> None:
    """What the server sets is only in what comes back; nothing deprecated, one of a choice, no endless nesting."""
    examples = kiosk_document()["components"]["examples"]
    assert examples["kiosk.v1.Item.sent"]["value"] == {
        "title": "title",
        "kind": "NEWSPAPER",
        "price": {"currency": "EUR", "minorUnits": "1"},
        "tags": ["tags"],
        "stock": {"key": 1},
        "published": "2030-01-02T03:04:05Z",
        "publisher": "publisher",
    }
    assert examples["kiosk.v1.Item"]["value"]["name"] == "the item"
    assert "inner" not in examples["kiosk.v1.Bag"]["value"]


def test_what_is_required_can_be_told_to_be_missing() -> None:
    """A number or a bool that is left out is 0 or false; of others, the default stands for nothing at all."""
    kinds = (
        "int32 n",
        "bool b",
        "string s",
        "K k",
        "repeated string r",
        "map<string, string> m",
        "Q q",
        "optional int32 o",
    )
    lines = (f"{kind} = {at} [(google.api.field_behavior) = REQUIRED];" for at, kind in enumerate(kinds, 1))
    found = described(
        'import "google/api/field_behavior.proto"; enum K { NONE = 0; SOME = 1; } '
        f"message Q {{ {' '.join(lines)} }} service S {{ rpc M(Q) returns (Q); }}"
    )["components"]["schemas"]["t.Q"]
    assert found["required"] == ["s", "k", "r", "m", "q", "o"]
    fields = found["properties"]
    assert fields["s"]["minLength"] == fields["r"]["minItems"] == fields["m"]["minProperties"] == 1
    assert fields["k"]["not"] == {"enum": ["NONE", 0]}
