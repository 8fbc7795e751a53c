"""A packed weight is that of the weight and mask of now, and is packed when they change only."""

from __future__ import annotations

import copy
import gc
import io
import os
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.counted_calls import counted_calls
from tests.sparse.cases import generator, pattern_mask, random_mask
from transposable import Pattern
from transposable.errors import DeviceError, LayerError, MaskError, SparseFormatError
from transposable.sparse import Choice, PackedWeight, Stream
from transposable.sparse.handles import find_packed
from transposable.sparse.seen import SAMPLES, _lattice

PATTERN = Pattern.parse("2:4T")


def pair(rows: int = 32, cols: int = 48, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    weight = torch.randn(rows, cols, generator=generator(seed))
    return weight, pattern_mask("2:4T", rows, cols, seed)


def check(packed: PackedWeight, weight: torch.Tensor, mask: torch.Tensor) -> None:
    expected = torch.where(mask, weight.detach(), 0.0)
    assert torch.equal(packed.forward.dense(), expected)
    assert packed.backward is not None
    assert torch.equal(packed.backward.dense(), expected.t())


def test_nothing_is_packed_twice() -> None:
    weight, mask = pair()
    packed = PackedWeight(PATTERN)
    with counted_calls() as calls:
        for _ in range(3):
            packed.update(weight, mask)
        assert calls == {"index": 2, "fill": 2}
        weight.mul_(2)
        for _ in range(3):
            packed.update(weight, mask)
        assert calls == {"index": 2, "fill": 4}
        mask.copy_(mask.roll(4, 0))
        for _ in range(3):
            packed.update(weight, mask)
        assert calls == {"index": 4, "fill": 6}
        packed.forget()
        packed.update(weight, mask)
        assert calls == {"index": 6, "fill": 8}
    check(packed, weight, mask)


CHANGES: dict[str, Callable[[nn.Linear, torch.Tensor], object]] = {
    "in place": lambda layer, mask: layer.weight.detach().add_(1),
    "data": lambda layer, mask: layer.weight.data.add_(1),
    "a row of data": lambda layer, mask: layer.weight.data[17].add_(1),
    "a column of data": lambda layer, mask: layer.weight.data[:, 41].add_(1),
    "other data": lambda layer, mask: setattr(layer.weight, "data", layer.weight.data + 1),
    "the same data elsewhere": lambda layer, mask: setattr(
        layer.weight, "data", layer.weight.data.clone()
    ),
    "an array": lambda layer, mask: layer.weight.detach().numpy().__imul__(2),
    "another Parameter": lambda layer, mask: setattr(
        layer, "weight", nn.Parameter(layer.weight.detach() * 3)
    ),
    "a state dict": lambda layer, mask: layer.load_state_dict(nn.Linear(48, 64).state_dict()),
    "an optimizer": lambda layer, mask: step(layer),
    "strides": lambda layer, mask: setattr(
        layer.weight, "data", layer.weight.data.t().contiguous().t()
    ),
    "bfloat16": lambda layer, mask: layer.bfloat16(),
    "float64": lambda layer, mask: layer.double(),
    "mask in place": lambda layer, mask: mask.copy_(mask.roll(4, 1)),
    "mask data": lambda layer, mask: mask.data.logical_not_(),
    "mask array": lambda layer, mask: mask.numpy().__ixor__(True),
}


def step(layer: nn.Linear) -> None:
    layer.weight.grad = torch.ones_like(layer.weight)
    torch.optim.AdamW(layer.parameters(), fused=True).step()


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("inference", [False, True])
def test_changes_are_seen(change: str, inference: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(48, 64)
    mask = pattern_mask("2:4T", 64, 48)
    packed = PackedWeight(PATTERN)
    with torch.inference_mode(inference):
        packed.update(layer.weight, mask)
    CHANGES[change](layer, mask)
    with torch.inference_mode(inference):
        packed.update(layer.weight, mask)
        expected = torch.where(mask, layer.weight.detach(), 0.0)
        assert packed.forward.values.dtype == (
            torch.bfloat16 if change == "bfloat16" else torch.float32
        )
        assert torch.equal(packed.forward.dense(), expected.to(packed.forward.values.dtype))


def test_a_weight_at_the_address_of_another() -> None:
    """A temporary weight is no other one that lies where it lay, though version and shape agree."""
    packed = PackedWeight(PATTERN)
    _, mask = pair(64, 64)
    seen = set()
    for number in range(20):
        weight = torch.zeros(64, 64)
        weight.view(-1)[7] = 1.0  # few entries differ, so that samples may agree
        weight.view(-1)[64 * 33 + number] = 1.0
        seen.add(weight.data_ptr())
        packed.update(weight, mask)
        check(packed, weight, mask)
        del weight
    assert len(seen) < 20


def test_inference_tensors_are_packed_at_each_call() -> None:
    with torch.inference_mode():
        weight, mask = pair()
        packed = PackedWeight(PATTERN)
        packed.update(weight, mask)
        weight[0, mask[0].nonzero()[0]] = 7.0
        packed.update(weight, mask)
        check(packed, weight, mask)
        with counted_calls() as calls:
            packed.update(weight, mask)
        assert calls == {"index": 2, "fill": 2}, "they have no version"


def test_tensors_that_differ_in_one_trait_only() -> None:
    """Views of one storage and version, equal at every entry that is compared."""
    mask = torch.ones(64, 64, dtype=torch.bool)
    compared = torch.zeros(64, 64, dtype=torch.bool)
    compared[_lattice(64, 64)] = True
    row, col = (~compared & ~compared.t()).triu(1).nonzero()[0].tolist()
    whole = torch.zeros(128, 64)
    whole[row, col] = 1.0
    packed = PackedWeight(transposed=False)
    for weight in (whole[:64], whole[64:], whole[:64], whole[:64].t(), whole[:64]):
        packed.update(weight, mask)
        assert torch.equal(packed.forward.dense(), weight)


def test_a_refill_that_failed_is_no_refill(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, mask = pair()
    other = weight * 2
    packed = PackedWeight(PATTERN, transposed=False)
    packed.update(weight, mask)

    def fails(self: Stream, given: torch.Tensor) -> None:
        self.values.zero_()
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Stream, "fill", fails)
        with pytest.raises(MemoryError):
            packed.update(other, mask)
    packed.update(weight, mask)
    assert torch.equal(packed.forward.dense(), torch.where(mask, weight, 0.0))


def test_small_weights_are_compared_whole() -> None:
    weight = torch.zeros(32, 32)
    assert weight.numel() == SAMPLES
    mask = torch.ones(32, 32, dtype=torch.bool)
    packed = PackedWeight()
    for at in range(0, 1024, 31):
        weight.data.view(-1)[at] = 5.0
        packed.update(weight, mask)
        check(packed, weight, mask)


@pytest.mark.parametrize("shape", [(1024, 1024), (1000, 40), (3, 700), (40, 1000)])
def test_a_line_of_data_is_seen(shape: tuple[int, int]) -> None:
    weight = torch.zeros(shape)
    mask = torch.ones(shape, dtype=torch.bool)
    packed = PackedWeight(transposed=False)
    packed.update(weight, mask)
    with counted_calls() as calls:
        for row in range(0, shape[0], max(1, shape[0] // 40)):
            weight.data[row] += 1
            packed.update(weight, mask)
        for col in range(0, shape[1], max(1, shape[1] // 40)):
            weight.data[:, col] += 1
            packed.update(weight, mask)
        lines = sum(len(range(0, size, max(1, size // 40))) for size in shape)
        assert calls["fill"] == lines


def test_nan_is_no_change() -> None:
    weight, mask = pair()
    weight[:] = float("nan")
    packed = PackedWeight(PATTERN)
    with counted_calls() as calls:
        packed.update(weight, mask)
        packed.update(weight, mask)
    assert calls["fill"] == 2


def test_the_weight_gradient_needs_no_values() -> None:
    weight, mask = pair()
    packed = PackedWeight(PATTERN)
    with counted_calls() as calls:
        with packed.use(None, mask) as stream:
            assert stream.values.isnan().all()
        with packed.use(weight, mask):
            pass
        with packed.use(None, mask) as stream:
            assert not stream.values.isnan().any()
        assert calls == {"index": 1, "fill": 1}


def test_a_stream_in_use_stays_as_it_is() -> None:
    weight, mask = pair()
    packed = PackedWeight(PATTERN)
    with packed.use(weight, mask) as first:
        before = first.values.clone()
        with packed.use(weight * 2, mask) as second:
            assert torch.equal(second.values, 2 * before)
            assert second.index is first.index
        with packed.use(weight, ~mask) as third:
            assert torch.equal(third.dense(), torch.where(mask, 0.0, weight))
        assert torch.equal(first.values, before)
    with packed.use(weight, mask) as fourth:
        values = fourth.values
    weight.add_(1)
    with packed.use(weight, mask) as fifth:
        assert fifth.values is values  # memory is used again


def test_threads_with_weights_of_their_own() -> None:
    packed = PackedWeight(PATTERN)
    _, mask = pair(64, 64)
    wrong = []

    def work(seed: int) -> None:
        for number in range(40):
            weight = torch.full((64, 64), float(10 * number + seed))
            kept = mask if number % 3 else ~mask
            with packed.use(weight, kept, transposed=bool(number % 2)) as stream:
                if not (stream.values == weight[0, 0]).all():
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_a_fork_while_another_thread_packs() -> None:
    """The lock of a thread that is not in the child must not stop the child."""
    weight, mask = pair()
    packed = PackedWeight(PATTERN)
    packed.update(weight, mask)
    with packed.use(weight, mask), packed._guard():  # as if a thread were at it
        child = os.fork()
        if child == 0:
            status = 1
            try:
                before = packed.forward.values
                weight.add_(1)
                packed.update(weight, mask)
                check(packed, weight, mask)
                assert packed.forward.values is before, "nobody uses it here"
                status = 0
            finally:
                os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def decide(tokens: int, dtype: torch.dtype) -> Choice:
    return Choice(forward=tokens > 3)


def saved(packed: PackedWeight) -> PackedWeight:
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert isinstance(again, PackedWeight)
    return again


COPIES: dict[str, Callable[[PackedWeight], PackedWeight]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda packed: pickle.loads(pickle.dumps(packed)),
    "torch.save": saved,
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_have_handles_of_their_own(way: str) -> None:
    weight, mask = pair()
    packed = PackedWeight(PATTERN, transposed=False, decide=decide)
    packed.update(weight, mask)
    twin = COPIES[way](packed)
    assert (twin.pattern, twin.transposed, twin.decide) == (PATTERN, False, decide)
    assert twin.handle != packed.handle
    assert int(twin.tag) == twin.handle
    assert find_packed(twin.handle) is twin
    assert find_packed(packed.handle) is packed
    with pytest.raises(LayerError, match="nothing is packed yet"):
        _ = twin.forward
    assert twin.backward is None
    twin.update(weight, mask)
    assert twin.backward is None
    assert twin.forward.values.data_ptr() != packed.forward.values.data_ptr()


def test_handles_die_with_their_object() -> None:
    packed = PackedWeight()
    packed.update(*pair())
    handle = packed.handle
    assert str(handle) in repr(packed)
    del packed
    gc.collect()
    assert find_packed(handle) is None


def test_the_storage_is_not_kept_alive() -> None:
    packed = PackedWeight()
    weight, mask = pair()
    packed.update(weight, mask)
    storage = weight.untyped_storage()
    reference = torch.multiprocessing.reductions.StorageWeakRef(storage)
    del weight, storage
    assert reference.expired()


@pytest.mark.parametrize("shape", [(0, 0), (0, 8), (8, 0), (1, 1), (5, 7)])
def test_small_shapes(shape: tuple[int, int]) -> None:
    weight, mask = torch.randn(shape, generator=generator(0)), random_mask(*shape, 0)
    packed = PackedWeight()
    for _ in range(2):
        packed.update(weight, mask)
        check(packed, weight, mask)


def test_bad_input() -> None:
    weight, mask = pair()
    packed = PackedWeight(PATTERN)
    with pytest.raises(MaskError, match=r"mask is \(48, 32\) and the weight \(32, 48\)"):
        packed.update(weight, mask.t())
    with pytest.raises(MaskError, match=r"dtype torch.uint8"):
        packed.update(weight, mask.byte())
    with pytest.raises(SparseFormatError, match=r"torch\.int64"):
        packed.update(weight.long(), mask)
    with pytest.raises(SparseFormatError, match=r"shape \(48,\)"):
        packed.update(weight[0], mask)
    with pytest.raises(DeviceError, match="the weight is on meta"):
        packed.update(weight.to("meta"), mask)
    with pytest.raises(DeviceError, match="the mask is on meta"):
        packed.update(weight, mask.to("meta"))
    packed.update(weight, mask)
    check(packed, weight, mask)
