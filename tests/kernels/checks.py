"""What a kernel must do, on whatever device: the interpreter's CPU, or a GPU."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from score_families import make_scores, tiles
from transposable import Mask, Pattern, Potentials, certify
from transposable.kernels import exact
from transposable.kernels.bound import dual_bound
from transposable.kernels.bound.naive import dual_bound as naive_bound
from transposable.kernels.exact import naive

try:
    from oracle import assert_optimal
except ImportError:  # no OR-tools, as on many machines with a GPU: the certificate judges alone

    def assert_optimal(*given: object) -> None:
        """See oracle.py."""


DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def solve(
    matrices: torch.Tensor, n: int, m: int, *, magnitude: bool = False, by: object = exact
) -> tuple[torch.Tensor, Potentials, list[int]]:
    """Mask, prices and counters of matrices [batch, rows, cols]; memory is poisoned beforehand."""
    batch, rows, cols = matrices.shape
    kept = torch.ones(batch, rows, cols, dtype=torch.bool, device=matrices.device)
    shape = (batch, -(-rows // m), -(-cols // m), m)
    u, v = (torch.zeros(shape, dtype=torch.float64, device=kept.device) for _ in range(2))
    counters = by.fill(matrices, kept, n, m, magnitude, u, v)  # type: ignore[attr-defined]
    return kept, Potentials(u, v), counters.tolist()


def prove(
    matrices: torch.Tensor, n: int, m: int, what: str, *, magnitude: bool = False
) -> tuple[torch.Tensor, list[int]]:
    """The kernels' mask: certified, as good as the twin's, and checked by the kernel for bounds."""
    scores = matrices.abs() if magnitude else matrices
    pattern = Pattern(n, m, "transposable")
    kept, prices, counters = solve(matrices, n, m, magnitude=magnitude)
    certificate = certify(scores, Mask(kept, pattern, layout="stacked"), prices)
    assert certificate.optimal, (what, certificate)
    twin, twin_prices, _ = solve(matrices.cpu(), n, m, magnitude=magnitude, by=naive)
    best = certify(scores.cpu(), Mask(twin, pattern, layout="stacked"), twin_prices)
    assert best.optimal, (what, best)
    if not scores.isinf().any():
        size = float(torch.where(twin, scores.cpu().double().abs(), 0).sum())
        assert abs(certificate.objective - best.objective) <= 1e-6 * size + 1e-320, what

    arguments = (matrices, kept, n, m, magnitude, prices.rows, prices.cols)
    value, worst = (float(x) for x in dual_bound(*arguments))
    on_cpu = (x.cpu() if isinstance(x, torch.Tensor) else x for x in arguments)
    plain_value, plain_worst = (float(x) for x in naive_bound(*on_cpu))
    assert value == plain_value or math.isclose(value, plain_value, rel_tol=1e-12), what
    assert math.isclose(worst, plain_worst, rel_tol=1e-6, abs_tol=1e-12), (what, worst, plain_worst)
    assert worst <= 1e-6, (what, worst)
    return kept, counters


def by_the_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the end of the test, 4 x 4 tiles are solved as the larger ones."""
    schedule = dataclasses.replace(exact.SCHEDULES[4], enumerated=None)
    monkeypatch.setitem(exact.SCHEDULES, 4, schedule)


def every_family(device: str, names: list[str], n: int, m: int, count: int) -> None:
    """Tiles of many families side by side: signed ones, then their magnitudes."""
    signed = torch.from_numpy(np.concatenate([tiles(name, 5, m, count) for name in names]))
    scores = torch.cat([signed, signed.abs()]).to(device)
    kept, _ = prove(scores, n, m, f"{n}:{m}T")
    for at in range(0, len(scores), 5):
        assert_optimal(scores[at].cpu().numpy(), kept[at].cpu().numpy(), n, m, f"tile {at}")
    without = torch.zeros_like(kept)  # neither the prices nor the other tiles matter
    exact.fill(signed.to(device), without[: len(signed)], n, m, True)
    assert torch.equal(without[: len(signed)], kept[len(signed) :])


def ragged(device: str, name: str, n: int, m: int) -> None:
    """Shapes that m does not divide; every tile against the oracle."""
    for rows, cols in ((1, 1), (2 * m + 1, m), (m + n, 2 * m - 1)):
        scores = make_scores(name, rows, cols, seed=rows * cols)
        kept, _ = prove(scores[None].to(device), n, m, f"{name} {n}:{m}T {rows}x{cols}")
        for top in range(0, rows, m):
            for left in range(0, cols, m):
                at = np.s_[top : top + m, left : left + m]
                tile, mask = scores.numpy()[at], kept[0].cpu().numpy()[at]
                assert_optimal(tile, mask, n, m, f"{name} {rows}x{cols} at {top}, {left}")


def dtypes(device: str, n: int, m: int) -> None:
    """Each is read exactly: the mask is that of the same numbers in float32."""
    generator = torch.Generator().manual_seed(3)
    for dtype in DTYPES:
        scores = torch.randn(3, 2 * m, 3 * m, generator=generator).to(dtype)
        scores[0] *= 2.0**-20  # among the denormals of float16
        scores = scores.to(device)
        kept, _ = prove(scores, n, m, str(dtype))
        assert torch.equal(kept, solve(scores.float(), n, m)[0]), dtype
        assert torch.equal(solve(scores, n, m, magnitude=True)[0], solve(scores.abs(), n, m)[0]), (
            dtype
        )


def strides(device: str, n: int, m: int) -> None:
    """Any strides of scores and mask, and nothing written beside the mask."""
    generator = torch.Generator().manual_seed(4)
    scores = torch.randn(2, 2 * m + 1, 3 * m, generator=generator).to(device)
    wanted = solve(scores, n, m)[0]
    spread = torch.full((2, 4 * m + 2, 6 * m), math.nan, device=device)[:, ::2, 1::2]
    spread.copy_(scores)
    turned = scores.mT.contiguous().mT
    for matrices in (spread, turned):
        for make in (
            lambda: torch.zeros(2, 2 * m + 1, 3 * m, dtype=torch.bool, device=device),
            lambda: torch.zeros(2, 3 * m, 2 * m + 1, dtype=torch.bool, device=device).mT,
            lambda: torch.zeros(2, 2 * m + 1, 6 * m, dtype=torch.bool, device=device)[:, :, ::2],
        ):
            kept = make()
            exact.fill(matrices, kept, n, m, False)
            assert torch.equal(kept, wanted)
            whole = kept._base
            if whole is not None and whole.numel() > kept.numel():
                assert not whole[:, :, 1::2].any()


def nans(device: str, n: int, m: int) -> None:
    """A tile with a NaN keeps nothing and is counted; the others are as they were."""
    generator = torch.Generator().manual_seed(5)
    scores = torch.randn(1, 3 * m, 2 * m + 1, generator=generator).to(device)
    wanted = solve(scores, n, m)[0].clone()
    scores[0, m + 1, 1] = scores[0, 0, 2 * m] = math.nan
    kept, _, counters = solve(scores, n, m)
    wanted[0, m : 2 * m, :m] = wanted[0, :m, 2 * m :] = False
    assert torch.equal(kept, wanted)
    assert counters[exact.NANS] == 2
    scores[0, m + 1, 1] = -math.nan
    assert torch.equal(solve(scores, n, m)[0], wanted)


def empty(device: str) -> None:
    """No tiles: nothing is launched."""
    for shape in ((0, 8, 8), (1, 0, 8), (1, 8, 0)):
        kept, _, counters = solve(torch.zeros(shape, device=device), 2, 4)
        assert kept.shape == shape
        assert counters == [0, 0, 0]
