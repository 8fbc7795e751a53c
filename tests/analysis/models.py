"""Models on disk that are hard on a report."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from safetensors.torch import save_file

from transposable.analysis import Study

ODD_NAMES = (
    "",
    "<script>document.title = 'broken'</script>",
    "\"'><img src=x onerror=alert(1)>.weight",
    "\u5c42.\u00fcn\u00ef.\u202ertl.weight",
    "a" * 300,
    "{{ 7 * 7 }} {% raw %}",
    "line\nbreak\tand tab",
    "emoji \N{PILE OF POO}.weight",
)


def ordinary(path: Path, layers: int = 3) -> Path:
    torch.manual_seed(0)
    tensors = {f"encoder.layer.{i}.dense.weight": torch.randn(40, 24) for i in range(layers)}
    save_file({**tensors, "encoder.layer.0.dense.bias": torch.randn(40)}, path)
    return path


def odd(path: Path) -> Path:
    torch.manual_seed(0)
    save_file({name: torch.randn(16, 20) for name in ODD_NAMES}, path)
    return path


def without_layers(path: Path) -> Path:
    save_file({"lm_head.weight": torch.randn(8, 8), "norm.bias": torch.zeros(8)}, path)
    return path


def with_nan(path: Path) -> Path:
    bad = torch.randn(16, 16)
    bad[3, 5] = float("nan")
    save_file({"good.weight": torch.randn(16, 16), "<b>bad</b>.weight": bad}, path)
    return path


def many_layers(found: Study, count: int) -> Study:
    """The same figures for ``count`` layers, without measuring them."""
    kept = found.retention
    layers = tuple(
        dataclasses.replace(kept.layers[i % len(kept.layers)], name=f"block.{i}.up_proj.weight")
        for i in range(count)
    )
    names = {layer.name: layers[i].name for i, layer in enumerate(kept.layers)}
    pictures = tuple(dataclasses.replace(p, layer=names[p.layer]) for p in found.pictures)
    retention = dataclasses.replace(kept, layers=layers)
    return dataclasses.replace(found, retention=retention, pictures=pictures)
