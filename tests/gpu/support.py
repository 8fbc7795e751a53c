"""What the GPU tests share. They are skipped, with the reason, where there is no such GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from transposable.sparse.semi import Format, probe
from transposable.sparse.semi.formats import best_format

GPU = torch.device("cuda", 0)


def why_skipped() -> str | None:
    """Why the products cannot be tested here, or None."""
    reason = probe.why_no_gpu(GPU)
    if reason is None and not isinstance(best_format(GPU), Format):
        reason = str(best_format(GPU))
    return reason


@pytest.fixture(autouse=True)
def as_users_run() -> Iterator[None]:
    """Not deterministic, as the suite is elsewhere: cuBLAS would ask for an environment variable,
    and nothing would be tuned."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(before)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative, as a whole, in float32."""
    found, wanted = found.detach().float(), wanted.detach().float()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))
