"""Requests that are made up, through this and through real Envoy: what differs is explained here, or is a mistake.

python -m tests.http.differential [--count 600] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx

from framework.http.methods import http_rule_of
from framework.http.rules import Rule, rules_of
from framework.options import method_of
from tests.http.grammar import Grammar, Request
from tests.http.mirror import SERVICE, Mirror
from tests.http.test_envoy import both, ready

Answer = tuple[int, Any]


@dataclass(frozen=True)
class Why:
    """A class of differences.

    Attributes:
        what: is odd about the request, or special about its rule.
        here, there: the statuses of this and of Envoy.
        reason: why they differ.
    """

    what: str
    here: int
    there: int
    reason: str


EXPLAINED = {
    (one.what, one.here, one.there): one
    for one in (
        # Refused here, and let through by Envoy, so that a mistake goes unseen.
        Why("unknown field", 400, 200, "Envoy drops fields of the body that the message does not have"),
        Why("body that is not read", 400, 200, "Envoy reads a body although the rule has none"),
        Why("parameter beside a whole body", 400, 200, "http.proto: with body '*' there are no query parameters"),
        Why("parameter set twice", 400, 200, "Envoy takes the last value"),
        Why("bool in capitals", 400, 200, "ProtoJSON has true and false; Envoy takes any case"),
        Why("no JSON", 400, 200, "Envoy reads what is nearly JSON, such as quotes of the other kind"),
        Why("null body", 400, 200, "a message is wanted, and null is none; Envoy takes it for an empty body"),
        Why("malformed escape in the path", 400, 200, "Envoy passes '%zz' on as text"),
        Why("malformed escape in the path", 400, 404, "this says what is wrong with the path"),
        Why("path not in UTF-8", 400, 500, "Envoy sends a message that the service cannot read"),
        Why("path not in UTF-8", 400, 404, "this says what is wrong with the path"),
        Why("trailing slash", 404, 200, "http.proto: '*' is one segment; Envoy drops a slash at the end"),
        Why("trailing slash", 200, 200, "a slash that '**' captured, which Envoy drops"),
        # Understood here, and not by Envoy.
        Why("key of a map", 200, 400, "Envoy cannot set maps from a query"),
        Why("system parameter", 200, 400, "this ignores what clients of Google's APIs send"),
        Why("unknown enum number", 200, 400, "enums of proto3 are open; Envoy takes only numbers with a name"),
        Why("any value", 200, 200, "a Value is JSON here, and text in Envoy"),
        Why("field twice", 200, 400, "ProtoJSON: the last one counts; Envoy refuses fields with presence"),
        # What is special about a rule.
        Why("a mask for PATCH", 200, 200, "this makes the mask from the keys of the body"),
        Why("response_body", 200, 200, "Envoy answers with the whole reply"),
        Why("empty body", 200, 200, "Envoy sets the field of the body, to an empty message"),
    )
}
"""All differences that are meant to be. Each request has one thing at most that is odd, and is blamed on that."""


def rules() -> list[Rule]:
    """All rules of the mirror that are annotations."""
    found: list[Rule] = []
    for descriptor in SERVICE.methods:
        annotation = http_rule_of(descriptor)
        assert annotation is not None
        found += rules_of(method_of(descriptor), annotation)
    return found


def why(request: Request, mine: Answer, other: Answer) -> Why | None:
    """What explains a difference, or None."""
    if mine[0] == other[0] == 200:
        return EXPLAINED.get((_special(request, mine[1], other[1]), 200, 200))
    return EXPLAINED.get((request.odd, mine[0], other[0]))


def _special(request: Request, mine: Any, theirs: Any) -> str:
    """What makes up all of the difference between two replies; empty when that is not known."""
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        found = {_special(request, *pair) for pair in zip(mine, theirs, strict=True)}
        return found.pop() if len(found) == 1 else ""
    if not isinstance(theirs, dict):
        return ""
    if "/m/only/" in request.rule:
        return "response_body" if mine == theirs.get("inner") else ""
    if not isinstance(mine, dict):
        return ""
    mine, theirs = dict(mine), dict(theirs)
    if (
        request.odd == "any value"
        and mine.pop("rvalue", None) == [{"a": 1.0}]
        and theirs.pop("rvalue", None) == ['{"a":1}']
    ):
        what = request.odd
    elif request.odd == "trailing slash" and mine.get("ost", mine.get("st", "")).endswith("/"):
        name = "ost" if "ost" in mine else "st"
        mine[name] = mine[name][:-1]
        what = request.odd
    elif request.body == b"" and any(theirs.get(name) == {} for name in ("inner", "struct")):
        theirs = {name: value for name, value in theirs.items() if name not in ("inner", "struct") or name in mine}
        what = "empty body"
    elif request.http == "PATCH" and mine.pop("mask", None) is not None:
        return "a mask for PATCH" if mine == theirs else ""
    else:
        return ""
    if request.http == "PATCH":
        mine.pop("mask", None)
    return what if mine == theirs else ""


def same(mine: Answer, other: Answer) -> bool:
    """Both did the call and answered the same, or both refused with the same status, each in words of its own."""
    return mine[0] == other[0] and (mine[0] != 200 or mine[1] == other[1])


async def ask(client: httpx.AsyncClient, address: str, request: Request) -> Answer:
    headers = {"accept": "application/json"} | ({} if request.body is None else {"content-type": "application/json"})
    response = await client.request(
        request.http, f"http://{address}{request.target}", headers=headers, content=request.body
    )
    try:
        return response.status_code, response.json()
    except ValueError:
        return response.status_code, response.content


@dataclass
class Found:
    """What a run found."""

    same: int
    explained: Counter[Why]
    unexplained: list[tuple[Request, Answer, Answer]]

    def lines(self) -> Iterable[str]:
        """The table, and what is not in it."""
        total = self.same + sum(self.explained.values()) + len(self.unexplained)
        yield f"{total} requests: {self.same} same, {total - self.same - len(self.unexplained)} explained"
        for one, count in sorted(self.explained.items(), key=lambda item: item[0].what):
            yield f"{count:6}  {one.here} here, {one.there} there  {one.what}: {one.reason}"
        for request, mine, other in self.unexplained:
            yield f"UNEXPLAINED {request}\n  here  {mine}\n  Envoy {other}"


async def run(count: int, seed: int) -> Found:
    """Make up and compare so many requests."""
    grammar = Grammar(rules(), Random(seed))
    found = Found(0, Counter(), [])
    with tempfile.TemporaryDirectory() as folder:
        async with (
            both(Path(folder), SERVICE, Mirror()) as (ours, envoys),
            httpx.AsyncClient(timeout=20) as client,
        ):
            await ready(client, envoys)
            for _ in range(count):
                request = grammar.request()
                mine, other = [await ask(client, address, request) for address in (ours, envoys)]
                if same(mine, other):
                    found.same += 1
                elif (explained := why(request, mine, other)) is not None:
                    found.explained[explained] += 1
                else:
                    found.unexplained.append((request, mine, other))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=600)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    found = asyncio.run(run(given.count, given.seed))
    print(*found.lines(), sep="\n")
    return 1 if found.unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
