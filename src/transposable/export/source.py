"""A model on disk: one safetensors file, a sharded directory, or a Hugging Face directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from transposable.errors import FileError
from transposable.export.header import Entry
from transposable.export.reader import PICKLE_SUFFIXES, TensorFile
from transposable.export.record import Reading, read_record

INDEX_SUFFIX: Final = ".safetensors.index.json"
MASKS_KEY: Final = "transposable.masks.format"

OTHER_WEIGHTS: Final = PICKLE_SUFFIXES | {".h5", ".msgpack", ".ot", ".onnx", ".gguf", ".tflite"}
"""Suffixes of weights in other formats: they are dense, so a pruned copy does not carry them."""

_NOT_CARRIED: Final = frozenset({".git", ".cache"})


@dataclass
class Source:
    """A model opened for reading; its weight files stay open until it is closed.

    Attributes:
        path: what was given.
        is_directory: whether the model is a directory.
        shards: the files that hold the tensors, in the order of their names.
        record: the tensors recorded as pruned, over all shards.
        config: the parsed config.json beside the weights; empty when there is none.
        notes: what a user should know about how the model was read.
    """

    path: Path
    is_directory: bool
    shards: list[TensorFile]
    record: dict[str, Reading]
    config: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    def tensors(self) -> Iterator[tuple[TensorFile, Entry]]:
        """All tensors, shard by shard, in the order of their bytes."""
        for shard in self.shards:
            for entry in shard.header.stored:
                yield shard, entry

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.nbytes for _, entry in self.tensors())

    def close(self) -> None:
        """Close every file."""
        for shard in self.shards:
            shard.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_source(path: str | os.PathLike[str]) -> Source:
    """Open a .safetensors file, a sharded directory with its index, or a model directory.

    Raises:
        FileError: if something is missing, corrupt, ambiguous or a pickle; see the message.

    Complexity: reads the headers, no weights.
    """
    path = Path(path)
    notes: list[str] = []
    with ExitStack() as opened:  # closes what was opened if a later file is refused
        if path.is_dir():
            shards = _open_directory(path, opened, notes)
            config = _config(path / "config.json")
        else:
            shards = [opened.enter_context(TensorFile(path))]
            if is_masks(shards[0]):
                raise FileError(
                    f"read {path}: this file holds masks, not weights; read it with "
                    "transposable.export.load_masks, or pass it to 'transposable verify --masks'"
                )
            try:
                config = _config(path.parent / "config.json")
            except FileError as error:  # helpful, not asked for: the file alone is enough
                config = {}
                notes.append(f"the config.json beside the file is not used: {error}")
            notes += _index_beside(path)
        seen: dict[str, Path] = {}
        record: dict[str, Reading] = {}
        for shard in shards:
            for entry in shard.header.entries:
                if entry.name in seen:
                    raise FileError(
                        f"read {path}: tensor {entry.name!r} is in {seen[entry.name].name} and in "
                        f"{shard.path.name}; a name must occur once; remove the file that is not "
                        "part of the model, or process the files one by one"
                    )
                seen[entry.name] = shard.path
            record |= read_record(shard.header, str(shard.path))
        opened.pop_all()
    return Source(path, path.is_dir(), shards, record, config, notes)


def is_masks(file: TensorFile) -> bool:
    """Whether a safetensors file holds packed masks instead of weights."""
    return MASKS_KEY in (file.header.metadata or {})


def carried(source: Source, *, in_place: bool) -> tuple[list[Path], list[str]]:
    """The other files of a model directory that its pruned version keeps, and notes on the rest.

    Paths are relative to the directory. Weights in other formats are dense: a copy leaves them
    behind and says so; in place nothing is removed, and the notes name them.
    """
    shards = {shard.path.name for shard in source.shards}
    keep: list[Path] = []
    left: list[str] = []
    notes = []
    for parent, directories, names in os.walk(source.path, followlinks=True):
        relative = Path(parent).relative_to(source.path)
        directories.sort()
        if not in_place:
            left += [f"{relative / name}/" for name in directories if name in _NOT_CARRIED]
            directories[:] = [name for name in directories if name not in _NOT_CARRIED]
        for name in sorted(names):
            path = relative / name
            if relative == Path(".") and name in shards:
                continue
            bare = name.removesuffix(".index.json")
            if Path(bare).suffix.lower() in OTHER_WEIGHTS:
                left.append(str(path))
                if in_place:
                    keep.append(path)
                continue
            if path.suffix == ".safetensors":
                notes.append(f"{path} is not part of the model's weights and is carried unchanged")
            keep.append(path)
    if left:
        what = (
            "kept, and still dense: "
            if in_place
            else ("not carried over (dense weights in other formats, version control): ")
        )
        notes.append(what + ", ".join(left))
    return keep, notes


def _open_directory(path: Path, opened: ExitStack, notes: list[str]) -> list[TensorFile]:
    indices = sorted(path.glob("*" + INDEX_SUFFIX))
    if len(indices) > 1:
        raise FileError(
            f"read {path}: found {', '.join(index.name for index in indices)}; a directory must "
            "hold one index; move one variant of the model away"
        )
    present = sorted(path.glob("*.safetensors"))
    if indices:
        return _open_indexed(path, indices[0], present, opened, notes)
    shards = []
    for name in present:
        shard = opened.enter_context(TensorFile(name))
        if is_masks(shard):
            notes.append(f"{name.name} holds masks and is not read as weights")
        else:
            shards.append(shard)
    if shards:
        return shards
    pickles = sorted(
        entry.name for entry in path.iterdir() if entry.suffix.lower() in PICKLE_SUFFIXES
    )
    if pickles:
        raise FileError(
            f"read {path}: the weights are pickled ({', '.join(pickles[:3])}); pickles can run "
            "code "
            "when they are opened and are never read here; convert the model to safetensors first, "
            "in an environment you trust, with model.save_pretrained(directory, "
            "safe_serialization=True)"
        )
    raise FileError(
        f"read {path}: the directory holds no .safetensors file; give a .safetensors file or the "
        "directory of a model"
    )


def _open_indexed(
    path: Path, index: Path, present: list[Path], opened: ExitStack, notes: list[str]
) -> list[TensorFile]:
    weight_map = _json_object(index).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise FileError(
            f"read {index}: weight_map must map the names of tensors to files; the index is "
            "corrupt; download or save it again"
        )
    names = sorted(set(weight_map.values()))
    for name in names:
        if name in ("", ".", "..") or name != os.path.basename(name) or "\\" in name:
            raise FileError(
                f"read {index}: weight_map names the file {name!r}; shards must lie beside the "
                "index; the index is corrupt or unsafe; download it again"
            )
    missing = [name for name in names if not (path / name).exists()]
    if missing:
        raise FileError(
            f"read {path}: {len(missing)} of {len(names)} shards named by {index.name} missing: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; download the missing "
            "files"
        )
    single = index.name.removesuffix(".index.json")
    if single not in names and (path / single).exists():
        raise FileError(
            f"read {path}: found both {single} and {index.name}, two copies of the weights, and "
            "loaders differ in which they take; move one of them away"
        )
    shards = [opened.enter_context(TensorFile(path / name)) for name in names]
    held = {shard.path.name: {e.name for e in shard.header.entries} for shard in shards}
    for tensor, name in weight_map.items():
        if tensor not in held[name]:
            raise FileError(
                f"read {index}: weight_map puts tensor {tensor!r} in {name}, which does not hold "
                "it; index and shards belong to different models; download them together"
            )
    others = [file.name for file in present if file.name not in held]
    if others:
        notes.append(f"not part of {index.name}, not read as weights: {', '.join(others)}")
    return shards


def _index_beside(path: Path) -> list[str]:
    """A note when one shard of a sharded model was given."""
    for index in sorted(path.parent.glob("*" + INDEX_SUFFIX)):
        try:
            shards = _json_object(index).get("weight_map", {})
        except FileError:
            continue  # the index is not what was asked for
        if isinstance(shards, dict) and path.name in shards.values():
            return [
                f"this file is one shard of {index.name}; give the directory for the whole model"
            ]
    return []


def _config(path: Path) -> dict[str, Any]:
    return _json_object(path) if path.is_file() else {}


def _json_object(path: Path) -> dict[str, Any]:
    try:
        table = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise FileError(
            f"read {path}: no valid JSON ({str(error)[:200]}); download or save it again"
        ) from error
    except OSError as error:
        raise FileError(
            f"read {path}: {error.strerror or error}; check that the file can be read by this user"
        ) from error
    if not isinstance(table, dict):
        raise FileError(f"read {path}: a JSON object is needed; download or save it again")
    return table
