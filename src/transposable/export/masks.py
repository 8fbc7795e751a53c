"""Masks in a file of their own: one bit a weight, in a safetensors container (docs/formats.md)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from transposable._version import __version__
from transposable.errors import FileError, TransposableError
from transposable.export.atomic import Transaction
from transposable.export.header import make_header
from transposable.export.reader import TensorFile
from transposable.export.record import KEY_VERSION, Reading
from transposable.export.source import MASKS_KEY, is_masks
from transposable.export.writer import TensorWriter
from transposable.mask import Mask

MASKS_FORMAT: Final = "1"
"""Version of the format; readers refuse others."""

KEY_MASKS: Final = "transposable.masks"


class MasksWriter:
    """Writes masks one at a time, in an order announced beforehand.

    Args:
        file: where to write.
        announced: name -> (shape of the mask, how the weight is read).
    """

    def __init__(
        self, file: BinaryIO, announced: Mapping[str, tuple[tuple[int, ...], Reading]]
    ) -> None:
        table: dict[str, Any] = {}
        for name, (shape, reading) in announced.items():
            table[name] = {"shape": list(shape), **reading.to_json()}
        sizes = [(name, "U8", (-(-math.prod(s) // 8),)) for name, (s, _) in announced.items()]
        metadata = {
            MASKS_KEY: MASKS_FORMAT,
            KEY_VERSION: __version__,
            KEY_MASKS: json.dumps(table, ensure_ascii=False, separators=(",", ":")),
        }
        self._writer = TensorWriter(file, make_header(sizes), metadata)

    def write(self, mask: Mask) -> None:
        """Append the next mask."""
        self._writer.write(mask.pack())

    def finish(self) -> None:
        """Check that all announced masks were written."""
        self._writer.finish()


def save_masks(path: str | os.PathLike[str], masks: Mapping[str, Mask]) -> None:
    """Write masks to a file, one bit a weight, atomically.

    Args:
        path: the file; replaced if it is there.
        masks: mask by name of the weight.

    Raises:
        OutputError: if the file cannot be written; what was there before is untouched.

    Complexity: O(weights), one mask unpacked at a time.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "masks.safetensors"
        >>> masks = {"w": Mask(torch.eye(4, dtype=torch.bool), "1:4T")}
        >>> save_masks(path, masks)
        >>> load_masks(path) == masks
        True
    """
    announced = {
        name: (tuple(mask.shape), Reading(mask.pattern, mask.layout))
        for name, mask in masks.items()
    }
    with Transaction() as outputs:
        writer = MasksWriter(outputs.file(path), announced)
        for mask in masks.values():
            writer.write(mask)
        writer.finish()


def load_masks(path: str | os.PathLike[str]) -> dict[str, Mask]:
    """The masks of a file written by :func:`save_masks` or ``transposable prune --masks``.

    A mask recorded as transposed is that of ``weight.mT``: see :func:`read_masks`.

    Raises:
        FileError: if the file is missing, corrupt, no masks file, or of another format version.
    """
    return {name: mask for name, (mask, _) in read_masks(path).items()}


def read_masks(path: str | os.PathLike[str]) -> dict[str, tuple[Mask, Reading]]:
    """As :func:`load_masks`, with how each weight is read."""
    with TensorFile(path) as file:
        metadata = file.header.metadata or {}
        where = str(Path(path))
        if not is_masks(file):
            raise FileError(
                f"read {where}: this safetensors file holds no masks; give a file written by "
                "'transposable prune --masks' or save_masks"
            )
        if metadata[MASKS_KEY] != MASKS_FORMAT:
            raise FileError(
                f"read {where}: the masks have format {metadata[MASKS_KEY]!r}; this version reads "
                f"{MASKS_FORMAT!r}; install the version of transposable that wrote the file"
            )
        try:
            table = json.loads(metadata.get(KEY_MASKS, ""))
            if not isinstance(table, dict):
                raise ValueError("the table of masks is no JSON object")
            names = {entry.name for entry in file.header.entries}
            if set(table) != names:
                raise ValueError("the table of masks and the tensors have different names")
            masks = {}
            for entry in file.header.entries:
                reading = Reading.from_json(table[entry.name])
                shape = _shape(table[entry.name].get("shape"))
                data = file.read(entry).contiguous().numpy().tobytes()
                mask = Mask.unpack(data, shape, reading.pattern, layout=reading.layout)
                masks[entry.name] = (mask, reading)
        except FileError:
            raise
        except (ValueError, TypeError, RecursionError, TransposableError) as error:
            raise FileError(
                f"read {where}: the masks are malformed ({str(error)[:300]}); write the file again"
            ) from error
    return masks


def _shape(claim: Any) -> tuple[int, ...]:
    if not isinstance(claim, list) or not all(
        isinstance(size, int) and not isinstance(size, bool) and size >= 0 for size in claim
    ):
        raise ValueError("a shape must be a list of integers >= 0")
    if math.prod(claim) >= 2**62:
        raise ValueError("a shape is larger than any file")
    return tuple(claim)
