"""The formats: what is packed is what the mask keeps, and the products are the dense ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.sparse.cases import generator, pattern_mask
from tests.sparse.semi.fake_gpu import Calls, bound, gpu
from transposable import Pattern
from transposable.sparse.semi import (
    CUSPARSELT,
    CUTLASS,
    REFERENCE,
    Algorithm,
    Format,
    hardware_pattern,
)
from transposable.sparse.semi.formats import unpacked
from transposable.sparse.semi.operand import filled_up, fits, masked
from transposable.sparse.semi.proof import reproduces, why_unsound

__all__ = ["gpu"]
ALL = [CUSPARSELT, CUTLASS, REFERENCE]
HALVES = [torch.bfloat16, torch.float16]
PATTERNS = ["2:4T", "1:4T", "1:2T"]


def weight_of(rows: int, cols: int, mask: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Pruned entries are NaN: nothing may read them."""
    weight = torch.randn(rows, cols, generator=generator(seed))
    return weight.masked_fill(~mask, float("nan"))


@pytest.mark.parametrize("format", ALL, ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_packing_reproduces_the_masked_weight(
    gpu: Calls, format: Format, dtype: torch.dtype, transposed: bool, pattern: str
) -> None:
    mask = pattern_mask(pattern, 64, 128)
    weight = weight_of(64, 128, mask)
    weight[:, 3] = torch.where(mask[:, 3], 0.0, weight[:, 3])  # kept, and 0
    assert reproduces(format, weight, mask, dtype, transposed=transposed)


@pytest.mark.parametrize("format", ALL, ids=lambda f: f.name)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("tokens", [1, 7, 8, 40])
@pytest.mark.parametrize("dtype", HALVES)
def test_products(gpu: Calls, format: Format, bias: bool, tokens: int, dtype: torch.dtype) -> None:
    mask = pattern_mask("2:4T", 64, 128)
    weight = weight_of(64, 128, mask)
    kept = torch.where(mask, weight, 0.0).to(dtype).float()
    given = {
        False: torch.randn(tokens, 128, generator=generator(1)).to(dtype),
        True: torch.randn(tokens, 64, generator=generator(2)).to(dtype),
    }
    for transposed, x in given.items():
        operand = format.pack(weight, mask, dtype, transposed=transposed)
        b = torch.randn(operand.rows, generator=generator(3)).to(dtype) if bias else None
        for algorithm in (Algorithm(), Algorithm(2), Algorithm(fused_bias=False)):
            y = format.matmul(operand, x, b, algorithm)
            wanted = F.linear(x.float(), kept.t() if transposed else kept)
            wanted = wanted if b is None else wanted + b.float()
            assert y.shape == wanted.shape
            assert y.dtype == dtype
            assert y.is_contiguous()
            torch.testing.assert_close(y.float(), wanted, rtol=0.02, atol=0.06)
    left = torch.randn(128, 24, generator=generator(4)).to(dtype)
    operand = format.pack(weight, mask, dtype, transposed=False)
    y = format.left_matmul(operand, left, Algorithm())
    assert y.is_contiguous()
    torch.testing.assert_close(y.float(), kept @ left.float(), rtol=0.02, atol=0.06)


LAYOUTS = {
    "rows apart": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "transposed": lambda x: x.t().contiguous().t(),
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("format", ALL, ids=lambda f: f.name)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_all_layouts(gpu: Calls, format: Format, layout: str) -> None:
    mask = pattern_mask("2:4T", 64, 128)
    weight = weight_of(64, 128, mask)
    x = LAYOUTS[layout](torch.randn(16, 128, generator=generator(1)).bfloat16())
    bias = torch.cat([torch.zeros(1), torch.randn(64, generator=generator(2))]).bfloat16()[1:]
    operand = format.pack(weight, mask, torch.bfloat16, transposed=False)
    y = format.matmul(operand, x, bias, Algorithm())
    kept = torch.where(mask, weight, 0.0).bfloat16()
    wanted = F.linear(x.float(), kept.float(), bias.float())
    torch.testing.assert_close(y.float(), wanted, rtol=0.02, atol=0.06)


def test_the_calls_into_cusparselt(gpu: Calls) -> None:
    """The product takes P and the *transposed view* of x, so that nothing is copied."""
    mask = pattern_mask("2:4T", 64, 128)
    operand = CUSPARSELT.pack(weight_of(64, 128, mask), mask, torch.bfloat16, transposed=True)
    assert (operand.rows, operand.cols) == (128, 64)
    x, bias = torch.ones(16, 64).bfloat16(), torch.ones(128).bfloat16()
    CUSPARSELT.matmul(operand, x, bias, Algorithm(2, 4, 1))
    name, given = gpu.log[-1]
    assert name == "mm"
    assert given["compressed_A"] is operand.values
    assert given["dense_B"].data_ptr() == x.data_ptr()
    assert given["dense_B"].stride() == (1, 64)
    assert given["bias"] is bias
    assert given["transpose_result"] is True
    assert (given["alg_id"], given["split_k"], given["split_k_mode"]) == (2, 4, 1)
    CUSPARSELT.matmul(operand, x, bias, Algorithm(fused_bias=False))
    assert gpu.log[-1][1]["bias"] is None


def test_the_fakes_know_the_schemas() -> None:
    x = torch.ones(16, 16)
    with pytest.raises(TypeError, match="algorithm_id"):
        bound("_cslt_sparse_mm", (x, x), {"algorithm_id": 1})
    with pytest.raises(TypeError, match="alg_id is a float"):
        bound("_cslt_sparse_mm", (x, x), {"alg_id": 1.0})
    with pytest.raises(TypeError, match="no argument 'dense_B'"):
        bound("_cslt_sparse_mm", (x,), {})
    assert bound("_cslt_sparse_mm", (x, x), {})["split_k_mode"] == -1


def test_a_packed_nan_stays(gpu: Calls) -> None:
    for format in ALL:
        assert why_unsound(format, torch.device("cpu"), torch.bfloat16) is None
        assert why_unsound(format, torch.device("cpu"), torch.float16) is None


def test_a_library_that_is_wrong_is_not_trusted(gpu: Calls) -> None:
    def scaled(y: torch.Tensor) -> torch.Tensor:
        return y * 1.01

    gpu.broken = dict.fromkeys(range(4), scaled)
    reason = why_unsound(CUSPARSELT, torch.device("cpu"), torch.bfloat16)
    assert reason == "cusparselt does not reproduce a packed matrix bit for bit here"
    gpu.broken = dict.fromkeys(range(3), scaled)  # one is right
    assert why_unsound(CUSPARSELT, torch.device("cpu"), torch.bfloat16) is None
    gpu.broken = dict.fromkeys(range(4), lambda y: y.nan_to_num(0.0))
    reason = why_unsound(CUSPARSELT, torch.device("cpu"), torch.bfloat16)
    assert reason == "cusparselt loses a NaN or an infinity of a packed matrix here"

    def fails(y: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: architecture mismatch\nmore")

    gpu.broken = dict.fromkeys(range(4), fails)
    reason = why_unsound(CUSPARSELT, torch.device("cpu"), torch.bfloat16)
    assert reason == "cusparselt fails here: CUDA error: architecture mismatch"


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 10**6))
def test_the_readable_twin(down: int, across: int, seed: int) -> None:
    random = generator(seed)
    order = torch.rand(4 * down, across, 4, generator=random).argsort(-1)
    kept = torch.randint(0, 3, (4 * down, across, 1), generator=random)
    mask = (order < kept).reshape(4 * down, 4 * across)
    weight = weight_of(4 * down, 4 * across, mask, seed)
    operand = REFERENCE.pack(weight, mask, torch.float32, transposed=False)
    assert torch.equal(unpacked(operand), torch.where(mask, weight, 0.0))
    assert operand.nbytes == 4 * operand.values.numel() + operand.values.numel()
    assert bool(fits(mask))


def test_masks_with_three_of_four_do_not_fit() -> None:
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[5, 4:7] = True
    assert not fits(mask)
    assert fits(mask.t())


def test_where_a_mask_does_not_fit_the_packed_weight_is_nan() -> None:
    mask = pattern_mask("2:4T", 8, 8)
    weight = torch.randn(8, 8)
    wrong = masked(weight, mask, torch.bfloat16, good=torch.tensor(False))
    right = masked(weight, mask, torch.bfloat16, good=torch.tensor(True))
    assert wrong[0].isnan().all()
    assert torch.equal(wrong[1:], right[1:])
    assert torch.equal(right, masked(weight, mask, torch.bfloat16))


def test_patterns_of_the_hardware() -> None:
    good = ("2:4", "2:4T", "1:4", "1:4T", "1:2", "1:2T")
    bad = ("3:4", "4:8T", "2:8T", "1:8", "2:4S", "50%", "8:16T", "2:3")
    assert all(hardware_pattern(Pattern.parse(text)) for text in good)
    assert not any(hardware_pattern(Pattern.parse(text)) for text in bad)


@pytest.mark.parametrize("tokens", [1, 8, 9])
def test_filled_up(tokens: int) -> None:
    x = torch.randn(tokens, 16)
    full = filled_up(x)
    assert full.shape[0] % 8 == 0
    assert full.is_contiguous()
    assert torch.equal(full[:tokens], x)
    assert not full[tokens:].any()
    assert not full.t().is_contiguous()


def test_an_old_release_packs_into_one_row(gpu: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    now: Any = torch._cslt_compress
    monkeypatch.setattr(torch, "_cslt_compress", lambda dense: now(dense).flatten())
    mask = pattern_mask("2:4T", 64, 128)
    assert reproduces(CUSPARSELT, weight_of(64, 128, mask), mask, torch.bfloat16)
