"""The service modules: for each service its methods as data, a servicer to subclass and a client to call."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from framework.codegen.comments import cleaned
from framework.codegen.compiler import ProtoError, mistake
from framework.codegen.layout import Layout, identifier, import_line
from framework.codegen.messages import UNTYPED, header

if TYPE_CHECKING:
    from google.protobuf.descriptor_pb2 import (
        DescriptorProto,
        FileDescriptorProto,
        MethodDescriptorProto,
        ServiceDescriptorProto,
    )

WIDTH = 120
# Field numbers: the name of anything, a service of a file, a method of that, and the options of both.
NAME, SERVICE, METHOD, OPTIONS, SERVICE_OPTIONS = 1, 6, 2, 4, 3

Types = Mapping[str, tuple[str, str]]
"""By full name with a leading dot: the proto file that defines a message, and its name there, `Outer.Inner`."""


def message_types(files: Mapping[str, FileDescriptorProto]) -> Types:
    """Every message of every file."""
    types: dict[str, tuple[str, str]] = {}

    def add(file: FileDescriptorProto, messages: list[DescriptorProto], outer: str) -> None:
        for message in messages:
            name = f"{outer}.{message.name}"
            types["." + (f"{file.package}{name}" if file.package else name[1:])] = (file.name, name[1:])
            add(file, list(message.nested_type), name)

    for file in files.values():
        add(file, list(file.message_type), "")
    return types


def service_module(file: FileDescriptorProto, types: Types, layout: Layout, proto_dir: Path) -> str:
    """The whole `_rpc.py` of a proto file.

    Raises:
        ProtoError: an option of a method has a value that makes no sense, or Python cannot have a name.
    """
    return _Writer(file, types, layout, proto_dir).module()


class _Names:
    """What a module imports, under names that no method of the module takes.

    A class sees its own methods before the module's names: after `def Metadata(...)`, `metadata: Metadata` would name
    the method. A name that a method has is imported with an underscore.
    """

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken
        self._imports: dict[tuple[str, str], str] = {}

    def use(self, package: str, name: str, preferred: str = "") -> str:
        """The local name of something imported."""
        local = self._imports.get((package, name))
        if local is None:
            local = preferred or name
            while local in self._taken or local in self._imports.values():
                local = f"_{local}"
            self._imports[package, name] = local
        return local

    def untyped(self) -> bool:
        """Whether a package is imported that does not declare its types."""
        return any(package.startswith("google.") and package != "google.protobuf" for package, _ in self._imports)

    def lines(self) -> list[str]:
        """The import statements: the standard library, installed packages, the framework, this tree."""
        groups: tuple[list[str], ...] = ([], [], [], [])
        whole: dict[str, list[str]] = {}
        for (package, name), local in sorted(self._imports.items()):
            if (package, name, local) == ("builtins", "float", "float"):
                continue
            if package in STANDARD or package == "framework.rpc":
                whole.setdefault(package, []).append(name if name == local else f"{name} as {local}")
            else:
                groups[1 if package.startswith("google") else 3].append(import_line(package, name, local))
        for package, names in whole.items():
            groups[0 if package in STANDARD else 2].extend(_wrapped(f"from {package} import ", names))
        return [line for group in groups if group for line in ["", *group]]


STANDARD = ("abc", "builtins", "collections.abc", "operator", "typing")


def _wrapped(start: str, names: list[str]) -> list[str]:
    line = start + ", ".join(names)
    return [line] if len(line) <= WIDTH else [f"{start}(", *(f"    {name}," for name in names), ")"]


def _literal(value: Any, indent: int, beside: int = 0) -> str:
    """A value in Python, broken as formatters break it.

    Args:
        value: a mapping, a list, a text or a number.
        indent: columns that the line is indented by.
        beside: columns that something else takes on it.
    """
    line = repr(value).replace("'", '"')  # texts are names, and have no quotes
    if not isinstance(value, dict) or indent + beside + len(line) <= WIDTH:
        return line
    inner = indent + 4
    items = (f'{" " * inner}"{name}": {_literal(one, inner, len(name) + 5)},' for name, one in value.items())
    return "\n".join(["{", *items, " " * indent + "}"])


def _refused(name: str, others: Collection[str]) -> str:
    """Why a method cannot have this name beside these others; empty when it can."""
    if name.startswith("__") or (name.startswith("_") and name.endswith("__")):
        return f"method {name}: Python has its own use for names with two underscores. Rename it."
    for other in others:
        if other != name and identifier(other) == identifier(name):
            return f"methods {name} and {other} would both be {identifier(name)} in Python. Rename one of them."
        if f"_{identifier(other)}" == identifier(name):
            return f"method {name}: that is where a client keeps what calls {other}. Rename one of them."
    return ""


class _Writer:
    def __init__(self, file: FileDescriptorProto, types: Types, layout: Layout, proto_dir: Path) -> None:
        self.file = file
        self.proto_dir = proto_dir
        self.types = types
        self.layout = layout
        self.names = _Names({identifier(method.name) for service in file.service for method in service.method})
        self.lines: list[str] = []
        self.comments = {tuple(where.path): where for where in file.source_code_info.location}
        modules = {
            layout.module(types[name][0])
            for service in file.service
            for method in service.method
            for name in (method.input_type, method.output_type)
        }
        names = [module.rpartition(".")[2] for module in modules]
        self.ambiguous = {name for name in names if names.count(name) > 1}

    def module(self) -> str:
        self.refuse()
        for index, service in enumerate(self.file.service):
            self.methods(service, index)
            self.servicer(service, index)
            self.client(service, index)
        untyped = ("", *UNTYPED, "# pyright: reportMissingTypeStubs=false")
        start = [
            header(self.file.name),
            *(untyped if self.names.untyped() else ()),
            "",
            "from __future__ import annotations",
        ]
        return "\n".join([*start, *self.names.lines(), *self.lines, ""])

    def refuse(self) -> None:
        """Raise ProtoError for names that the classes of a service cannot have."""
        found: dict[tuple[int, ...], str] = {}
        for index, service in enumerate(self.file.service):
            if service.name.startswith("__"):
                found[SERVICE, index, NAME] = (
                    f"service {service.name}: Python rewrites names that start with two underscores. Rename it."
                )
            names = [method.name for method in service.method]
            for number, name in enumerate(names):
                if said := _refused(name, names):
                    found[SERVICE, index, METHOD, number, NAME] = said
        if found:
            raise ProtoError("\n".join(mistake(self.proto_dir, self.file, said, path) for path, said in found.items()))

    def methods(self, service: ServiceDescriptorProto, index: int) -> None:
        """`CatalogMethods`: one `Method` each."""
        full_name = f"{self.file.package}.{service.name}".lstrip(".")
        self.lines += ["", "", f"class {service.name}Methods:", f'    """The methods of {full_name}, as data."""']
        for number, method in enumerate(service.method):
            arguments = [
                f'"{full_name}"',
                f'"{method.name}"',
                self.message(method.input_type),
                self.message(method.output_type),
            ]
            if method.client_streaming:
                arguments.append("client_streaming=True")
            if method.server_streaming:
                arguments.append("server_streaming=True")
            if level := method.options.idempotency_level:
                name = method.options.IdempotencyLevel.Name(level)
                arguments.append(f"idempotency={self.rpc('Idempotency')}.{name}")
            timeout, options = self.declared(method, (SERVICE, index, METHOD, number))
            if timeout is not None:
                arguments.append(f"timeout={timeout!r}")
            if options:
                arguments.append(f"options={_literal(options, 8, len('options=,'))}")
            if access := self.access(service, method, (SERVICE, index, METHOD, number)):
                listed = ", ".join(_literal(one, 8) for one in access)
                arguments.append(f"access=({listed}{',' if len(access) == 1 else ''})")
            self.lines.append("")
            self.write(f"    {identifier(method.name)} = {self.rpc('Method')}(", arguments, ")")

    def servicer(self, service: ServiceDescriptorProto, index: int) -> None:
        """`CatalogServicer`: an abstract method each."""
        self.lines += ["", "", f"class {service.name}Servicer({self.rpc('Servicer')}):"]
        self.docstring("    ", (SERVICE, index), f"Subclass this and write each method of {service.name}.")
        self.lines.append("")
        listed = [f"{service.name}Methods.{identifier(method.name)}" for method in service.method]
        self.write("    __methods__ = (", listed, ",)" if len(listed) == 1 else ")")
        for number, method in enumerate(service.method):
            request = self.annotation(method.input_type)
            if method.client_streaming:
                request = f"requests: {self.names.use('collections.abc', 'AsyncIterator')}[{request}]"
            else:
                request = f"request: {request}"
            reply = self.annotation(method.output_type)
            if method.server_streaming:
                start, reply = "def", f"{self.names.use('collections.abc', 'AsyncIterator')}[{reply}]"
            else:
                start = "async def"
            self.lines += ["", f"    @{self.names.use('abc', 'abstractmethod')}"]
            parameters = ["self", request, f"context: {self.rpc('Context')}", "/"]
            self.write(f"    {start} {identifier(method.name)}(", parameters, f") -> {reply}:")
            if not self.docstring("        ", (SERVICE, index, METHOD, number)):
                self.lines.append("        ...")
        for method in service.method:
            if (name := identifier(method.name)) != method.name:
                # The server looks a method up by the name that the proto gives it.
                getter = self.names.use("operator", "attrgetter")
                self.lines += ["", ""]
                self.lines.append(f'setattr({service.name}Servicer, "{method.name}", property({getter}("{name}")))')

    def client(self, service: ServiceDescriptorProto, index: int) -> None:
        """`CatalogClient`: a typed method each, over what the channel binds."""
        self.lines += ["", "", f"class {service.name}Client:"]
        self.docstring("    ", (SERVICE, index), f"Calls {service.name} over a channel.")
        self.lines += ["", f"    def __init__(self, channel: {self.rpc('Channel')}) -> None:"]
        for method in service.method:
            name = identifier(method.name)
            self.lines.append(f"        self._{name} = channel.bind({service.name}Methods.{name})")
        if not service.method:
            self.lines.append("        pass")
        for number, method in enumerate(service.method):
            name = identifier(method.name)
            request, argument = f"request: {self.annotation(method.input_type)}", "request"
            if method.client_streaming:
                message = self.annotation(method.input_type)
                kinds = (self.names.use("collections.abc", kind) for kind in ("AsyncIterable", "Iterable"))
                request, argument = f"requests: {' | '.join(f'{kind}[{message}]' for kind in kinds)}", "requests"
            reply = self.rpc("StreamReply" if method.server_streaming else "UnaryReply")
            parameters = [
                "self",
                request,
                "/",
                "*",
                f"timeout: {self.names.use('builtins', 'float')} | None = None",
                f"metadata: {self.rpc('Metadata')} = ()",
            ]
            self.lines.append("")
            self.write(f"    def {name}(", parameters, f") -> {reply}[{self.annotation(method.output_type)}]:")
            self.docstring("        ", (SERVICE, index, METHOD, number))
            arguments = [f"self._{name}", f"{service.name}Methods.{name}", argument, "timeout", "metadata"]
            self.write(f"        return {reply}(", arguments, ")")

    def rpc(self, name: str) -> str:
        return self.names.use("framework.rpc", name)

    def message(self, full_name: str) -> str:
        """The expression for a message class."""
        proto, name = self.types[full_name]
        package, module = self.layout.package(self.file.name, proto)
        own = proto == self.file.name
        preferred = self.layout.module(proto).replace(".", "_") if module in self.ambiguous and not own else module
        expression = self.names.use(package, module, preferred)
        for part in name.split("."):
            # A message may be called `None`: Python has the attribute but no way to write it. `__M` it would rewrite.
            plain = identifier(part) == part and not part.startswith("__")
            expression = f"{expression}.{part}" if plain else f'getattr({expression}, "{part}")'
        return expression

    def annotation(self, full_name: str) -> str:
        """The type of a message."""
        expression = self.message(full_name)
        return self.names.use("typing", "Any") if expression.startswith("getattr") or "(" in expression else expression

    def declared(self, method: MethodDescriptorProto, path: tuple[int, ...]) -> tuple[float | None, dict[str, Any]]:
        """The default deadline in seconds that the proto declares, and what else it says of the method's calls."""
        from framework import options_pb2
        from framework.options import OptionError, declared

        try:
            return declared(method.options)
        except OptionError as error:
            option = (*path, OPTIONS, options_pb2.METHOD_FIELD_NUMBER)
            raise ProtoError(mistake(self.proto_dir, self.file, error, (*option, error.field), option, path)) from None

    def access(
        self, service: ServiceDescriptorProto, method: MethodDescriptorProto, path: tuple[int, ...]
    ) -> tuple[dict[str, Any], ...]:
        """Who may call a method, as the proto declares."""
        from framework import options_pb2
        from framework.options import OptionError, access_declared

        try:
            return access_declared(service.options, method.options)
        except OptionError as error:
            own = (*path, OPTIONS, options_pb2.METHOD_FIELD_NUMBER)
            whole = (*path[:2], SERVICE_OPTIONS, options_pb2.SERVICE_FIELD_NUMBER)
            places = ((*own, error.field), own, (*whole, error.field), whole, path)
            raise ProtoError(mistake(self.proto_dir, self.file, error, *places)) from None

    def docstring(self, indent: str, path: tuple[int, ...], default: str = "") -> bool:
        """Write the comment above a service or method as its docstring; False when there is nothing to write."""
        where = self.comments.get(path)
        text = cleaned(where.leading_comments if where else "") or default
        if not text:
            return False
        text = text.replace("\\", "\\\\").replace('"""', r"\"\"\"")
        if text.endswith('"'):
            text = text[:-1] + r"\""
        first, *rest = text.split("\n")
        self.lines.append(f'{indent}"""{first}' + ("" if rest else '"""'))
        self.lines += [f"{indent}{line}".rstrip() for line in rest]
        if rest:
            self.lines.append(f'{indent}"""')
        return True

    def write(self, start: str, items: list[str], end: str) -> None:
        """Write something in parentheses, broken as formatters break it when it is too long for a line."""
        line = start + ", ".join(items) + end
        if len(line) <= WIDTH:
            self.lines.append(line)
            return
        indent = " " * (len(start) - len(start.lstrip()))
        joined = f"{indent}    {', '.join(items)}"
        end = end.removeprefix(",")
        if len(joined) <= WIDTH and "__methods__" not in start:
            self.lines += [start, joined, indent + end]
        else:
            self.lines += [start, *(f"{indent}    {item}," for item in items), indent + end]
