"""Tests of masks on a real GPU; without one they are skipped, and say so."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = None
    if not torch.cuda.is_available():
        reason = "torch sees no CUDA device"
    elif importlib.util.find_spec("triton") is None:
        reason = "triton is not installed"
    for item in items:
        if reason is not None and item.path == Path(__file__).with_name("test_masks.py"):
            item.add_marker(pytest.mark.skip(reason=reason))
