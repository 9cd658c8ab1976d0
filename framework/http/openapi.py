"""OpenAPI 3.1 of methods, from their descriptors and HTTP rules.

    document(services)                       a dict; `json_text` and `yaml_text` write it

What OpenAPI has no word for is told in extensions: `x-grpc` of an operation is the method and how its request is put
together, `x-itemSchema` is one message of a stream, `x-websocket` a stream that is on the same path as a WebSocket too,
`x-multi-segment` a path parameter that may hold slashes, `x-methods` the order of a service, and
`x-additionalOperations` what has another HTTP method than the eight of OpenAPI (3.2 has it without the `x-`).

The same input gives the same text: nothing depends on the moment or on the order of a set.

Source: https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor, ServiceDescriptor

from framework.call import Method
from framework.errors import ConfigError
from framework.http.binding import derived_mask
from framework.http.methods import declared_rules
from framework.http.operations import (
    ERRORS,
    STATUS,
    Operations,
    Slot,
    error_response,
    first_sentence,
    path_of,
    shape,
    slots_of,
)
from framework.http.rules import Rule, default_rule
from framework.http.schemas import Schemas
from framework.http.settings import HttpSettings
from framework.options import method_of

VERSION = "3.1.1"

_METHODS = frozenset(("GET", "PUT", "POST", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))
_STATUS_COMMENTS = {
    "google.rpc.Status": "An error.",
    "google.rpc.Status.code": "The gRPC code, a number: 5 is NOT_FOUND.",
    "google.rpc.Status.message": "What went wrong, for developers.",
    "google.rpc.Status.details": "More of it for programs, such as `google.rpc.BadRequest`.",
}

Requirements = Sequence[Mapping[str, Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Info:
    """What the document says of the API as a whole.

    Attributes:
        title, version, description: of the API; Markdown is allowed in the description.
        servers: URLs that the paths are below; without any they are below where the document is.
        grpc_target: `host:port` of gRPC, for the commands that the page shows; none without.
        grpc_tls: it is over TLS; None is as the page is.
    """

    title: str = "API"
    version: str = "1"
    description: str = ""
    servers: tuple[str, ...] = ()
    grpc_target: str = ""
    grpc_tls: bool | None = None


@dataclass(frozen=True, slots=True)
class Security:
    """How callers prove who they are.

    Attributes:
        schemes: Security Scheme Objects by name, `{"bearer": {"type": "http", "scheme": "bearer"}}`.
        required: what every method needs, unless `of` says something else: any one of them is enough.
        of: what one method needs, an empty sequence for nothing, None for what is `required`.
    """

    schemes: Mapping[str, Mapping[str, Any]]
    required: Requirements = ()
    of: Callable[[Method[Any, Any]], Requirements | None] = field(default=lambda method: None)


def document(
    services: Iterable[ServiceDescriptor],
    info: Info = Info(),
    *,
    comments: Mapping[str, str] | None = None,
    security: Security | None = None,
    settings: HttpSettings | None = None,
) -> dict[str, Any]:
    """The document of some services.

    Args:
        services: descriptors, generated or dynamic.
        info: of the API as a whole.
        comments: descriptions, by the full name of what they are about; default: those of generated modules.
        security: how callers prove who they are.
        settings: of the application that serves them.

    Raises:
        RuleError: an annotation that cannot be served.
    """
    services = tuple({service.full_name: service for service in services}.values())
    found = loaded_comments(services) if comments is None else comments
    return _Document(services, info, found, security, settings or HttpSettings()).whole()


def loaded_comments(services: Iterable[ServiceDescriptor]) -> dict[str, str]:
    """The comments that generated modules carry of the files of services, wherever their descriptors come from."""
    modules = {
        module.DESCRIPTOR.name: module
        for name, module in sorted(sys.modules.items())
        if name.endswith("_pb2") and hasattr(module, "DESCRIPTOR") and hasattr(module, "__comments__")
    }
    found: dict[str, str] = {}
    seen: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        module = modules.get(file.name)
        # What is learnt by reflection is in a pool of its own.
        if module is not None and module.DESCRIPTOR.serialized_pb == file.serialized_pb:
            found.update(module.__comments__)
        for dependency in file.dependencies:
            add(dependency)

    for service in services:
        add(service.file)
    return found


def json_text(shown: Mapping[str, Any]) -> str:
    """A document as JSON."""
    return json.dumps(shown, ensure_ascii=False, indent=2) + "\n"


def yaml_text(shown: Mapping[str, Any]) -> str:
    """A document as YAML.

    Raises:
        ConfigError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise ConfigError("YAML needs PyYAML: pip install 'framework-grpc[gateway]', or take JSON") from None

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    def text(dumper: Any, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    written: str = yaml.dump(shown, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)
    return written


# The document


class _Document:
    def __init__(
        self,
        services: tuple[ServiceDescriptor, ...],
        info: Info,
        comments: Mapping[str, str],
        security: Security | None,
        settings: HttpSettings,
    ) -> None:
        self.services = services
        self.info = info
        self.comments = {**_STATUS_COMMENTS, **comments}
        self.security = security
        self.reject_unknown = not settings.json.ignore_unknown
        self.schemas = Schemas(self.comments, settings.json)
        self.operations = Operations(self.schemas, reject_unknown=self.reject_unknown)
        names = [service.name for service in services]
        self.ambiguous = {name for name in names if names.count(name) > 1}

    def whole(self) -> dict[str, Any]:
        info = self.info
        paths = self.paths()
        error = self.schemas.message(STATUS)
        if self.reject_unknown:
            self.schemas.close(self.operations.received.values())
        components: dict[str, Any] = {
            "schemas": dict(sorted(self.schemas.components.items())),
            "responses": {name: error_response(text, error) for name, text in ERRORS.items()},
            "examples": {name: {"value": value} for name, value in sorted(self.operations.examples.items())},
        }
        shown: dict[str, Any] = {"openapi": VERSION, "info": {"title": info.title, "version": info.version}}
        if info.description:
            shown["info"]["description"] = info.description
        if info.grpc_target:
            shown["x-grpc-target"] = info.grpc_target
            if info.grpc_tls is not None:
                shown["x-grpc-tls"] = info.grpc_tls
        if info.servers:
            shown["servers"] = [{"url": url} for url in info.servers]
        if self.security is not None:
            components["securitySchemes"] = {name: dict(one) for name, one in self.security.schemes.items()}
            if self.security.required:
                shown["security"] = _requirements(self.security.required)
        shown["tags"] = [
            {
                **self.schemas.described(one.full_name, {"name": one.full_name}),
                "x-methods": [method.name for method in one.methods],
            }
            for one in self.services
        ]
        return {**shown, "paths": paths, "components": components}

    def bindings(self) -> list[_Binding]:
        """What is served, in the order of the descriptors; of several that match the same, what a router takes."""
        found: list[_Binding] = []
        for service in self.services:
            for descriptor in service.methods:
                method = method_of(descriptor)
                rules = declared_rules(descriptor, method) or (default_rule(method),)
                found += (_Binding(descriptor, rule, number) for number, rule in enumerate(rules, 1))
        first: dict[Any, _Binding] = {}
        for one in sorted(found, key=lambda one: (one.rule.method.full_name, one.rule.http, one.rule.template.text)):
            first.setdefault((shape(one.rule), one.rule.http), one)
        taken = {id(one) for one in first.values()}
        return [one for one in found if id(one) in taken]

    def paths(self) -> dict[str, Any]:
        paths: dict[str, Any] = {}
        named: dict[Any, list[Slot]] = {}
        for one in self.bindings():
            slots = slots_of(one.rule)
            # OpenAPI takes two paths that differ in the names of parameters for the same: the first gives the names.
            names = named.setdefault(shape(one.rule), slots)
            slots = [dataclasses.replace(slot, name=first.name) for first, slot in zip(names, slots, strict=True)]
            item = paths.setdefault(path_of(one.rule, slots), {})
            operation = {**self.head(one), **self.operations.of(one.rule, slots)}
            operation["x-grpc"].update(self.implied(one.rule))
            if one.rule.http in _METHODS:
                item[one.rule.http.lower()] = operation
            else:
                item.setdefault("x-additionalOperations", {})[one.rule.http] = operation
        return paths

    def implied(self, rule: Rule) -> dict[str, str]:
        """The fields of a request that are set by something else than their own names."""
        found: dict[str, str] = {}
        if (mask := derived_mask(rule)) is not None:
            found["mask"] = self.schemas.name(mask)
        if rule.success is not None and rule.success.if_match:
            found["ifMatch"] = ".".join(map(self.schemas.name, rule.success.if_match))
        return found

    def head(self, one: _Binding) -> dict[str, Any]:
        """What is said of an operation whatever its rule is."""
        service: Any = one.descriptor.containing_service
        shown: dict[str, Any] = {"tags": [service.full_name]}
        if text := self.comments.get(one.descriptor.full_name, ""):
            shown["summary"] = first_sentence(text)
            if shown["summary"] != text:
                shown["description"] = text
        name = service.full_name.replace(".", "_") if service.name in self.ambiguous else service.name
        shown["operationId"] = f"{name}_{one.descriptor.name}" + (f"_{one.number}" if one.number > 1 else "")
        if one.descriptor.GetOptions().deprecated or service.GetOptions().deprecated:
            shown["deprecated"] = True
        if self.security is not None and (needed := self.security.of(one.rule.method)) is not None:
            shown["security"] = _requirements(needed)
        return shown


@dataclass(frozen=True, slots=True)
class _Binding:
    """One rule of a method, to be documented."""

    descriptor: MethodDescriptor
    rule: Rule
    number: int


def _requirements(needed: Requirements) -> list[dict[str, list[str]]]:
    return [{name: list(scopes) for name, scopes in one.items()} for one in needed]
