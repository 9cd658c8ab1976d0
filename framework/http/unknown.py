"""Names in a request that are no fields: what is said of them, and which field may be meant."""

from __future__ import annotations

import re
from difflib import get_close_matches

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from framework.http.json import JsonError

LONGEST_MEANT = 60
"""Characters of an unknown name for which one that exists is looked for."""

_UNKNOWN = re.compile(r'([\w.]+) has no field "(.*)"', re.DOTALL)


def no_field(descriptor: Descriptor, name: str) -> str:
    """What is said of a name that is no field of a message, with the one that may be meant."""
    shown = name if len(name) <= 100 else f"{name[:97]}..."
    wanted = _bare(name)
    near: dict[str, FieldDescriptor] = {}
    for one in descriptor.fields if len(wanted) <= LONGEST_MEANT else ():
        other = _bare(one.name)
        if other[:1] == wanted[:1] and abs(len(other) - len(wanted)) <= 2:  # to compare takes long, and anybody may ask
            near[other] = one
    close = get_close_matches(wanted, near, 1, 0.75)
    meant = near[close[0]].name if close and "_" in name else near[close[0]].json_name if close else ""
    return f'{descriptor.full_name} has no field "{shown}"' + (f'; did you mean "{meant}"?' if meant else "")


def _bare(name: str) -> str:
    return name.replace("_", "").lower()


def explained(error: JsonError, descriptor: Descriptor) -> str:
    """What is wrong with the JSON of a message, with the field that may be meant by an unknown name."""
    found = _UNKNOWN.fullmatch(error.message)
    if found is None:
        return error.message
    try:
        return no_field(descriptor.file.pool.FindMessageTypeByName(found[1]), found[2])
    except KeyError:
        return error.message
