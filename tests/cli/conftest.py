"""The command line in this process, and small models for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from transposable.cli import main

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Runs the command line; every exception must have become an exit code."""

    def invoke(*args: object) -> Result:
        result = CliRunner().invoke(main, [str(arg) for arg in args])
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result

    return invoke


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model: two weights to prune, an embedding, a bias."""
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    tensors = {
        "embed_tokens.weight": torch.randn(40, 16),
        "layers.0.up.weight": torch.randn(32, 16),
        "layers.0.up.bias": torch.randn(32),
        "layers.1.up.weight": torch.randn(32, 16).bfloat16(),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    return path
