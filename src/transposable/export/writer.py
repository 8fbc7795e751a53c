"""Writing safetensors files tensor by tensor: the header first, then the bytes as they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import BinaryIO

import torch

from transposable.errors import FileError
from transposable.export.header import Header


class TensorWriter:
    """Writes the tensors of a header whose shapes and dtypes are known beforehand.

    The library's ``save_file`` needs every tensor in memory at once; the format does not, since
    shapes and dtypes alone make the header.

    Args:
        file: where to write, at its start.
        header: what will be written; the bytes must follow in the order of ``header.stored``.
        metadata: the ``__metadata__`` of the new file.

    Example:
        >>> import io
        >>> from transposable.export.header import make_header
        >>> file = io.BytesIO()
        >>> writer = TensorWriter(file, make_header([("a", "U8", (2,))]), None)
        >>> writer.write(b"hi")
        >>> writer.finish()
        >>> file.getvalue()[-2:]
        b'hi'
    """

    def __init__(self, file: BinaryIO, header: Header, metadata: Mapping[str, str] | None) -> None:
        self._file = file
        self._missing = sum(entry.nbytes for entry in header.entries)
        file.write(header.encode(metadata))

    def write(self, data: bytes | memoryview | torch.Tensor) -> None:
        """Append bytes, or the contents of a contiguous tensor."""
        if isinstance(data, torch.Tensor):
            data = data.reshape(-1).view(torch.uint8).numpy().data
        self._missing -= len(data)
        if len(data):
            self._file.write(data)

    def finish(self) -> None:
        """Check that exactly what the header announces was written.

        Raises:
            FileError: otherwise; the file must not be used.
        """
        if self._missing:
            state = "short" if self._missing > 0 else "too long"
            raise FileError(
                f"write safetensors: the tensors are {abs(self._missing):,} bytes {state} of the "
                "header; every entry must be written once, in order; this is an error in the caller"
            )
