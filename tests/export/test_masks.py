"""The masks file: pinned bytes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import transposable
from transposable import FileError, Mask
from transposable.export import load_masks, save_masks

PINNED = (
    b'{"__metadata__":{"transposable.masks.format":"1","transposable.version":"VERSION",'
    b'"transposable.masks":"{\\"a\\":{\\"shape\\":[4,4],\\"pattern\\":\\"1:4T\\",'
    b'\\"layout\\":\\"linear\\",\\"groups\\":1,\\"transposed\\":false},'
    b'\\"b\\":{\\"shape\\":[1,3],\\"pattern\\":\\"2:4\\",'
    b'\\"layout\\":\\"linear\\",\\"groups\\":1,\\"transposed\\":false}}"},'
    b'"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},'
    b'"b":{"dtype":"U8","shape":[1],"data_offsets":[2,3]}}'
)


def masks() -> dict[str, Mask]:
    return {
        "a": Mask(torch.eye(4, dtype=torch.bool), "1:4T"),
        "b": Mask(torch.tensor([[True, False, True]]), "2:4"),
    }


def test_pinned_bytes(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    save_masks(path, masks())
    header = PINNED.replace(b"VERSION", transposable.__version__.encode())
    header += b" " * (-len(header) % 8)
    # a: rows 1000 0100 / 0010 0001, lowest bit first; b: 101 and five fill bits.
    data = bytes([0b0010_0001, 0b1000_0100, 0b0000_0101])
    assert path.read_bytes() == len(header).to_bytes(8, "little") + header + data
    assert load_masks(path) == masks()
    assert load_file(path)["b"].tolist() == [5]  # any safetensors reader sees the bits


def test_every_layout_and_size(tmp_path: Path) -> None:
    path = tmp_path / "masks.safetensors"
    given = {
        "conv": Mask(torch.rand(6, 5, 3, 3) > 0.5, "2:4T", layout="conv", groups=2),
        "stacked": Mask(torch.rand(2, 3, 4) > 0.5, "4:8S", layout="stacked"),
        "empty": Mask(torch.zeros(0, 7, dtype=torch.bool), "50%"),
        "ümlaut": Mask(torch.ones(1, 1, dtype=torch.bool), "2:4"),
    }
    save_masks(path, given)
    assert load_masks(path) == given
    save_masks(path, {})
    assert load_masks(path) == {}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shape": [4, 5]}, "takes? 3 bytes|take 3 bytes"),
        ({"shape": [-4, -4]}, "integers >= 0"),
        ({"shape": "4x4"}, "integers >= 0"),
        ({"shape": [2**40, 2**40]}, "larger than any file"),
        ({"shape": [3, 5]}, "fill bit"),
        ({"pattern": "4:4"}, "1 <= n < m"),
        ({"layout": "conv"}, "conv"),
        ({"groups": 0}, "groups"),
        ({"transposed": 1}, "transposed"),
    ],
)
def test_malformed(tmp_path: Path, change: dict[str, object], match: str) -> None:
    good = {"shape": [4, 4], "pattern": "1:4T", "layout": "linear", "groups": 1}
    table = {"a": {**good, "transposed": False, **change}}
    path = tmp_path / "m.safetensors"
    save_file(
        {"a": torch.tensor([0x21, 0x84], dtype=torch.uint8)},
        path,
        metadata={"transposable.masks.format": "1", "transposable.masks": json.dumps(table)},
    )
    with pytest.raises(FileError, match=match):
        load_masks(path)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(FileError, match="holds no masks"):
        load_masks(path)
    save_file({"a": torch.ones(2)}, path, metadata={"transposable.masks.format": "2"})
    with pytest.raises(FileError, match="have format '2'"):
        load_masks(path)
    save_file({"a": torch.ones(2)}, path, metadata={"transposable.masks.format": "1"})
    with pytest.raises(FileError, match="malformed"):
        load_masks(path)
