"""Streams against dense matrices in float64, in native code and in its readable twin."""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import threading
import time
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.sparse.cases import (
    BLOCKINGS,
    PATTERNS,
    check_stream,
    dense_of,
    generator,
    pattern_mask,
    random_mask,
)
from tests.strategies import SEEDS, sides
from transposable import Pattern, _core
from transposable.errors import DeviceError, MaskError, SparseFormatError
from transposable.sparse import Blocking, Stream, reference

DTYPES = (torch.float32, torch.bfloat16)


def test_pinned_bytes() -> None:
    """The example of docs/sparse.md, byte for byte."""
    mask = torch.tensor(
        [
            [1, 0, 0, 1, 1],
            [0, 1, 0, 0, 0],
            [1, 0, 0, 1, 0],
            [0, 1, 0, 0, 0],
            [0, 0, 0, 1, 0],
        ],
        dtype=torch.bool,
    )
    stream = Stream.build(mask, Blocking(4, 4))
    stream.fill(torch.arange(1.0, 26.0).reshape(5, 5))
    assert stream.index.tolist() == [
        *(5, 2, 0x300, 10, 1, 1, 0, 0),  # rows 0-3, columns 0-3: {0, 2} keep 0, 3; {1, 3} keep 1
        *(1, 1, 3, 0, 0),  # row 4: keeps column 3
        *(1, 1, 0, 0, 0),  # rows 0-3, column 4: row 0 keeps it
        *(0, 0),  # row 4, column 4: nothing
    ]
    assert stream.starts.tolist() == [[0, 8, 13, 18, 20], [0, 6, 7, 8, 8]]
    assert stream.values.tolist() == [1.0, 11.0, 4.0, 14.0, 7.0, 17.0, 24.0, 5.0]
    raw = bytes.fromhex("050002000003 0a000100 0100 00000000")
    assert stream.index.numpy().tobytes()[:16] == raw


def test_columns_taken_together() -> None:
    """The first columns of a type alone, the next ones in pairs, the last ones in fours."""
    kept = [*5 * (1, 14), 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 2, 4, 8, 1, 3, 0]
    mask = torch.tensor([[kind >> row & 1 for kind in kept] for row in range(4)], dtype=torch.bool)
    stream = Stream.build(mask, Blocking(4, 512))
    assert stream.index.tolist() == [
        *(1, 1, 0),  # of the ten columns of type 1 the first is left over
        *(3, 1, 27),
        *(16, 5, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9),  # five pairs of the types 1 and 14
        *(23, 4, 14, 18, 22, 26, 11, 15, 19, 23, 12, 16, 20, 24, 13, 17, 21, 25),  # four fours
        *(0, 0),
    ]
    stream.fill(mask * torch.arange(1.0, 30.0))
    assert stream.values.tolist()[:3] == [1.0, 28.0, 28.0]
    assert stream.values.tolist()[3:8] == [3.0, 5.0, 7.0, 9.0, 11.0]
    assert stream.values.tolist()[8:14] == [2.0, 2.0, 2.0, 4.0, 4.0, 4.0]


@pytest.mark.parametrize(("pattern", "runs"), [("2:4T", {18, 20, 21}), ("1:4T", {23})])
def test_patterns_of_four_have_no_column_alone(pattern: str, runs: set[int]) -> None:
    stream = Stream.build(pattern_mask(pattern, 4, 256), Blocking(4, 512))
    at, found = 0, set()
    while kind := int(stream.index[at]):
        found.add(kind)
        at += 2 + int(stream.index[at + 1]) * len(reference.types_of_run(4, kind))
    assert found <= runs


@pytest.mark.parametrize(
    ("mask", "groups", "slab"),
    [
        (random_mask(20, 300, 3, 0.25), 5, 128),
        (random_mask(20, 300, 3, 0.5), 5, 256),
        (pattern_mask("2:4T", 20, 300), 3, 256),
        (pattern_mask("1:4T", 20, 300), 3, 128),
    ],
)
def test_the_order_of_a_weight_gradient(mask: torch.Tensor, groups: int, slab: int) -> None:
    """Groups of 8 rows, unless columns of one type are rare in them and blocks are lower."""
    for blocking in (Blocking(4, 96), Blocking(4, 300), Blocking(8, 128), Blocking(8, 512)):
        stream = Stream.build(mask, blocking)
        assert stream.order() is stream.order()
        high = groups if blocking.row_block == 4 else 3
        assert stream.order().shape == (high, -(-300 // slab), slab)
        expected = reference.sparse_gradient_order(*stream.where, 1)
        assert stream.order().tolist() == expected.tolist()


@pytest.mark.parametrize("side", range(71))
def test_every_small_shape(side: int) -> None:
    """All numbers of columns and rows up to 70, each with its own number of tokens up to 70."""
    for other in range(71):
        seed = 71 * side + other
        mask = random_mask(side, other, seed, (seed % 5) / 4)
        tokens = (13 * side + 29 * other) % 71
        check_stream(mask, BLOCKINGS[seed % 5], tokens, seed, DTYPES[seed % 3 == 0])


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [255, 512, 513, 1024, 1100, 2050])
def test_sums_over_many_samples(tokens: int, density: float) -> None:
    """The weight gradient takes samples and columns in slabs, whose size depends on these."""
    for cols, blocking in ((530, Blocking(8, 2048)), (300, Blocking(4, 128))):
        check_stream(random_mask(21, cols, tokens, density), blocking, tokens, cols)


@pytest.mark.parametrize("tokens", [*range(71), 95, 96, 97, 145])
def test_every_number_of_tokens(tokens: int) -> None:
    for number, (dtype, blocking) in enumerate(itertools.product(DTYPES, BLOCKINGS)):
        check_stream(random_mask(19 + number, 34, tokens), blocking, tokens, number, dtype)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 7, 8, 9, 17, 40])
@pytest.mark.parametrize("cols", [0, 1, 5, 16, 31, 40])
def test_the_twin_agrees(rows: int, cols: int, request: pytest.FixtureRequest) -> None:
    """The same bytes, and the same products by the twin's own arithmetic."""
    for seed, blocking in enumerate(BLOCKINGS):
        mask = random_mask(rows, cols, seed, 0.2 + 0.2 * seed)
        native = Stream.build(mask, blocking)
        weight = torch.randn(rows, cols, generator=generator(seed))
        native.fill(weight)
        index, starts = reference.sparse_index(mask, blocking.row_block, blocking.col_block)
        assert native.index.tolist() == index.tolist()
        assert native.starts.tolist() == starts.tolist()
        values = torch.empty_like(native.values)
        reference.sparse_fill(*native.where, weight, values, 1)
        assert torch.equal(values, native.values)
        order = reference.sparse_gradient_order(*native.where, 1)
        assert native.order().tolist() == order.tolist()
    request.getfixturevalue("twins")
    check_stream(random_mask(rows, cols, 9), BLOCKINGS[cols % 5], 7, rows, DTYPES[rows % 2])


@given(sides(90), sides(90), sides(60), SEEDS, st.sampled_from(BLOCKINGS), st.floats(0, 1))
def test_any_shape(
    rows: int, cols: int, tokens: int, seed: int, blocking: Blocking, density: float
) -> None:
    check_stream(random_mask(rows, cols, seed, density), blocking, tokens, seed)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_threads_after_a_fork() -> None:
    """The threads of OpenMP, which the products share with torch, are gone in a child."""
    mask, x = random_mask(256, 300, 0), torch.randn(200, 300, generator=generator(1))
    stream = Stream.build(mask, Blocking(8, 2048))
    stream.fill(torch.ones(256, 300))
    before, after = (torch.zeros(200, 256) for _ in range(2))
    _core.sparse_matmul(*stream.where, stream.values, x, None, before, 4)
    child = os.fork()
    if child == 0:
        # Nothing of torch's: in a child its own loops wait for those threads for ever.
        _core.sparse_matmul(*stream.where, stream.values, x, None, after, 4)
        os._exit(0 if (after.numpy() == before.numpy()).all() else 1)
    deadline = time.monotonic() + 30
    while (found := os.waitpid(child, os.WNOHANG)) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    assert found[1] == 0


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("shape", [(64, 96), (70, 45), (9, 130)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_patterns(pattern: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    mask = pattern_mask(pattern, *shape)
    for oriented in (mask, mask.t()):
        blocking = Blocking.best(Pattern.parse(pattern), oriented.shape[1])
        check_stream(oriented, blocking, 50, 0, dtype)


def test_lines_without_weights() -> None:
    mask = random_mask(40, 40, 0)
    mask[3] = mask[8:16] = mask[:, 5] = mask[:, 16:32] = False
    for blocking in BLOCKINGS:
        check_stream(mask, blocking, 20, 0)
        check_stream(torch.zeros_like(mask), blocking, 20, 0)
        check_stream(torch.ones_like(mask), blocking, 20, 0)


def test_the_longest_runs() -> None:
    """A run of 65,536 columns is cut: its length is a 16-bit number."""
    mask = torch.ones(3, 65536 + 2, dtype=torch.bool)
    stream = Stream.build(mask, Blocking(4, 65536))
    assert stream.index[:3].tolist() == [7, 65535, 0]
    assert stream.index[65537:65540].tolist() == [7, 1, 65535]
    assert stream.index[65540:].tolist() == [0, 0, 7, 2, 0, 1, 0, 0]
    stream.check()
    weight = torch.randn(mask.shape, generator=generator(0))
    stream.fill(weight)
    assert torch.equal(stream.dense(), weight)
    x = torch.randn(2, 65538, generator=generator(1))
    torch.testing.assert_close(
        stream.matmul(x).double(), x.double() @ weight.double().t(), rtol=1e-4, atol=1e-2
    )


def test_leading_dimensions_and_strides() -> None:
    mask = random_mask(24, 40, 0)
    weight = torch.randn(40, 24, generator=generator(0)).t()  # any strides
    stream = Stream.build(mask.t().contiguous().t(), BLOCKINGS[0])
    stream.fill(weight)
    dense = dense_of(weight, mask)
    whole = torch.randn(6, 5, 80, generator=generator(1))
    inputs = {
        "1-d": whole[0, 0, :40],
        "3-d": whole[..., :40],
        "every other": whole[..., ::2],
        "transposed tokens": whole[..., :40].transpose(0, 1),
        "transposed": torch.randn(40, 7, generator=generator(2)).t(),
        "expanded": whole[0, 0, :40].expand(9, 40),
        "one number": torch.ones(()).expand(3, 40),
        "no tokens": whole[:0, :, :40],
        "no tokens, no strides": torch.ones(()).expand(0, 40),
    }
    for name, x in inputs.items():
        y = stream.matmul(x)
        assert y.shape == (*x.shape[:-1], 24), name
        torch.testing.assert_close(y.double(), x.double() @ dense.t(), rtol=1e-5, atol=1e-5)
        dy = torch.ones(()).expand(y.shape)
        flat = x.double().reshape(-1, 40)
        wanted = torch.where(mask, torch.ones(24, len(flat)).double() @ flat, 0.0)
        found = stream.weight_gradient(x, dy).double()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_pruned_weights_are_not_multiplied() -> None:
    stream = Stream.build(torch.eye(8, dtype=torch.bool), BLOCKINGS[0])
    stream.fill(torch.ones(8, 8))
    y = stream.matmul(torch.tensor([1.0] * 7 + [float("inf")]))
    assert y.tolist() == [1.0] * 7 + [float("inf")]


def results(stream: Stream, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    return [stream.values, stream.dense(), stream.matmul(x), stream.weight_gradient(x, dy)]


@pytest.mark.parametrize("pattern", ["2:4T", "8:16T", "50%"])
def test_threads_do_not_change_a_bit(pattern: str) -> None:
    mask = pattern_mask(pattern, 136, 272)
    weight = torch.randn(136, 272, generator=generator(0))
    x = torch.randn(203, 272, generator=generator(1))
    dy = torch.randn(203, 136, generator=generator(2))
    first: list[torch.Tensor] = []
    for threads in (1, *range(1, 9)):
        torch.set_num_threads(threads)
        stream = Stream.build(mask, Blocking.best(Pattern.parse(pattern), 272))
        stream.fill(weight)
        found = results(stream, x, dy)
        first = first or found
        assert all(map(torch.equal, found, first))


def test_two_threads_at_once() -> None:
    torch.set_num_threads(2)
    mask = pattern_mask("4:8T", 128, 256)
    stream = Stream.build(mask, BLOCKINGS[0])
    stream.fill(torch.randn(128, 256, generator=generator(0)))
    x = torch.randn(130, 256, generator=generator(1))
    dy = torch.randn(130, 128, generator=generator(2))
    expected = results(stream, x, dy)
    wrong: list[Any] = []

    def work() -> None:
        torch.set_num_threads(2)
        for _ in range(20):
            if not all(map(torch.equal, results(stream, x, dy), expected)):
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("pattern", ["2:4T", "4:8T"])
def test_bytes_per_weight(pattern: str) -> None:
    """At most 0.6 of dense float32, index and starts included."""
    mask = pattern_mask(pattern, 256, 1024)
    stream = Stream.build(mask, Blocking(4, 256))
    assert 2 < stream.bytes_per_weight <= 0.6 * 4  # blocks that suit AVX2
    stream = Stream.build(mask, Blocking(8, 512))
    assert stream.nbytes == sum(t.nbytes for t in (stream.index, stream.starts, stream.values))
    assert 2 < stream.bytes_per_weight <= 0.6 * 4
    half = Stream.build(mask, stream.blocking, torch.bfloat16)
    assert half.bytes_per_weight == stream.bytes_per_weight - 1
    assert Stream.build(mask[:0], stream.blocking).bytes_per_weight == stream.starts[:, :1].nbytes


def test_a_pickle_holds_everything() -> None:
    stream = Stream.build(random_mask(9, 9, 0), BLOCKINGS[0])
    stream.fill(torch.randn(9, 9, generator=generator(0)))
    again = pickle.loads(pickle.dumps(stream))
    assert torch.equal(again.dense(), stream.dense())
    assert repr(again) == repr(stream)


def test_the_blocks_of_this_machine() -> None:
    for pattern in (None, *map(Pattern.parse, PATTERNS)):
        for cols in (0, 1, 7, 8, 100, 511, 512, 513, 1000, 4096, 11008, 70000):
            blocking = Blocking.best(pattern, cols)
            across = -(-cols // blocking.col_block)
            n, m = (8, 16) if pattern is None else (pattern.n, pattern.m)
            row_block, widest = _core.sparse_blocking(n, m)
            assert blocking.row_block == row_block
            assert across == -(-cols // widest)  # no more blocks than the widest need
    assert reference.sparse_blocking(2, 4)[0] in (4, 8)


BAD_BLOCKS = [(8, 0), (8, 65537), (16, 64), (0, 64)]


@pytest.mark.parametrize(("rows", "cols"), BAD_BLOCKS)
def test_bad_blocks(rows: int, cols: int) -> None:
    with pytest.raises(SparseFormatError, match="4 or 8 rows and 1 to 65536 columns"):
        Blocking(rows, cols)


def test_bad_input() -> None:
    mask = random_mask(8, 12, 0)
    blocking = BLOCKINGS[0]
    with pytest.raises(MaskError, match=r"dtype torch.float32 and shape \(8, 12\)"):
        Stream.build(mask.float(), blocking)
    with pytest.raises(MaskError, match=r"shape \(8,\)"):
        Stream.build(mask[:, 0], blocking)
    with pytest.raises(DeviceError, match="mask is on meta"):
        Stream.build(mask.to("meta"), blocking)
    with pytest.raises(SparseFormatError, match="values are float32 or bfloat16"):
        Stream.build(mask, blocking, torch.float16)
    stream = Stream.build(mask, blocking)
    with pytest.raises(SparseFormatError, match=r"weight \(12, 8\) of torch.float32"):
        stream.fill(torch.ones(12, 8))
    with pytest.raises(SparseFormatError, match=r"torch\.int64"):
        stream.fill(torch.ones(8, 12, dtype=torch.int64))
    with pytest.raises(DeviceError, match="weight is on meta"):
        stream.fill(torch.ones(8, 12, device="meta"))
    with pytest.raises(DeviceError, match="x is on meta"):
        stream.matmul(torch.ones(12, device="meta"))
    for x in (torch.ones(8), torch.ones(()), torch.ones(12).double(), torch.ones(12).half()):
        with pytest.raises(SparseFormatError, match=r"last dimension must be 12"):
            stream.matmul(x)
        with pytest.raises(SparseFormatError, match=r"last dimension must be 12"):
            stream.weight_gradient(x, torch.ones(8))
    with pytest.raises(SparseFormatError, match=r"bias \(12,\) for 8 rows"):
        stream.matmul(torch.ones(12), torch.ones(12))
    with pytest.raises(SparseFormatError, match="all dimensions but the last must agree"):
        stream.weight_gradient(torch.ones(2, 12), torch.ones(3, 8))
    with pytest.raises(SparseFormatError, match="and the dtypes"):
        stream.weight_gradient(torch.ones(2, 12), torch.ones(2, 8).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_other_dtypes(dtype: torch.dtype) -> None:
    mask = random_mask(8, 12, 0)
    weight = torch.randn(8, 12, generator=generator(0)).to(dtype)
    for values in DTYPES:
        stream = Stream.build(mask, BLOCKINGS[0], values)
        stream.fill(weight)
        assert torch.equal(stream.dense(), torch.where(mask, weight, 0.0).to(values))
