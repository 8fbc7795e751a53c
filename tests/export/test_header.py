"""Headers are checked before they are trusted: anything else is a FileError."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, deserialize

from transposable import FileError
from transposable.export.header import BITS, Header, make_header, parse_header


def file_of(table: Any, data: bytes = b"") -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: Any = "U8", shape: Any = (2,), offsets: Any = (0, 2)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


BAD = {
    "no bytes": b"",
    "seven bytes": b"\x02" + bytes(6),
    "header longer than the file": (1000).to_bytes(8, "little") + b"{}",
    "header beyond the limit": (10**12).to_bytes(8, "little") + b"{}",
    "header length of 2^64 - 1": b"\xff" * 8 + b"{}",
    "empty header": bytes(8),
    "no JSON": file_of(b"{no json"),
    "a JSON list": file_of([]),
    "invalid UTF-8": file_of(b'{"\xff":1}'),
    "a lone surrogate": file_of(rb'{"\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "deep nesting": file_of(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
    "a huge number": file_of(b'{"a":' + b"9" * 10_000 + b"}"),
    "a name twice": file_of(
        b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
        b'"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    ),
    "metadata with a number": file_of({"__metadata__": {"a": 1}}),
    "metadata that is a list": file_of({"__metadata__": []}),
    "an entry that is no object": file_of({"a": 1}),
    "a missing key": file_of({"a": {"dtype": "U8", "shape": [2]}}, b"hi"),
    "an extra key": file_of({"a": entry() | {"x": 1}}, b"hi"),
    "an unknown dtype": file_of({"a": entry("F7")}, b"hi"),
    "a dtype that is a list": file_of({"a": entry(["U8"])}, b"hi"),
    "a negative size": file_of({"a": entry(shape=(-2,))}, b"hi"),
    "a boolean size": file_of({"a": entry(shape=(True, 2))}, b"hi"),
    "a float size": file_of({"a": entry(shape=(2.0,))}, b"hi"),
    "a size beyond int64": file_of({"a": entry(shape=(2**63, 0), offsets=(0, 0))}),
    "sizes whose product is huge": file_of({"a": entry(shape=(2**62,) * 9)}, b"hi"),
    "shape and offsets that disagree": file_of({"a": entry(shape=(3,))}, b"hi"),
    "offsets the wrong way round": file_of({"a": entry(offsets=(2, 0))}, b"hi"),
    "three offsets": file_of({"a": entry(offsets=(0, 1, 2))}, b"hi"),
    "half a byte": file_of({"a": entry("F4", (3,), (0, 2))}, b"hi"),
    "an overlap": file_of({"a": entry(), "b": entry(offsets=(1, 3))}, b"hi!"),
    "a hole": file_of({"a": entry(), "b": entry(offsets=(3, 5))}, b"hi ho"),
    "a hole at the start": file_of({"a": entry(offsets=(1, 3))}, b"hi!"),
    "truncated data": file_of({"a": entry()}, b"h"),
    "trailing bytes": file_of({"a": entry()}, b"hi!"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    with pytest.raises(FileError) as caught:
        parse_header(BAD[case], len(BAD[case]), "x.safetensors")
    assert "x.safetensors" in str(caught.value)
    assert "download or save it again" in str(caught.value)
    assert len(str(caught.value)) < 1000


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_else(data: bytes) -> None:
    check(data)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200), st.binary(max_size=20))
def test_random_headers_raise_nothing_else(text: bytes, data: bytes) -> None:
    check(file_of(b"{" + text, data))


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
_sizes = st.lists(st.integers(-1, 9) | st.integers(), max_size=3)
_entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*BITS, "F7"]) | _json,
        "shape": _sizes | _json,
        "data_offsets": st.lists(st.integers(0, 40), min_size=2, max_size=2) | _json,
    }
)


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.text(max_size=5), _entries | _json, max_size=3), st.binary(max_size=40))
def test_random_tables_raise_nothing_else(table: dict[str, Any], data: bytes) -> None:
    check(file_of(table, data))


def check(data: bytes) -> None:
    """Parses or raises FileError; what parses is also valid for the library."""
    try:
        parsed = parse_header(data, len(data), "x")
    except FileError:
        return
    assert sum(e.nbytes for e in parsed.entries) == len(data) - parsed.data_start
    try:
        deserialize(data)
    except SafetensorError as error:  # pragma: no cover
        pytest.fail(f"accepted a file that the library refuses: {error}")


_tensor = st.tuples(st.sampled_from([d for d in BITS if BITS[d] % 8 == 0]), _sizes)


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda name: name != "__metadata__"),
        st.tuples(
            st.sampled_from([d for d in BITS if BITS[d] % 8 == 0]),
            st.lists(st.integers(0, 4), max_size=3).map(tuple),
        ),
        max_size=5,
    ),
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
)
def test_written_headers_are_read_back(
    table: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str] | None
) -> None:
    made = make_header((name, dtype, shape) for name, (dtype, shape) in table.items())
    start = made.encode(metadata)
    assert len(start) % 8 == 0
    size = len(start) + sum(e.nbytes for e in made.entries)
    assert parse_header(start, size, "x") == Header(made.entries, metadata, len(start))
    deserialize(start + bytes(size - len(start)))  # the library agrees
