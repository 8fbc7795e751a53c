"""Masks of every kind and what is computed with them in float64."""

from __future__ import annotations

import torch

from transposable import find_mask
from transposable.sparse import Blocking, Stream

PATTERNS = ("1:4T", "2:4T", "4:8T", "2:8T", "8:16T", "16:32T", "2:4", "50%")
BLOCKINGS = (Blocking(8, 512), Blocking(4, 96), Blocking(8, 16), Blocking(4, 1), Blocking(4, 300))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_mask(rows: int, cols: int, seed: int, density: float = 0.5) -> torch.Tensor:
    return torch.rand(rows, cols, generator=generator(seed)) < density


def pattern_mask(pattern: str, rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return find_mask(torch.randn(rows, cols, generator=generator(seed)), pattern).tensor


def dense_of(weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, weight, 0.0).double()


def check_stream(
    mask: torch.Tensor,
    blocking: Blocking,
    tokens: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Index, values and the three products of a stream against the dense matrix in float64."""
    rows, cols = mask.shape
    random = generator(seed)
    # What is pruned is NaN: nothing may read it.
    weight = torch.randn(rows, cols, generator=random).masked_fill(~mask, float("nan"))
    stream = Stream.build(mask, blocking, dtype)
    assert stream.values.isnan().all()
    stream.check()
    stream.fill(weight)
    expected = dense_of(weight.to(dtype), mask)
    assert torch.equal(stream.dense(), expected.to(dtype))
    x = torch.randn(tokens, cols, generator=random).to(dtype)
    dy = torch.randn(tokens, rows, generator=random).to(dtype)
    bias = torch.randn(rows, generator=random)
    rounding = {"rtol": 0.01, "atol": 0.05} if dtype == torch.bfloat16 else {}
    exact = {"rtol": 1e-5, "atol": 1e-4}
    products = stream.matmul(x), stream.matmul(x, bias)
    wanted = x.double() @ expected.t()
    for product, want in zip(products, (wanted, wanted + bias), strict=True):
        assert product.dtype == dtype
        torch.testing.assert_close(product.double(), want, **(rounding or exact))
    gradient = stream.weight_gradient(x, dy)
    assert gradient.dtype == torch.float32
    assert (gradient[~mask] == 0).all()
    wanted = torch.where(mask, dy.double().t() @ x.double(), 0.0)
    torch.testing.assert_close(gradient.double(), wanted, **exact)
