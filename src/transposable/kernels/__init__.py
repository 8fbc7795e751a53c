"""Solvers of whole tiles on a GPU: Triton kernels, each with a readable twin in torch.

One folder for each operation: ``naive.py`` is the truth in plain torch, ``device.py`` has the
kernels and is imported late, since it imports triton; both serve the one signature in ``__init__``.
"""

from transposable.kernels.support import KINDS, SIDES, Tiles, elsewhere, why_not

__all__ = ["KINDS", "SIDES", "Tiles", "elsewhere", "why_not"]
