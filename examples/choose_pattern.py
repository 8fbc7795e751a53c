"""Which pattern for a model: what each keeps, how many masks it allows, and the page about it.

python examples/choose_pattern.py [model.safetensors or directory]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

from transposable.analysis import diversity, findings, render, study

PATTERNS = ("2:4", "4:8", "2:4T", "4:8T", "8:16T")


def small_model() -> Path:
    """A stand-in for a trained model: heavy tails, and rows of unequal size."""
    torch.manual_seed(0)
    path = Path(tempfile.mkdtemp()) / "model.safetensors"
    tensors = {
        f"encoder.layer.{i}.dense.weight": torch.randn(128, 96) ** 3 * torch.rand(128, 1)
        for i in range(4)
    }
    save_file(tensors, path)
    return path


def main() -> None:
    model = Path(sys.argv[1]) if len(sys.argv) > 1 else small_model()
    found = study(model, PATTERNS, sample=1 << 20)
    print("pattern  kept of unstructured, %  bits a weight")
    for pattern in found.retention.patterns:
        total = found.retention.total(pattern)
        kept = "unknown" if total.relative is None else f"{100 * total.relative:.1f}"
        print(f"{pattern!s:8} {kept:>23} {diversity(pattern, (64, 64)).bits_per_weight:14.3f}")
    for line in findings(found):
        print(f"- {line}")
    page = Path(tempfile.mkdtemp()) / "report.html"
    page.write_text(render(found), encoding="utf-8")
    print(f"the page: {page}")


if __name__ == "__main__":
    main()
