"""Small models on disk, for the tests of the file layer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """A model with every kind of tensor that the policy treats differently."""
    torch.manual_seed(0)
    return {
        "embed_tokens.weight": torch.randn(40, 16),
        "layers.0.q_proj.weight": torch.randn(16, 24),
        "layers.0.q_proj.bias": torch.randn(16),
        "layers.0.up.weight": torch.randn(24, 16).to(torch.bfloat16),
        "layers.0.conv.weight": torch.randn(8, 8, 3, 3).half(),
        "layers.0.quant": torch.randn(8, 8).to(torch.float8_e4m3fn),
        "layers.0.flags": torch.tensor([True, False, True]),
        "position_ids": torch.arange(7),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "nothing": torch.zeros(0, 4),
        "lm_head.weight": torch.randn(40, 16),
    }


@pytest.fixture
def model(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """That model as one file."""
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "note": "ü"})
    return path


@pytest.fixture
def make_directory(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Callable[[str], Path]:
    """Makes that model as a Hugging Face directory of two shards."""

    def make(name: str) -> Path:
        directory = tmp_path / name
        (directory / "1_Pooling").mkdir(parents=True)
        names = list(tensors)
        shards = {
            "model-00001-of-00002.safetensors": names[::2],
            "model-00002-of-00002.safetensors": names[1::2],
        }
        for file, held in shards.items():
            save_file({n: tensors[n] for n in held}, directory / file, metadata={"format": "pt"})
        weight_map = {n: file for file, held in shards.items() for n in held}
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
        (directory / "config.json").write_text('{"model_type": "test"}')
        (directory / "tokenizer.json").write_text("{}")
        (directory / "1_Pooling" / "config.json").write_text("{}")
        return directory

    return make


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a directory with its bytes, to prove that nothing changed."""

    def take(directory: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(directory)): path.read_bytes()
            for path in sorted(directory.rglob("*"))
            if path.is_file()
        }

    return take
