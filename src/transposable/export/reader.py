"""Reading safetensors files tensor by tensor; refusing pickles."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import torch

from transposable.errors import FileError
from transposable.export.header import Entry, Header, header_length, parse_header

TORCH_DTYPES: Final[dict[str, torch.dtype]] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""The dtypes whose values are looked at; tensors of all others are copied as bytes."""

CHUNK: Final = 4 << 20
"""Bytes read at a time from tensors that are only copied."""

PICKLE_SUFFIXES: Final = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_CONVERT: Final = (
    "pickles can run code when they are opened and are never read here; convert it to safetensors "
    "first, in an environment you trust, for example with model.save_pretrained(directory, "
    "safe_serialization=True) or safetensors.torch.save_file(state_dict, path)"
)


class TensorFile:
    """A safetensors file, opened and checked; tensors are read one at a time.

    Plain reads, no memory map: mapped pages count as this process's memory, so that the peak would
    be the model and not its largest tensor; and a mapped file that shrinks kills the process.

    Args:
        path: the file.

    Raises:
        FileError: if the file is missing, a pickle, truncated or corrupt.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        where = str(self.path)
        refuse_pickle_name(self.path)
        try:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115  closed by close()
        except OSError as error:
            raise _unreadable(where, error) from error
        try:
            self.header = self._read_header(where)
        except BaseException:
            self._file.close()
            raise

    def _read_header(self, where: str) -> Header:
        status = os.fstat(self._file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise FileError(
                f"read {where}: this is no regular file; give a .safetensors file or a model "
                "directory"
            )
        start = self._at(0, min(8, status.st_size))
        _refuse_other_content(self._at(0, min(64, status.st_size)), where)
        length = header_length(start, status.st_size, where)
        return parse_header(start + self._at(8, length), status.st_size, where)

    def _at(self, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        self._fill(memoryview(buffer), offset)
        return bytes(buffer)

    def _fill(self, view: memoryview, offset: int) -> None:
        try:
            self._file.seek(offset)
            while len(view):
                got = self._file.readinto(view)
                if not got:
                    raise FileError(
                        f"read {self.path}: the file ended early; it was changed while it was "
                        "being read; run again when nothing else writes to it"
                    )
                view = view[got:]
        except OSError as error:
            if isinstance(error, FileError):
                raise
            raise _unreadable(str(self.path), error) from error

    def read(self, entry: Entry, scratch: torch.Tensor | None = None) -> torch.Tensor:
        """The tensor of an entry, in its dtype; of dtypes torch does not compute with, the bytes.

        Args:
            entry: one of ``header.entries``.
            scratch: a uint8 tensor of at least ``entry.nbytes`` to read into; the result is then a
                view of it.

        Raises:
            FileError: if the file cannot be read.
        """
        if scratch is None:
            scratch = torch.empty(entry.nbytes, dtype=torch.uint8)
        raw = scratch[: entry.nbytes]
        if entry.nbytes:
            self._fill(raw.numpy().data, self.header.data_start + entry.begin)
        dtype = TORCH_DTYPES.get(entry.dtype)
        return raw if dtype is None else raw.view(dtype).reshape(entry.shape)

    def chunks(self, entry: Entry, buffer: bytearray) -> Iterator[memoryview]:
        """The bytes of an entry, at most ``len(buffer)`` at a time, each in that buffer."""
        position = self.header.data_start + entry.begin
        end = self.header.data_start + entry.end
        while position < end:
            view = memoryview(buffer)[: min(len(buffer), end - position)]
            self._fill(view, position)
            position += len(view)
            yield view

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def refuse_pickle_name(path: Path) -> None:
    """Raise FileError for the file names that pickled weights have."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise FileError(f"read {path}: a {path.suffix} file holds pickled weights; {_CONVERT}")


def _refuse_other_content(start: bytes, where: str) -> None:
    if start[8:9] == b"{":
        return  # a header of 640 bytes starts like a pickle of protocol 2, and is none
    if start[:4] == b"PK\x03\x04" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        raise FileError(f"read {where}: the content is a pickle (or a zip of one); {_CONVERT}")
    if start.startswith(b"version https://git-lfs"):
        raise FileError(
            f"read {where}: this is a Git LFS pointer, not the weights; fetch them with 'git lfs "
            "pull'"
        )


def _unreadable(where: str, error: OSError) -> FileError:
    if isinstance(error, FileNotFoundError):
        return FileError(f"read {where}: there is no such file; check the path")
    if isinstance(error, IsADirectoryError):
        return FileError(f"read {where}: this is a directory; a .safetensors file is needed here")
    return FileError(
        f"read {where}: {error.strerror or error}; check that the file can be read by this user"
    )
