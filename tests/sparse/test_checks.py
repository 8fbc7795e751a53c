"""Stream.check lets pass what some mask has, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.sparse.cases import random_mask
from transposable.errors import DeviceError, SparseFormatError
from transposable.sparse import Blocking, Stream


def damaged(stream: Stream, **tensors: torch.Tensor) -> Stream:
    parts = {"index": stream.index, "starts": stream.starts, "values": stream.values, **tensors}
    return Stream(
        parts["index"],
        parts["starts"],
        parts["values"],
        stream.rows,
        stream.cols,
        stream.blocking,
    )


def small(seed: int = 0) -> Stream:
    return Stream.build(random_mask(10, 13, seed), Blocking(4, 8))


def grouped(width: int) -> Stream:
    """One with pairs and fours: columns of one row, of two rows, and some that are alone."""
    kept = "11111222244444888883333ccccc555aaa7777888801"
    mask = torch.tensor([[int(kind, 16) >> row & 1 for kind in kept] for row in range(4)]) == 1
    stream = Stream.build(mask, Blocking(4, width))
    types = [kind for kind in range(15, 24) if kind in stream.index.tolist()]
    assert {18, 22, 23} <= set(types)
    return stream


def check_products(stream: Stream) -> None:
    """What is computed with an index is what the mask which it spells says."""
    x = torch.arange(1.0, stream.cols + 1)
    stream.values.copy_(torch.arange(1.0, len(stream.values) + 1))
    dense = stream.dense()
    assert dense.count_nonzero() == len(stream.values)
    torch.testing.assert_close(stream.matmul(x), dense @ x)
    gradient = stream.weight_gradient(x[None], torch.ones(1, stream.rows))
    assert torch.equal(gradient, (dense != 0) * x)


@pytest.mark.parametrize("stream", [small(0), small(1), small(2), grouped(64), grouped(512)])
def test_every_change_of_one_entry(stream: Stream) -> None:
    """A changed index passes only if it is right for another mask; then it is harmless too."""
    stream.check()
    check_products(stream)
    passed = refused = 0
    for at in range(len(stream.index)):
        for value in (0, 1, 2, 3, 5, 7, 8, 12, *range(15, 26), 255, 256, 65535):
            index = stream.index.numpy().copy()
            if index[at] == value:
                continue
            index[at] = value
            other = damaged(stream, index=torch.from_numpy(index), values=stream.values.clone())
            try:
                other.check()
            except SparseFormatError:
                refused += 1
                continue
            passed += 1
            check_products(other)
    assert refused > 10 * passed > 0


@pytest.mark.parametrize("delta", [-(2**62), -1, 1, 2, 2**40, 2**62])
def test_every_change_of_one_start(delta: int) -> None:
    stream = small()
    for line in range(2):
        for block in range(stream.starts.shape[1]):
            starts = stream.starts.clone()
            starts[line, block] += delta
            with pytest.raises(SparseFormatError, match=r"Stream\.check: .* corrupt"):
                damaged(stream, starts=starts).check()


@pytest.mark.parametrize("seed", range(40))
def test_random_bytes(seed: int) -> None:
    random = np.random.default_rng(seed)
    stream = small()
    index = random.integers(0, (2, 17, 65536)[seed % 3], len(stream.index)).astype(np.uint16)
    with pytest.raises(SparseFormatError):
        damaged(stream, index=torch.from_numpy(index)).check()


def test_what_is_wrong_is_said() -> None:
    mask = torch.zeros(3, 6, dtype=torch.bool)
    mask[0, :3] = True
    mask[2, 4] = True
    stream = Stream.build(mask, Blocking(4, 512))
    assert stream.index.tolist() == [1, 3, 0, 1, 2, 4, 1, 4, 0, 0]
    for index, problem in {
        (1, 3, 0, 1, 6, 4, 1, 4, 0, 0): "block 0 has a column outside of the matrix",
        (1, 3, 0, 2, 1, 4, 1, 4, 0, 0): "has columns that do not ascend",
        (1, 3, 0, 1, 1, 4, 1, 4, 0, 0): "has columns that do not ascend",
        (1, 3, 0, 1, 4, 4, 1, 4, 0, 0): "has a column twice",
        (1, 3, 0, 1, 2, 8, 1, 4, 0, 0): "has a type with a row outside of the matrix",
        (4, 1, 0, 1, 3, 1, 2, 4, 0, 0): "has types that do not ascend",
        (1, 1, 0, 1, 1, 1, 4, 1, 4, 0): "has types that do not ascend",
        (1, 3, 0, 1, 2, 16, 1, 4, 5, 0): "has a type with a row outside of the matrix",
        (1, 3, 0, 1, 2, 24, 1, 4, 0, 0): "has a type that there is not",
        (1, 3, 0, 1, 2, 4, 9, 4, 0, 0): "has a run that is longer than the block",
        (1, 3, 0, 1, 2, 4, 0, 4, 0, 0): "has a run without columns",
        (1, 3, 0, 1, 2, 0, 1, 4, 0, 0): "has a run of type 0 that is no terminator",
        (1, 3, 0, 1, 2, 0, 0, 4, 0, 0): "goes on after its terminator",
        (1, 3, 0, 1, 2, 4, 3, 3, 4, 5): "has no terminator",
        (1, 3, 0, 1, 2, 4, 2, 4, 5, 0): "has no terminator",
        (1, 3, 0, 1, 2, 5, 1, 4, 0, 0): "has another number of values than its runs ask",
    }.items():
        with pytest.raises(SparseFormatError, match=problem):
            damaged(stream, index=torch.tensor(index, dtype=torch.uint16)).check()
    narrow = Stream.build(mask, Blocking(4, 256))
    assert narrow.index.tolist() == [1, 3, 0x100, 2, 4, 1, 4, 0, 0]
    for index, problem in {
        (1, 3, 0x100, 2, 4, 1, 0x104, 0, 0): "is not filled up with 0 after an odd number",
        (1, 3, 0x001, 2, 4, 1, 4, 0, 0): "has columns that do not ascend",
        (1, 3, 0x100, 6, 4, 1, 4, 0, 0): "has a column outside of the matrix",
        (1, 3, 0x100, 4, 4, 1, 4, 0, 0): "has a column twice",
        (1, 9, 0x100, 2, 4, 1, 4, 0, 0): "has another number of values than its runs ask",
        (1, 15, 0x100, 2, 4, 1, 4, 0, 0): "has a run that is longer than the block",
    }.items():
        with pytest.raises(SparseFormatError, match=problem):
            damaged(narrow, index=torch.tensor(index, dtype=torch.uint16)).check()
    with pytest.raises(SparseFormatError, match=r"starts has shape \(2, 1\); .* 1 blocks"):
        damaged(stream, starts=stream.starts[:, :1].contiguous()).check()
    with pytest.raises(SparseFormatError, match="do not go from 0 to its length 10"):
        damaged(stream, starts=torch.tensor([[1, 10], [0, 4]])).check()
    with pytest.raises(SparseFormatError, match="in values do not go from 0 to its length 5"):
        damaged(stream, values=torch.zeros(5)).check()


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("index", torch.zeros(10, dtype=torch.int16)),
        ("index", torch.zeros(20, dtype=torch.uint16)[::2]),
        ("starts", torch.zeros(2, 2, dtype=torch.int32)),
        ("starts", torch.zeros(2, dtype=torch.int64)),
        ("starts", torch.zeros(2, 2, dtype=torch.int64).t()),
        ("values", torch.zeros(4, dtype=torch.float64)),
        ("values", torch.zeros(2, 2)),
    ],
)
def test_tensors_of_another_kind(name: str, tensor: torch.Tensor) -> None:
    stream = small()
    with pytest.raises(SparseFormatError, match=f"{name} is {tensor.dtype}"):
        damaged(stream, **{name: tensor}).check()


def test_other_devices_and_sizes() -> None:
    stream = small()
    with pytest.raises(DeviceError, match="index is on meta"):
        damaged(stream, index=stream.index.to("meta")).check()
    stream.rows = -1
    with pytest.raises(SparseFormatError, match="-1 x 13"):
        stream.check()
    stream.rows = 2**40  # no memory is taken on the word of a file
    with pytest.raises(SparseFormatError, match="blocks"):
        stream.check()


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (1, 1), (33, 70)])
def test_right_ones_pass(shape: tuple[int, int]) -> None:
    for blocking in (Blocking(8, 512), Blocking(4, 16), Blocking(8, 1)):
        for density in (0.0, 0.3, 1.0):
            Stream.build(random_mask(*shape, 0, density), blocking).check()
