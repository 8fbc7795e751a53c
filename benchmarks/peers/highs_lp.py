"""The linear programme by HiGHS' dual simplex, through scipy."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import torch

from benchmarks.peers.base import Peer


class HighsLp(Peer):
    """max <a, S>, row and column sums N, 0 <= S <= 1: the vertices are integral.

    Several tiles go into one block-diagonal programme, which spares scipy's overhead per call.
    """

    name = "highs"
    label = "HiGHS LP (scipy linprog)"
    exact = True
    needs = ("scipy",)
    sample = MappingProxyType({4: 4096, 8: 2048, 16: 512, 32: 128})
    entries_per_programme = 2048  # the fastest of 256 to 4096 on average over 2:4 and 8:16

    def run(self, scores: torch.Tensor, n: int, m: int) -> torch.Tensor:
        from scipy import optimize, sparse

        count = len(scores)
        batch = max(1, self.entries_per_programme // (m * m))
        # Scaled to a largest entry of 1: HiGHS' tolerances are absolute.
        flat = scores.double().reshape(count, -1).numpy()
        flat = flat / np.maximum(flat.max(1, keepdims=True), 1e-300)
        identity, ones = sparse.identity(m, format="csr"), np.ones((1, m))
        one_tile = sparse.vstack([sparse.kron(identity, ones), sparse.kron(ones, identity)])
        kept = np.empty(flat.shape, np.bool_)
        for start in range(0, count, batch):
            part = flat[start : start + batch]
            equal = sparse.block_diag([one_tile] * len(part), format="csr")
            result = optimize.linprog(
                -part.ravel(),
                A_eq=equal,
                b_eq=np.full(equal.shape[0], float(n)),
                bounds=(0, 1),
                method="highs-ds",
            )
            if not result.success:
                raise RuntimeError(f"HiGHS: tiles from {start}: {result.message}")
            kept[start : start + batch] = result.x.reshape(part.shape) > 0.5
        return torch.from_numpy(kept.reshape(scores.shape))
