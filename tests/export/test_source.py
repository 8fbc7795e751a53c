"""What is refused as a model, with a message that says why and what to do."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from transposable import FileError, SelectionError
from transposable.export import open_source, verify_model


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (Path("unpickled"),))


@pytest.mark.parametrize("name", ["m.bin", "m.pt", "m.pth", "m.ckpt", "m.PKL", "m.safetensors"])
@pytest.mark.parametrize("content", ["pickle", "zip"])
def test_pickles(tmp_path: Path, name: str, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if content == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    with pytest.raises(FileError, match="never read here; convert it to safetensors"):
        open_source(path)
    assert not (tmp_path / "unpickled").exists()


def test_a_header_of_640_bytes_is_no_pickle(tmp_path: Path) -> None:
    """The first two bytes, 80 02, are those of a pickle of protocol 2."""
    path = tmp_path / "m.safetensors"
    for filler in range(700):
        save_file({"w": torch.ones(4, 4)}, path, metadata={"a": "x" * filler})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    else:
        pytest.fail("no header of 640 bytes made")
    open_source(path).close()


def test_files(tmp_path: Path, model: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        open_source(tmp_path / "nosuch.safetensors")
    data = model.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in (0, 5, 8, 100, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(FileError, match=r"cut\.safetensors"):
            open_source(path)
    path.write_bytes(data + b"x")
    with pytest.raises(FileError, match="longer than its header says"):
        open_source(path)
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n")
    with pytest.raises(FileError, match="git lfs pull"):
        open_source(path)
    with pytest.raises(FileError, match="no regular file"):
        open_source("/dev/null")


def test_directories(make_directory: Callable[[str], Path], tmp_path: Path) -> None:
    def broken(name: str, change: Callable[[Path], object], match: str) -> None:
        directory = make_directory(name)
        change(directory)
        with pytest.raises(FileError, match=match):
            open_source(directory)

    index = "model.safetensors.index.json"
    shard = "model-00002-of-00002.safetensors"

    def remap(name: str, file: str) -> Callable[[Path], object]:
        def change(directory: Path) -> None:
            table = json.loads((directory / index).read_text())
            table["weight_map"][name] = file
            (directory / index).write_text(json.dumps(table))

        return change

    def collide(directory: Path) -> None:
        held = load_file(directory / shard)
        save_file({**held, "embed_tokens.weight": torch.ones(1)}, directory / shard)

    broken("missing", lambda d: (d / shard).unlink(), f"missing: {shard}")
    broken("corrupt", lambda d: (d / index).write_text("{"), "no valid JSON")
    broken("list", lambda d: (d / index).write_text("[]"), "a JSON object is needed")
    broken("empty map", lambda d: (d / index).write_text("{}"), "weight_map must map")
    broken("escape", remap("x", "../secret.safetensors"), "unsafe")
    broken("unknown", remap("x", shard), "does not hold it")
    broken("pickled", remap("x", "a.bin"), "missing: a.bin")
    broken("twice", collide, "must occur once")
    broken("two indices", lambda d: (d / f"b.{index}").write_text("{}"), "one index")
    broken("both", lambda d: save_file({}, d / "model.safetensors"), "found both")
    broken("config", lambda d: (d / "config.json").write_text("{"), "config.json: no valid JSON")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileError, match=r"no \.safetensors file"):
        open_source(empty)
    (empty / "pytorch_model.bin").write_bytes(b"PK")
    with pytest.raises(FileError, match="never read here"):
        open_source(empty)


def test_a_single_shard_is_noted(make_directory: Callable[[str], Path]) -> None:
    shard = make_directory("d") / "model-00001-of-00002.safetensors"
    with open_source(shard) as source:
        assert any("one shard of" in note for note in source.notes)


@pytest.mark.parametrize(
    "metadata",
    [
        {"transposable.tensors": "{}"},
        {"transposable.format": "2", "transposable.tensors": "{}"},
        {"transposable.format": "1", "transposable.tensors": "["},
        {"transposable.format": "1", "transposable.tensors": "[]"},
        {"transposable.format": "1", "transposable.tensors": '{"x": {}}'},
        {"transposable.format": "1", "transposable.tensors": '{"w": {}}'},
        {
            "transposable.format": "1",
            "transposable.tensors": '{"w": {"pattern": "9:4T", "layout": "linear", "groups": 1, '
            '"transposed": false}}',
        },
        {
            "transposable.format": "1",
            "transposable.tensors": '{"w": {"pattern": "2:4T", "layout": "conv", "groups": 1, '
            '"transposed": false}}',
        },
    ],
)
def test_malformed_records(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.ones(4, 4)}, path, metadata=metadata)
    with pytest.raises(FileError, match=r"m\.safetensors"):
        open_source(path)


def test_verify_needs_a_pattern(model: Path) -> None:
    with open_source(model) as source, pytest.raises(SelectionError, match="--pattern"):
        verify_model(source)
    with open_source(model) as source:
        assert not any(checked.ok for checked in verify_model(source, "2:4T"))
