"""Mask: packing, transposition, equality, violations and errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transposable import Layout, LayoutError, Mask, MaskError, find_mask

KEPT = torch.tensor([[1, 0, 1, 0, 0, 1], [0, 1, 0, 1, 1, 0], [1, 0, 0, 1, 0, 1]], dtype=torch.bool)


def test_the_bit_order_is_pinned() -> None:
    """Row-major, the first weight in the lowest bit, zero bits behind the last."""
    assert Mask(KEPT, "2:4T").pack() == bytes([0b10100101, 0b10010110, 0b10])
    assert Mask(KEPT.T, "2:4T").pack() == bytes([0b01010101, 0b10101100, 0b10])
    one = torch.zeros(3, 3, dtype=torch.bool)
    one[2, 2] = True
    assert Mask(one, "1:4").pack() == b"\x00\x01"
    assert Mask(torch.zeros(0, 4, dtype=torch.bool), "1:4").pack() == b""


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=20)))
def test_unpack_inverts_pack(kept: np.ndarray) -> None:
    mask = Mask(kept, "2:4T")
    data = mask.pack()
    assert len(data) == math.ceil(kept.size / 8)
    bits = "".join(format(byte, "08b")[::-1] for byte in data)
    assert bits == "".join("1" if x else "0" for x in kept.flat).ljust(len(bits), "0")
    assert Mask.unpack(data, kept.shape, "2:4T") == mask


def test_unpack_keeps_the_layout() -> None:
    mask = find_mask(torch.rand(8, 4, 3, 3), "2:4T", layout="conv", groups=2)
    again = Mask.unpack(mask.pack(), mask.shape, "2:4T", layout="conv", groups=2)
    assert again == mask
    assert again.layout == Layout("conv", 2)


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        (b"", (1, 1), r"0 bytes for shape \(1, 1\); 1 weights take 1 bytes"),
        (b"\0\0", (2, 4), "2 bytes for shape .* take 1 bytes"),
        (b"\0", (3, 3), "1 bytes for shape .* take 2 bytes"),
        (b"\0", (0, 4), "1 bytes for shape .* take 0 bytes"),
        (b"\x80", (1, 7), "a fill bit behind the last of 7 weights is set"),
        (b"\xff\x02", (3, 3), "a fill bit"),
        (b"\0", (-2, -4), "no side can be negative"),
    ],
)
def test_corrupt_data(data: bytes, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(MaskError, match=rf"^Mask.unpack: .*{message}"):
        Mask.unpack(data, shape, "2:4T")


def test_transpose() -> None:
    mask = find_mask(torch.rand(12, 20), "3:4T")
    assert mask.T.shape == (20, 12)
    assert torch.equal(mask.T.tensor, mask.tensor.T)
    assert mask == mask.T.T
    assert mask.T.violations() == 0
    conv = find_mask(torch.rand(8, 12, 3, 2), "2:4T", layout="conv")
    assert conv.T.shape == (12, 8, 3, 2)
    assert torch.equal(conv.T.tensor, conv.tensor.transpose(0, 1))
    assert conv.T.violations() == 0
    stacked = find_mask(torch.rand(3, 8, 12), "2:4T", layout="stacked")
    assert torch.equal(stacked.T.tensor, stacked.tensor.mT)
    assert stacked.T.layout == stacked.layout


def test_transpose_stays_in_the_callers_kind() -> None:
    assert type(find_mask(np.ones((4, 8)), "2:4T").T.array) is np.ndarray


def test_transpose_is_refused() -> None:
    for pattern in ("2:4", "2:4S", "50%"):
        with pytest.raises(MaskError, match=rf"^Mask.T: {pattern} holds along one axis only"):
            _ = find_mask(torch.ones(4, 4), pattern).T
    grouped = find_mask(torch.ones(8, 4, 1, 1), "2:4T", layout="conv", groups=2)
    with pytest.raises(MaskError, match=r"^Mask.T: received a convolution of 2 groups"):
        _ = grouped.T


def test_equality() -> None:
    mask = Mask(KEPT, "2:4T")
    assert mask == Mask(KEPT.numpy(), "2:4T")
    assert mask != Mask(~KEPT, "2:4T")
    assert mask != Mask(KEPT, "2:4")
    assert mask != Mask(KEPT[:2], "2:4T")
    assert mask != Mask(KEPT[:, :, None], "2:4T", layout="conv")
    assert Mask(KEPT[:, :, None], "2:4T", layout="conv") != Mask(
        KEPT[:, :, None], "2:4T", layout="stacked"
    )
    assert mask != KEPT.tolist()
    with pytest.raises(TypeError, match="unhashable"):
        hash(mask)


def test_violations() -> None:
    kept = torch.zeros(8, 8, dtype=torch.bool)
    kept[0, :3] = True  # one group of "in"
    kept[4:7, 7] = True  # one group of "out"
    kept[4:8, 6] = True  # another
    mask = Mask(kept, "2:4T")
    assert mask.violations() == 3
    assert mask.violations("in") == 1
    assert mask.violations("out") == 2
    plain = Mask(kept, "2:4")
    assert plain.violations() == 1  # "out" is not promised
    assert plain.violations("out") == 2
    assert not mask.report().ok
    with pytest.raises(MaskError, match="'rows'; the axes of 2:4T are 'in', 'out'"):
        mask.violations("rows")
    half = Mask(torch.ones(2, 2, dtype=torch.bool), "50%")
    assert half.violations() == half.violations("all") == 1


def test_density() -> None:
    assert Mask(KEPT, "2:4T").density == 9 / 18
    assert Mask(torch.empty(0, 3, dtype=torch.bool), "2:4T").density == 0.0


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.int64])
def test_only_boolean_arrays(dtype: torch.dtype) -> None:
    with pytest.raises(MaskError, match=rf"^Mask: received dtype {dtype}; a boolean .* != 0"):
        Mask(KEPT.to(dtype), "2:4T")


def test_the_layout_must_fit() -> None:
    with pytest.raises(LayoutError, match=r"^Mask: received a 2-D tensor"):
        Mask(KEPT, "2:4T", layout="conv")


@given(st.sampled_from([np.ndarray, torch.Tensor]))
def test_array_and_like(kind: type) -> None:
    source = KEPT.numpy() if kind is np.ndarray else KEPT
    mask = Mask(source, "2:4T")
    assert type(mask.array) is kind
    assert type(mask.like(np.ones(1)).array) is np.ndarray
    assert type(mask.like(torch.ones(1)).array) is torch.Tensor
    assert mask.like(np.ones(1)) == mask


def test_repr() -> None:
    assert repr(Mask(KEPT, "2:4T")) == "Mask(3x6, '2:4T', linear, density 0.5000)"
