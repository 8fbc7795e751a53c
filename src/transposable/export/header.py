"""The header of a safetensors file: parsed, checked before it is trusted, and written.

The format: 8 bytes, the little-endian length of a JSON object; the object; the raw tensors.
Nothing here needs torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from transposable.errors import FileError

MAX_HEADER: Final = 100_000_000
"""Longest header the format allows, in bytes."""

BITS: Final[dict[str, int]] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(
        ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8
    ),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits of one element of every dtype of the format."""

_REMEDY: Final = "the file is corrupt or no safetensors file; download or save it again"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file: [begin, end) counts bytes from the start of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return self.end - self.begin

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What a safetensors file holds: its entries in the header's order, and its metadata."""

    entries: tuple[Entry, ...]
    metadata: dict[str, str] | None
    data_start: int

    @property
    def stored(self) -> list[Entry]:
        """The entries in the order of their bytes."""
        return sorted(self.entries, key=lambda entry: (entry.begin, entry.end))

    def encode(self, metadata: Mapping[str, str] | None) -> bytes:
        """The same entries as the start of a file, with other metadata.

        Padded with spaces so that the data starts at a multiple of 8, as the library does.
        """
        table: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
        for entry in self.entries:
            table[entry.name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [entry.begin, entry.end],
            }
        text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> Header:
    """A header for tensors (name, dtype, shape) stored one after the other.

    Example:
        >>> make_header([("a", "U8", (3,)), ("b", "U8", (2,))]).entries[1]
        Entry(name='b', dtype='U8', shape=(2,), begin=3, end=5)
    """
    entries, end = [], 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * BITS[dtype] // 8
        entries.append(Entry(name, dtype, shape, begin, end))
    return Header(tuple(entries), None, 0)


def parse_header(start: bytes, file_size: int, where: str) -> Header:
    """The header of a file, with every claim it makes checked against the file's size.

    Args:
        start: the first bytes of the file, up to the end of the header at least.
        file_size: bytes of the whole file.
        where: the file's name, for messages.

    Raises:
        FileError: if anything is not as the format says: a length out of bounds, no JSON object, an
            unknown dtype, offsets that overlap, leave holes or end elsewhere than the file does.

    Complexity: O(len(start)); nothing is allocated on the header's word alone.

    Example:
        >>> parse_header(b"\\x02" + bytes(7) + b"{}", 10, "empty.safetensors").entries
        ()
    """
    length = header_length(start, file_size, where)
    table = _object(start[8 : 8 + length], where)
    metadata = _metadata(table.pop("__metadata__", None), where)
    entries = tuple(_entry(name, claim, where) for name, claim in table.items())
    header = Header(entries, metadata, 8 + length)
    end = 0
    for entry in header.stored:
        if entry.begin != end:
            kind = "overlaps the tensor before it" if entry.begin < end else "leaves a hole"
            raise FileError(
                f"read {where}: tensor {entry.name!r} starts at byte {entry.begin} of the data and "
                f"{kind}, which ends at {end}; tensors must follow one another; {_REMEDY}"
            )
        end = entry.end
    present = file_size - header.data_start
    if end != present:
        state = "truncated" if present < end else "longer than its header says"
        raise FileError(
            f"read {where}: the file is {state}: the header describes {end:,} bytes of tensors, "
            f"the file holds {present:,}; {_REMEDY}"
        )
    return header


def header_length(start: bytes, file_size: int, where: str) -> int:
    """The checked length of the header, from the first 8 bytes of a file.

    Raises:
        FileError: if the file is too short for a header or the length cannot be right.
    """
    if file_size < 8 or len(start) < 8:
        raise FileError(
            f"read {where}: the file has {file_size} bytes; a safetensors file starts with 8 bytes "
            f"of header length; {_REMEDY}"
        )
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER or length > file_size - 8 or length < 2:
        raise FileError(
            f"read {where}: the first 8 bytes announce a header of {length:,} bytes in a file of "
            f"{file_size:,}; it must fit the file and the format's limit of {MAX_HEADER:,}; "
            f"{_REMEDY}"
        )
    return length


def _object(text: bytes, where: str) -> dict[str, Any]:
    if text[:1] != b"{":
        raise FileError(f"read {where}: the header does not start with '{{'; {_REMEDY}")
    try:
        # UTF-8 decoding does not see lone surrogates written as \\ud800; encoding them back does.
        table = json.loads(text.decode(), object_pairs_hook=_unique)
        json.dumps(table, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"read {where}: the header is not valid JSON ({str(error)[:200]}); {_REMEDY}"
        ) from error
    if not isinstance(table, dict):
        raise FileError(f"read {where}: the header is no JSON object; {_REMEDY}")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _metadata(claim: Any, where: str) -> dict[str, str] | None:
    if claim is None:
        return None
    if isinstance(claim, dict) and all(isinstance(value, str) for value in claim.values()):
        return claim
    raise FileError(f"read {where}: __metadata__ must map names to strings; {_REMEDY}")


def _entry(name: str, claim: Any, where: str) -> Entry:
    def refuse(rule: str) -> FileError:
        return FileError(f"read {where}: tensor {name[:200]!r}: {rule}; {_REMEDY}")

    if not isinstance(claim, dict) or set(claim) != {"dtype", "shape", "data_offsets"}:
        raise refuse("its entry must hold exactly dtype, shape and data_offsets")
    dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise refuse(f"dtype {str(dtype)[:50]!r} is none of {', '.join(BITS)}")
    if not _sizes(shape):
        raise refuse("its shape must be a list of integers >= 0")
    if not _sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse("data_offsets must be two integers, 0 <= begin <= end")
    begin, end = offsets
    # A product of huge sizes would cost time that grows with the header; a zero makes it 0.
    bits = 0 if 0 in shape else BITS[dtype]
    for size in shape:
        bits *= size
        if bits > 8 * (end - begin):
            break
    if bits != 8 * (end - begin):
        raise refuse(
            f"shape {str(shape)[:100]} of {dtype} does not take the {end - begin:,} bytes its "
            "offsets leave"
        )
    return Entry(name, dtype, tuple(shape), begin, end)


def _sizes(claim: Any) -> bool:
    return isinstance(claim, list) and all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 for size in claim
    )
