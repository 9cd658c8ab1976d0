"""ProtoJSON: what each codec reads and writes, and one held against the other."""

from __future__ import annotations

import gc
import json
import math
import struct
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from framework.http.floats import FLOAT_LIMIT, FLOAT_MAX
from framework.http.json import MANY, Codec, Json, JsonError, JsonOptions
from tests.http import lab

All = lab.message("All")
NATIVE = Json([lab.file("all")])
PLAIN = Json([lab.file("all")], native=False)
assert NATIVE.native
assert not PLAIN.native


@pytest.fixture(params=["protobuf-py", "json_format"])
def codec(request: pytest.FixtureRequest) -> Codec:
    return (NATIVE if request.param == "protobuf-py" else PLAIN).codec(All)


def read(codec: Codec, text: str) -> Any:
    return codec.parse(text.encode())


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("{}", "{}"),
        ('{"i64": "9007199254740993"}', '{"i64":"9007199254740993"}'),
        ('{"i64": 5, "i32": 1e2}', '{"i32":100,"i64":"5"}'),
        ('{"u64": 18446744073709551615}', '{"u64":"18446744073709551615"}'),
        ('{"db": "NaN", "fl": "-Infinity"}', '{"fl":"-Infinity","db":"NaN"}'),
        ('{"fl": 0.1, "rfl": [16777216, 1.1]}', '{"fl":0.1,"rfl":[16777216.0,1.1]}'),
        ('{"by": "-_8"}', '{"by":"+/8="}'),
        ('{"color": 99, "rcolor": ["RED", 2]}', '{"color":99,"rcolor":["RED","COLOR_BLUE"]}'),
        ('{"inner": null, "i32": null}', "{}"),
        ('{"value": null, "cn": null}', '{"value":null,"cn":null}'),
        ('{"rvalue": [null, 1, "x", [true], {"a": {}}]}', '{"rvalue":[null,1.0,"x",[true],{"a":{}}]}'),
        ('{"wi64": "1", "wst": "", "wfl": 0.1, "wby": "YQ"}', '{"wi64":"1","wst":"","wby":"YQ==","wfl":0.1}'),
        (
            '{"ts": "2024-01-01T02:00:00.5+02:00", "dur": "-1.5s", "mask": "fooBar,x"}',
            '{"ts":"2024-01-01T00:00:00.500Z","dur":"-1.500s","mask":"fooBar,x"}',
        ),
        ('{"mi": {"-1": "a"}, "mb": {"true": 1.5}}', '{"mi":{"-1":"a"},"mb":{"true":1.5}}'),
        ('{"custom_name": "a", "foo_bar_baz": "b"}', '{"weird-Name":"a","fooBarBaz":"b"}'),
        (
            '{"any": {"text": "x", "@type": "type.googleapis.com/lab.v1.Inner"}}',
            '{"any":{"@type":"type.googleapis.com/lab.v1.Inner","text":"x"}}',
        ),
        (
            '{"any": {"@type": "type.googleapis.com/google.protobuf.Duration", "value": "1s"}}',
            '{"any":{"@type":"type.googleapis.com/google.protobuf.Duration","value":"1s"}}',
        ),
        ('{"st": "\\ud83d\\ude00\\u2028"}', '{"st":"😀\u2028"}'),
        ('{"value": 1e300, "st": "1e999"}', '{"st":"1e999","value":1e+300}'),
        ('{"oi32": 0, "ost": "", "ca": ""}', '{"oi32":0,"ost":"","ca":""}'),
    ],
)
def test_what_is_read_and_written(codec: Codec, text: str, same: str) -> None:
    """Either codec reads a text and writes the same again, in its canonical form."""
    assert json.loads(same) == json.loads(codec.write(read(codec, text)))


@pytest.mark.parametrize(
    "number", ["3.4028235e+38", "3.4028234663852886e+38", '"3.4028235e+38"', "340282350000000000000000000000000000000"]
)
@pytest.mark.parametrize("text", ['{"fl": %s}', '{"rfl": [1, %s]}', '{"wfl": %s}', '{"deep": {"x": {"fl": %s}}}'])
def test_the_largest_float_is_read_as_everybody_prints_it(text: str, number: str) -> None:
    """3.4028235e+38 is larger than the largest float, and rounds to it; protobuf-py alone refuses it."""
    codec = NATIVE.codec(lab.message("Floats"))
    message = read(codec, text.replace("%s", number))
    found = [*message.rfl[1:], message.fl, message.wfl.value, message.deep["x"].fl]
    assert FLOAT_MAX in found
    assert message == read(codec, codec.write(message).decode())


def test_a_larger_number_is_no_float() -> None:
    """From half a step above the largest float on, a number is out of range, beside one that is clamped too."""
    with pytest.raises(JsonError, match="out of range") as raised:
        read(NATIVE.codec(All), f'{{"rfl": [3.4028235e+38], "fl": {FLOAT_LIMIT!r}}}')
    assert raised.value.field == "lab.v1.All.fl"


@pytest.mark.parametrize(
    ("text", "message", "field"),
    [
        ('{"i32": 1.5}', "expected integer, got non-integer float: 1.5", "lab.v1.All.i32"),
        ('{"i32": 2147483648}', "value 2147483648 out of range for int32", "lab.v1.All.i32"),
        ('{"rinner": [{}, {"n": "x"}]}', "invalid integer value: 'x'", "lab.v1.Inner.n"),
        ('{"nope": 1}', 'lab.v1.All has no field "nope"', "nope"),
        ('{"ri64": {}}', "expected list got object", "lab.v1.All.ri64"),
        ('{"bo": "true"}', "unexpected json type: string", "lab.v1.All.bo"),
        ("[]", "cannot decode All from JSON: []", ""),
        ('{"i32": 1,}', "this is no JSON: trailing comma, line 1 column 11", ""),
        ('{"i32": 1} {}', "this is no JSON: trailing characters, line 1 column 12", ""),
        ('{"db": NaN}', "this is no JSON: expected value, line 1 column 8", ""),
    ],
)
def test_a_mistake_is_told_with_its_field(text: str, message: str, field: str) -> None:
    """What is wrong is said in words of JSON, with the field it is in."""
    with pytest.raises(JsonError) as raised:
        read(NATIVE.codec(All), text)
    assert (message, field) == (raised.value.message, raised.value.field)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        '{"i32": 2147483648}',
        '{"u64": -1}',
        '{"db": 1e400}',
        '{"st": "\\ud83d"}',
        '{"by": "a"}',
        '{"ri64": [null]}',
        '{"minner": {"a": null}}',
        '{"any": {"@type": "type.googleapis.com/nope"}}',
        '{"any": {"text": "x"}}',
        '{"ts": "2024-01-01"}',
        '{"ts": "0000-01-01T00:00:00Z"}',
        '{"dur": "315576000001s"}',
        '{"mask": "foo_bar"}',
        '{"color": "NOPE"}',
        '{"inner": ' + '{"child": ' * 101 + "{}" + "}" * 102,
        '{"value": ' + "[" * 2000 + "]" * 2000 + "}",
        '{"value": 1e999}',
        '{"rvalue": [{"a": [-1E+400]}]}',
        '{"value": ' + "9" * 400 + "}",
        '{"any": {"@type": "type.googleapis.com/google.protobuf.Value", "value": 1e999}}',
        '{"nope": ' + "[" * 100_000 + "]" * 100_000 + "}",
    ],
)
def test_what_neither_reads(codec: Codec, text: str) -> None:
    """What is no JSON of the message raises JsonError, whichever codec it is, however deep it is."""
    with pytest.raises(JsonError):
        read(codec, text)


@pytest.mark.parametrize(
    "text",
    [
        '{"ca": "x", "cb": 1}',
        '{"rone": [{}, {"a": "x", "b": "y"}]}',
        '{"mone": {"k": {"a": "x", "b": "y"}}}',
        '{"one": {"one": {"a": "x", "b": "y"}}}',
        '{"a": "x", "\\u0062": "y"}',
    ],
)
def test_two_fields_of_a_oneof(text: str) -> None:
    """Only one of them can be set, however deep it is; null is no value, but where it is one."""
    kind = All if text.startswith('{"c') else lab.message("Oneofs")
    for codecs in (NATIVE, PLAIN):
        with pytest.raises(JsonError):
            read(codecs.codec(kind), text)
    with pytest.raises(JsonError, match="only one of choice can be set, and cn and cv are"):
        read(NATIVE.codec(All), '{"cn": null, "cv": null}')
    assert read(NATIVE.codec(All), '{"ca": null, "cb": 1, "cc": null}').cb == 1
    assert read(NATIVE.codec(lab.message("Oneofs")), '{"one": {"a": "b"}, "rone": [{"b": "a"}]}').one.a == "b"


def test_no_search_for_cycles_in_a_large_text() -> None:
    """It would take longer than the rest. It goes on afterwards, also after a mistake, and stays off where it was."""
    codec = NATIVE.codec(lab.message("Oneofs"))
    text = b'{"rone": [' + b",".join([b"{}"] * MANY) + b"]}"
    searches: list[str] = []
    gc.callbacks.append(lambda phase, info: searches.append(phase))
    try:
        binary = codec.pack(text)
        codec.unpack(binary)
        assert (searches, gc.isenabled()) == ([], True)
    finally:
        gc.callbacks.pop()
    with pytest.raises(JsonError):
        codec.pack(text[:-1])
    assert gc.isenabled()
    gc.disable()
    try:
        codec.pack(text)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_text_that_is_no_utf8(codec: Codec) -> None:
    """Bytes that are no UTF-8 are refused, and not guessed at."""
    with pytest.raises(JsonError):
        codec.parse(b'{"st": "\xff"}')


def test_options() -> None:
    """Each option does the same in both codecs."""
    options = JsonOptions(defaults=True, proto_names=True, enum_numbers=True, ignore_unknown=True)
    text = '{"fooBarBaz": "x", "color": "RED", "nope": 1, "rcolor": ["NOPE", 1]}'
    written = []
    for native in (True, False):
        codec = Json([lab.file("all")], options, native=native).codec(All)
        written.append(json.loads(codec.write(read(codec, text))))
    assert (written[0].pop("null"), written[1].pop("null")) == (None, 0)  # of the type NullValue, which is no number
    assert written[0] == written[1]
    assert tuple(written[0][n] for n in ("foo_bar_baz", "color", "rcolor", "i64", "rinner")) == ("x", 1, [1], "0", [])


def test_an_any_that_nobody_knows_has_no_json(codec: Codec) -> None:
    """A message that cannot be written says why."""
    message = All()
    message.any.type_url = "type.googleapis.com/nope"
    with pytest.raises(JsonError, match=r"this lab.v1.All has no JSON: .*nope"):
        codec.write(message)


def test_an_any_of_error_details() -> None:
    """What errors carry is known, whether or not a service imports it."""
    text = b'{"any":{"@type":"type.googleapis.com/google.rpc.RetryInfo","retryDelay":"1s"}}'
    codec = NATIVE.codec(All)
    assert text == codec.write(codec.parse(text))


def test_the_names_of_generated_modules() -> None:
    """Generated modules leave the JSON names out; they are there all the same."""
    from google.rpc.error_details_pb2 import RetryInfo

    files: Any = [RetryInfo.DESCRIPTOR.file]
    message = RetryInfo()
    message.retry_delay.seconds = 1
    assert Json(files).codec(RetryInfo).write(message) == b'{"retryDelay":"1s"}'


# One against the other

INTEGERS = {
    **dict.fromkeys(("i32", "s32", "sf32", "cb", "oi32"), (-(2**31), 2**31 - 1)),
    **dict.fromkeys(("i64", "s64", "sf64"), (-(2**63), 2**63 - 1)),
    **dict.fromkeys(("u32", "f32"), (0, 2**32 - 1)),
    **dict.fromkeys(("u64", "f64"), (0, 2**64 - 1)),
}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
float32 = st.floats(width=32, allow_nan=False) | st.just(math.nan)  # of the NaNs, JSON has one
float64 = st.floats(allow_nan=False) | st.just(math.nan)
values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def messages(draw: st.DrawFn) -> Any:
    """Any message whose JSON exists."""
    m = All()
    for name in draw(st.sets(st.sampled_from(sorted(INTEGERS)), max_size=4)):
        setattr(m, name, draw(st.integers(*INTEGERS[name])))
    parts = draw(st.sets(st.integers(0, 19), max_size=6))
    for part in parts:
        match part:
            case 0:
                m.fl, m.db = draw(float32), draw(float64)
            case 1:
                m.st, m.by, m.bo = draw(text), draw(st.binary(max_size=5)), draw(st.booleans())
            case 2:
                m.color = draw(st.integers(-(2**31), 2**31 - 1))
                m.rcolor.extend(draw(st.lists(st.integers(0, 4), max_size=3)))
            case 3:
                m.inner.text, m.inner.child.n = draw(text), draw(st.integers(0, 9))
            case 4:
                m.rfl.extend(draw(st.lists(float32, max_size=3)))
            case 5:
                m.rby.extend(draw(st.lists(st.binary(max_size=4), max_size=3)))
            case 6:
                for key in draw(st.lists(text, max_size=3)):
                    m.minner[key].text = draw(text)
            case 7:
                m.mi.update(draw(st.dictionaries(st.integers(-(2**63), 2**63 - 1), text, max_size=3)))
            case 8:
                m.mb.update(draw(st.dictionaries(st.booleans(), float64)))
            case 9:
                m.mcolor.update(draw(st.dictionaries(text, st.integers(0, 4), max_size=3)))
            case 10:
                m.struct.update(draw(st.dictionaries(text, values, max_size=3)))
            case 11:
                for value in draw(st.lists(values, max_size=3)):
                    json_format.Parse(json.dumps(value), m.rvalue.add())
            case 12:
                m.ts.seconds, m.ts.nanos = (
                    draw(st.integers(-62135596800, 253402300799)),
                    draw(st.integers(0, 10**9 - 1)),
                )
            case 13:
                sign = draw(st.sampled_from((-1, 1)))
                m.dur.seconds = sign * draw(st.integers(0, 315576000000 - 1))
                m.dur.nanos = sign * draw(st.integers(0, 10**9 - 1))
            case 14:
                m.mask.paths.extend(draw(st.lists(st.sampled_from(("a", "foo_bar", "a.b_c")), max_size=3)))
            case 15:
                m.wi64.value, m.wst.value = draw(st.integers(-(2**63), 2**63 - 1)), draw(text)
                m.wfl.value, m.wdb.value = draw(float32), draw(float64)
                m.wby.value, m.wbo.value = draw(st.binary(max_size=4)), draw(st.booleans())
            case 16:
                packed = lab.message("Inner")(text=draw(text), n=draw(st.integers(0, 9)))
                m.any.Pack(packed)
            case 17:
                m.any.Pack(m.dur)
            case 18:
                m.ca = draw(text)
            case 19:
                m.ost, m.oi32, m.ocolor = "", 0, 0
    return m


@given(messages())
def test_both_codecs_write_the_same(message: Any) -> None:
    """What protobuf-py writes is what json_format writes, and each reads what the other wrote."""
    native, plain = NATIVE.codec(All), PLAIN.codec(All)
    written = native.write(message)
    assert _clamped(json.loads(plain.write(message))) == _clamped(json.loads(written))
    assert _bytes(message) == _bytes(native.parse(plain.write(message)))
    assert _bytes(message) == _bytes(native.parse(written))


@given(messages(), messages())
def test_bytes_are_written_as_the_message_that_they_are(first: Any, second: Any) -> None:
    """Also bytes that no library makes: each field of the second message comes after those of the first."""
    raw = first.SerializeToString() + second.SerializeToString()
    codec = NATIVE.codec(All)
    try:
        written = codec.write(All.FromString(raw))
    except JsonError:
        return  # a duration may become none
    assert json.loads(codec.unpack(raw)) == json.loads(written)
    assert _bytes(All.FromString(codec.pack(written))) == _bytes(codec.parse(written))


def test_bytes_that_are_no_message(codec: Codec) -> None:
    for raw in (b"\xff", b"\x0a\x05a", All(st="a").SerializeToString().replace(b"a", b"\xff"), b"\xfb\x7f" * 100_000):
        with pytest.raises(JsonError):
            codec.unpack(raw)


def test_text_with_half_a_character(codec: Codec) -> None:
    with pytest.raises(JsonError):
        codec.pack(b'{"st": "\\ud800"}')


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | text,
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(st.sampled_from([field.json_name for field in All.DESCRIPTOR.fields]), inner, max_size=3)
        ),
    )
)
def test_what_protobuf_py_reads_json_format_reads_as_the_same(data: Any) -> None:
    """Of any JSON, protobuf-py reads no more than json_format does, and the same."""
    raw = json.dumps(data).encode()
    try:
        found = NATIVE.codec(All).parse(raw)
    except JsonError:
        return
    if _largest(data) or data.get("rvalue", 0) is None or data.get("mvalue", 0) is None:
        return  # the largest float, and null for many Values: json_format refuses them
    assert _bytes(PLAIN.codec(All).parse(raw)) == _bytes(found)


def _bytes(message: Any) -> bytes:
    raw: bytes = message.SerializeToString(deterministic=True)
    return raw


def _clamped(value: Any) -> Any:
    """With the largest float as it is, where json_format prints one that is larger."""
    if isinstance(value, dict):
        return {key: _clamped(held) for key, held in value.items()}
    if isinstance(value, list):
        return [_clamped(held) for held in value]
    return math.copysign(FLOAT_MAX, value) if _largest(value) else value


def _largest(data: Any) -> bool:
    held = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    if isinstance(data, int | float) and not isinstance(data, bool) and math.isfinite(data):
        return FLOAT_MAX < abs(data) < FLOAT_LIMIT
    return any(map(_largest, held))


@given(float32)
def test_a_float_is_as_short_as_its_bits_allow(value: float) -> None:
    """The number printed is the same float again, and has at most nine digits."""
    message = All(fl=value)
    written = json.loads(NATIVE.codec(All).write(message))["fl"] if value or math.copysign(1, value) < 0 else 0.0
    assert struct.pack("<f", value) == struct.pack("<f", float(written)) or math.isnan(value)
    if math.isfinite(value) and abs(value) < FLOAT_MAX:
        assert float(f"{written:.9g}") == written
