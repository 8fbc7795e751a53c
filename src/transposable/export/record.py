"""What a pruned file says about itself, in its safetensors metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from transposable._version import __version__
from transposable.errors import FileError, TransposableError
from transposable.export.header import Header
from transposable.layout import Layout
from transposable.pattern import Pattern

FORMAT: Final = "1"
"""Version of the record; readers refuse others."""

KEY_FORMAT: Final = "transposable.format"
KEY_VERSION: Final = "transposable.version"
KEY_PATTERN: Final = "transposable.pattern"
KEY_TENSORS: Final = "transposable.tensors"


@dataclass(frozen=True, slots=True)
class Reading:
    """How a stored tensor is read as a weight: its pattern, its layout, and whether transposed.

    ``transposed`` is true for weights stored [in, out] (GPT-2's Conv1D) under a pattern that holds
    along one axis only: the pattern is that of the tensor with its last two axes exchanged.
    """

    pattern: Pattern
    layout: Layout
    transposed: bool = False

    def orient(self, tensor: torch.Tensor) -> torch.Tensor:
        """A stored tensor as [..., out, in], or back; a view."""
        return tensor.mT if self.transposed else tensor

    def oriented_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of :meth:`orient`'s result."""
        return (*shape[:-2], shape[-1], shape[-2]) if self.transposed else shape

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return {
            "pattern": str(self.pattern),
            "layout": self.layout.name,
            "groups": self.layout.groups,
            "transposed": self.transposed,
        }

    @classmethod
    def from_json(cls, claim: Any) -> Reading:
        """The inverse of :meth:`to_json`; raises ValueError or a subclass for anything else."""
        keys = {"pattern", "layout", "groups", "transposed"}
        if not isinstance(claim, dict) or not keys <= set(claim):
            raise ValueError(f"an object with {', '.join(sorted(keys))} is needed")
        if not isinstance(claim["transposed"], bool):
            raise ValueError("transposed must be true or false")
        layout = Layout(claim["layout"], claim["groups"])
        return cls(Pattern.parse(claim["pattern"]), layout, claim["transposed"])


def read_record(header: Header, where: str) -> dict[str, Reading]:
    """The tensors that a file records as pruned; empty for a file without a record.

    Raises:
        FileError: if the record is of another format version, malformed, or names tensors that the
            file does not hold.
    """
    metadata = header.metadata or {}
    if KEY_TENSORS not in metadata:
        return {}
    version = metadata.get(KEY_FORMAT)
    if version != FORMAT:
        raise FileError(
            f"read {where}: the pruning record has format {version!r}; this version reads "
            f"{FORMAT!r}; install the version of transposable that wrote it"
        )
    shapes = {entry.name: entry.shape for entry in header.entries}
    record = {}
    try:
        claims = json.loads(metadata[KEY_TENSORS])
        if not isinstance(claims, dict):
            raise ValueError("it is no JSON object")
        for name, claim in claims.items():
            if name not in shapes:
                raise ValueError(f"it names {name!r}, which the file does not hold")
            record[name] = Reading.from_json(claim)
            record[name].layout.check(shapes[name], "layout")
    except (ValueError, RecursionError, TypeError, TransposableError) as error:
        raise FileError(
            f"read {where}: the metadata {KEY_TENSORS!r} is malformed ({str(error)[:300]}); prune "
            "the dense file again, or remove that metadata to treat the file as dense"
        ) from error
    return record


def write_record(
    metadata: Mapping[str, str] | None, pattern: Pattern, record: Mapping[str, Reading]
) -> dict[str, str]:
    """The metadata of a pruned file: that of its source, plus the record."""
    table = {name: reading.to_json() for name, reading in record.items()}
    return {
        **(metadata or {}),
        KEY_FORMAT: FORMAT,
        KEY_VERSION: __version__,
        KEY_PATTERN: str(pattern),
        KEY_TENSORS: json.dumps(table, ensure_ascii=False, separators=(",", ":")),
    }
