"""Who may call what, while a process runs: rules bound to methods, replaced when a file changes.

The rules of a method are looked up when it is bound, and again when the policy is replaced; a call only walks them.

Reading order: Policy (pure: which rules hold for a method), Held, Access.
"""

from __future__ import annotations

import logging
import random
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from framework.access import (
    AUTHENTICATED,
    DECLARED,
    DENY,
    WORDS,
    AccessSettings,
    Rule,
    Rules,
    patterns,
    rules_declared,
)
from framework.call import Call, Handler, Method, Reply
from framework.errors import ConfigError, PermissionDenied, RpcError
from framework.identity import Identity
from framework.observation import Allowance
from framework.parsing import suggest
from framework.security.files import text_of

log = logging.getLogger("framework.security")

LINES = 10
"""Calls a second that were not allowed and are told in the log."""


class Policy:
    """Which rules hold for a method. Pure.

    The more specific has the say, and where a file and the proto are as specific, the file: its rule for the method,
    the proto's, its rule for the service, for a package, for everything; then what the settings say of the rest.

    Args:
        settings: with rules.
        more: rules of a file beside them.
        closed: there are rules elsewhere, in protos, so that what has none is denied.
    """

    def __init__(
        self, settings: AccessSettings, more: Mapping[str, Rules] | None = None, *, closed: bool = False
    ) -> None:
        self._settings = settings
        self._rules = {pattern: (said, "access.rules") for pattern, said in settings.rules.items()}
        self._rules.update({pattern: (said, settings.file) for pattern, said in (more or {}).items()})
        word = settings.default or (DENY if closed or self._rules else AUTHENTICATED)
        where = "access.default" if settings.default else "no rule" if word == DENY else "default"
        self._default = WORDS[word], where

    def rules_of(self, full_name: str, declared: Iterable[Mapping[str, Any]] = ()) -> tuple[Rules, str]:
        """The rules for a method, and who says so.

        Args:
            full_name: `package.Service/Method`.
            declared: what its proto says, as `Method.access` has it.
        """
        if (found := self._rules.get(full_name)) is not None:
            return found
        if declared:
            return rules_declared(declared), DECLARED
        service = full_name.partition("/")[0]
        if (found := self._rules.get(f"{service}/*")) is not None:
            return found
        if service.startswith("grpc.health."):
            return self._settings.health, "access.health"
        if service.startswith("grpc.reflection."):
            return self._settings.reflection, "access.reflection"
        package = service
        while package:
            package = package.rpartition(".")[0]
            if (found := self._rules.get(f"{package}.*")) is not None:
                return found
        return self._rules.get("*", self._default)

    @property
    def patterns(self) -> tuple[str, ...]:
        """What there are rules for."""
        return tuple(self._rules)


class Held:
    """The rules that hold for a method now.

    Attributes:
        rules: any of them is enough.
        origin: who says so.
        public: everybody may.
    """

    __slots__ = ("method", "origin", "public", "rules")

    def __init__(self, method: Method[Any, Any]) -> None:
        self.method = method
        self.rules: Rules = ()
        self.origin = ""
        self.public = False


class Access:
    """Lets calls pass, or not.

    Args:
        settings: with rules.
        more: those of the file that the settings name.
        missing: the error for somebody who would have to be known.
        now: seconds of a clock.
    """

    def __init__(
        self,
        settings: AccessSettings,
        more: Mapping[str, Rules] | None = None,
        *,
        missing: Callable[[], RpcError],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.version = 0
        self._settings = settings
        self._more = more or {}
        self._missing = missing
        self._now = now
        self._lines = Allowance(LINES, 1.0, random.Random())  # whoever may not call can call as often as they like
        self._held: dict[str, Held] = {}
        self._declared = False
        self._policy = self._made(settings, self._more, ())

    def _made(self, settings: AccessSettings, more: Mapping[str, Rules], methods: Iterable[Method[Any, Any]]) -> Policy:
        policy = Policy(settings, more, closed=self._declared)
        for wrong in misnamed(policy.patterns, methods):
            raise ConfigError(f"there is a rule for {wrong}")
        return policy

    @property
    def patterns(self) -> tuple[str, ...]:
        """What there are rules for."""
        return self._policy.patterns

    def held(self, method: Method[Any, Any]) -> Held:
        """The rules of a method, kept up to date. Raises ConfigError: those that its proto declares cannot be used."""
        found = self._held.get(method.full_name)
        if found is None or found.method.access != method.access:
            found = self._held[method.full_name] = Held(method)
            if method.access and not self._declared:
                self._declared = True
                self._policy = self._made(self._settings, self._more, ())
                self._rehold()
            else:
                self._hold(found)
        return found

    def _hold(self, held: Held) -> None:
        held.rules, held.origin = self._policy.rules_of(held.method.full_name, held.method.access)
        held.public = any(rule.public for rule in held.rules)

    def _rehold(self) -> None:
        self.version += 1
        for held in self._held.values():
            self._hold(held)

    def complete(self) -> None:
        """All methods are bound. Raises ConfigError: there is a rule for one that a service of theirs does not have."""
        self._made(self._settings, self._more, self._methods)

    @property
    def _methods(self) -> tuple[Method[Any, Any], ...]:
        return tuple(held.method for held in self._held.values())

    def apply(self, settings: AccessSettings | None = None, more: Mapping[str, Rules] | None = None) -> None:
        """Go by other rules from the next call on. Raises ConfigError, and nothing has changed."""
        settings = self._settings if settings is None else settings
        more = self._more if more is None else more
        policy = self._made(settings, more, self._methods)
        self._policy, self._settings, self._more = policy, settings, more
        self._rehold()

    def interceptor(self, method: Method[Any, Any], next: Handler) -> Handler:
        """Around every handler of a server, inside authentication."""
        held = self.held(method)

        def handler(call: Call) -> Reply:
            if not held.public:
                self._check(held, call.identity)
            return next(call)

        return handler

    def check(self, method: Method[Any, Any], identity: Identity | None) -> None:
        """Raise unless this caller may call a method: Unauthenticated or PermissionDenied, which do not say why."""
        self._check(self.held(method), identity)

    def _check(self, held: Held, identity: Identity | None) -> None:
        for rule in held.rules:
            if rule.allows(identity):
                return
        if held.rules and (identity is None or not identity.subject):
            raise self._missing()
        if self._lines.take(self._now()):
            others, self._lines.without = self._lines.without, 0
            more = f" ({others} more since the last line)" if others else ""
            reason = why(held.rules, identity)
            log.info("%s may not call %s: %s%s", identity or "somebody", held.method.full_name, reason, more)
        raise PermissionDenied(f"{held.method.full_name} is not for this caller")

    def __repr__(self) -> str:
        return f"<Access with {len(self._policy.patterns)} rules for {len(self._held)} methods>"


def misnamed(patterns: Iterable[str], methods: Iterable[Method[Any, Any]]) -> Iterator[str]:
    """Patterns for a method that its service, one of those of `methods`, does not have; each with what is wrong."""
    known: dict[str, dict[str, None]] = {}
    for method in methods:
        known.setdefault(method.service, {})[method.name] = None
    for pattern in patterns:
        service, _, name = pattern.partition("/")
        if name and name != "*" and service in known and name not in known[service]:
            yield f"{pattern}, which {service} does not have.{suggest(name, known[service])}"


def why(rules: Rules, identity: Identity | None) -> str:
    """Why somebody may not, for those who look after the rules."""
    if not rules:
        return "nobody may"
    return "; or ".join(dict.fromkeys(rule.lacks(identity) for rule in rules))


def passed(rules: Rules, identity: Identity | None) -> Rule | None:
    """The rule by which somebody may; None when there is none."""
    return next((rule for rule in rules if rule.allows(identity)), None)


def read(path: Path) -> Mapping[str, Rules]:
    """The rules in a file. Raises ConfigError."""
    try:
        tables = tomllib.loads(text_of(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    for name in tables:
        if name != "rules":
            raise ConfigError(f"{path}: {name} is not a setting.{suggest(name, {'rules': None})}")
    try:
        return patterns(tables.get("rules", {}), "rules")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
