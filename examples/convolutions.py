"""Convolutions: plain, grouped and with channel counts that are no multiple of M."""

from __future__ import annotations

import torch
from torch import nn

import transposable

torch.manual_seed(0)
for conv in (
    nn.Conv2d(64, 128, kernel_size=3),
    nn.Conv2d(64, 128, kernel_size=3, groups=4),
    nn.Conv1d(36, 50, kernel_size=5),
):
    mask = transposable.find_mask(conv.weight, "2:4T", layout="conv", groups=conv.groups)
    print(f"{conv}\n  {mask}")
    assert mask.violations("in") == mask.violations("out") == 0

# One kernel position of an ungrouped convolution is an [out, in] matrix of the implicit GEMM.
conv = nn.Conv2d(64, 128, kernel_size=3)
mask = transposable.find_mask(conv.weight, "2:4T", layout="conv")
position = conv.weight[:, :, 1, 2]
assert torch.equal(mask.tensor[:, :, 1, 2], transposable.find_mask(position, "2:4T").tensor)
