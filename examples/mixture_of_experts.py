"""A stack of expert weights [experts, out, in] in one call, and its packed masks."""

from __future__ import annotations

import torch

import transposable

torch.manual_seed(0)
experts = torch.randn(8, 192, 128, dtype=torch.bfloat16)
mask = transposable.find_mask(experts, "4:8T", layout="stacked")
print(mask)

packed = mask.pack()
print(f"{len(packed):,} bytes for {experts.numel():,} weights")
assert transposable.Mask.unpack(packed, mask.shape, "4:8T", layout="stacked") == mask

# Every expert keeps as much as it would alone; of masks that are worth the same it may be another.
for index, expert in enumerate(experts):
    alone = transposable.find_mask(expert, "4:8T")
    size = expert.double().abs()
    together = size[mask.tensor[index]].sum()
    assert torch.isclose(together, size[alone.tensor].sum(), rtol=1e-6)
