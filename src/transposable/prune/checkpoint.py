"""The layers of a pruning run that are done, on disk: a killed run goes on where it stopped."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from transposable.errors import CheckpointError, OutputError
from transposable.prune.report import LayerReport

FORMAT: Final = "transposable.prune/1"
_INDEX: Final = "run.json"


class Saved:
    """The new weight and bias of a layer, in the dtype of the model, and its report."""

    def __init__(
        self, weight: torch.Tensor, bias: torch.Tensor | None, report: LayerReport
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.report = report


class Checkpoint:
    """A directory with one file a layer, each of which is there whole or not at all.

    Args:
        path: new, empty, or what an earlier run of the same left behind.
        fingerprint: what the run depends on.
        names: of the layers, in the model's order.

    Raises:
        CheckpointError: if the directory belongs to another run, or is none of this kind.
        OutputError: if it cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        fingerprint: Mapping[str, str],
        names: list[str],
    ) -> None:
        self.path = Path(path)
        self._files = {name: self.path / _file(i, name) for i, name in enumerate(names)}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            # What a killed run was writing starts with a dot.
            entries = [entry for entry in self.path.iterdir() if not entry.name.startswith(".")]
        except OSError as error:
            raise OutputError(
                f"prune_model: resume={os.fspath(path)!r} is no directory to write to: {error}; "
                "give a new one, in a place that this user may write to"
            ) from error
        index = self.path / _INDEX
        if index in entries:
            self._check(index, fingerprint)
        elif entries:
            raise CheckpointError(
                f"prune_model: resume={os.fspath(path)!r} holds {entries[0].name!r} but no "
                f"{_INDEX}, and so is not of a pruning run; give a new or empty directory"
            )
        else:
            document = {"format": FORMAT, **fingerprint}
            _write(index, json.dumps(document, indent=1).encode())

    def _check(self, index: Path, fingerprint: Mapping[str, str]) -> None:
        try:
            before = json.loads(index.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"prune_model: {index} cannot be read: {error}; give a new or empty directory"
            ) from error
        wanted = {"format": FORMAT, **fingerprint}
        if not isinstance(before, dict):
            before = {}
        different = [
            key if key in ("weights", "calibration", "pattern") else f"{key} ({was} -> {value})"
            for key, value in wanted.items()
            if (was := before.get(key)) != value
        ]
        if different:
            raise CheckpointError(
                f"prune_model: resume={str(self.path)!r} is of another run, which differs in "
                f"{', '.join(different)}; give the model as it was before pruning, the same "
                "settings and the same samples in the same order (a loader that shuffles or "
                "augments needs the seed it had), or a new directory"
            )

    def finished(self) -> set[str]:
        """The layers that need no more pruning."""
        return {name for name, path in self._files.items() if path.exists()}

    def load(self, name: str) -> Saved:
        """What became of a finished layer.

        Raises:
            CheckpointError: if its file is corrupt.
        """
        path = self._files[name]
        try:
            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                document = json.loads(file.metadata()["report"])
            document["shape"] = tuple(document["shape"])
            document["seconds"] = tuple(document["seconds"])
            report = LayerReport(**document, mask=tensors["mask"])
            if report.name != name:
                raise ValueError(f"it is of layer {report.name!r}")
            return Saved(tensors["weight"], tensors.get("bias"), report)
        except (SafetensorError, OSError, ValueError, TypeError, KeyError) as error:
            raise CheckpointError(
                f"prune_model: {path} does not hold layer {name!r} as this version writes it: "
                f"{type(error).__name__}: {error}; delete the file to have the layer pruned again"
            ) from error

    def save(self, saved: Saved) -> None:
        """Write a layer's file.

        Raises:
            OutputError: if it cannot be written.
        """
        tensors = {"weight": saved.weight, "mask": saved.report.mask}
        if saved.bias is not None:
            tensors["bias"] = saved.bias
        document = json.dumps(saved.report.to_json(), default=_plain)
        content = save(
            {key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()},
            {"format": FORMAT, "report": document},
        )
        _write(self._files[saved.report.name], content)


def _file(number: int, name: str) -> str:
    """The name of a layer's file: unique by its number, and for people by the layer's name."""
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", name)[-100:]
    return f"{number:05d}-{readable}.safetensors"


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
    except OSError as error:
        raise OutputError(
            f"prune_model: {path} could not be written: {error}; free some space, or give another "
            "directory with resume="
        ) from error


def _plain(value: Any) -> Any:
    """What JSON does not know, of what a method says about a layer."""
    if isinstance(value, torch.Tensor) or hasattr(value, "tolist"):
        return value.tolist()
    return str(value)
