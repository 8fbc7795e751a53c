"""Check a proof of optimality, and see it fail for a mask that is merely valid."""

from __future__ import annotations

import torch

import transposable

torch.manual_seed(0)
scores = torch.randn(512, 512).abs()
solution = transposable.solve(scores, "4:8T")
print(f"{solution.status.name}: kept {solution.objective:.2f}, upper bound {solution.bound:.2f}")

# certify() knows nothing of the solver: feasibility, primal = dual, complementary slackness.
proof = transposable.certify(scores, solution.mask, solution.potentials)
print(f"certified: {proof.optimal}, worst tile's gap {proof.worst_gap:.1e}, {proof.tiles} tiles")
assert proof.optimal

# Exchanging two rows inside a tile leaves a valid 4:8T mask, but not the best one.
other = solution.mask.tensor.clone()
other[[0, 1]] = other[[1, 0]]
swapped = transposable.Mask(other, "4:8T")
disproof = transposable.certify(scores, swapped, solution.potentials)
print(f"rows exchanged: {swapped.violations()} violations, certified: {disproof.optimal}")
assert swapped.violations() == 0
assert not disproof.optimal
