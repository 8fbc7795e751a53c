"""Prune the Linear layers of a torch module to 2:4T, magnitude by magnitude."""

from __future__ import annotations

import torch
from torch import nn

import transposable

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256), nn.Linear(256, 10))

# The classifier head stays dense: it is small, and its 10 outputs carry the decision.
for name, layer in list(model.named_modules())[1:-1]:
    if isinstance(layer, nn.Linear):
        mask = transposable.find_mask(layer.weight, "2:4T")
        with torch.no_grad():
            layer.weight.mul_(mask.tensor)
        report = transposable.verify(layer.weight, "2:4T")
        print(f"layer {name}: {report}")
        assert report.ok

# The same zeros serve the input gradient, which contracts over the other axis.
assert transposable.verify(model[0].weight.mT, "2:4")
