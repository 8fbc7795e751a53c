"""The pass that compares masks: its counts and sums against plain torch, in any memory order."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from transposable import ScoresError, _core, find_mask
from transposable.nn import SparseConv2d, SparseLinear, refresh_masks, sparsify
from transposable.nn.masks import MaskChange, best_mask, compare_by_torch, compare_masks

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def reference(weight: torch.Tensor, mask: torch.Tensor, found: torch.Tensor) -> MaskChange:
    magnitude = weight.double().abs()
    kept = torch.where(found, magnitude, 0.0).sum()
    return MaskChange(int((mask != found).sum()), kept.item(), magnitude.sum().item())


def random_triple(
    shape: list[int], orders: list[list[int]], dtype: torch.dtype, seed: int
) -> Triple:
    """Weight, old mask and new mask of one shape, with the axes of each in an order of its own."""
    generator = torch.Generator().manual_seed(seed)

    def stored(order: list[int]) -> torch.Tensor:
        uniform = torch.rand([shape[axis] for axis in order], generator=generator)
        return uniform.permute([order.index(axis) for axis in range(len(shape))])

    weight, mask, found = (stored(order) for order in orders)
    return (8 * weight - 4).to(dtype), mask < 0.5, found < 0.5


@st.composite
def triples(draw: st.DrawFn) -> Triple:
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7, 16, 33]), max_size=4))
    orders = [draw(st.permutations(range(len(shape)))) for _ in range(3)]
    dtype, seed = draw(st.sampled_from(DTYPES)), draw(st.integers(0, 2**31))
    weight, mask, found = random_triple(shape, orders, dtype, seed)
    if shape and draw(st.booleans()):  # with gaps between the elements
        weight, mask = (t.repeat_interleave(2, 0)[::2] for t in (weight, mask))
    return weight, mask, found


@given(triples(), st.integers(1, 4))
def test_the_native_pass_against_torch(triple: Triple, threads: int) -> None:
    weight, mask, found = triple
    expected = reference(weight, mask, found)
    before = [tensor.clone() for tensor in triple]
    flips, kept, total = _core.compare_masks(weight, mask, found, threads)
    assert flips == expected.flips
    assert kept == pytest.approx(expected.kept, rel=1e-13)
    assert total == pytest.approx(expected.total, rel=1e-13)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(triple, before, strict=True))


def test_the_path_of_other_devices_agrees() -> None:
    triple = random_triple([40, 50], [[0, 1]] * 3, torch.bfloat16, 1)
    expected = reference(*triple)
    for compare in (compare_masks, compare_by_torch):
        change = compare(*triple)
        assert change.flips == expected.flips
        assert change.kept == pytest.approx(expected.kept, rel=1e-13)
        assert change.total == pytest.approx(expected.total, rel=1e-13)


def outcomes() -> dict[str, list[float]]:
    """Flips and sums on the active instruction set; large enough for several threads."""
    result = {}
    for dtype in DTYPES:
        for shape, order in (([1001, 777], [0, 1]), ([1000, 333], [1, 0]), ([5], [0])):
            triple = random_triple(shape, [order, [*range(len(shape))], order], dtype, 3)
            sums = [_core.compare_masks(*triple, threads) for threads in (1, 2, 5)]
            assert sums[0] == sums[1] == sums[2]
            result[f"{dtype} {shape} {order}"] = list(sums[0])
    return result


def test_threads_change_nothing() -> None:
    assert outcomes() == outcomes()


@pytest.mark.parametrize("path", [path for path in _core.isas() if path != _core.isa()])
def test_another_instruction_set_gives_the_same(path: str) -> None:
    code = "import json, sys, test_change; json.dump(test_change.outcomes(), sys.stdout)"
    search = os.pathsep.join([os.path.dirname(__file__), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TRANSPOSABLE_ISA": path, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    theirs, ours = json.loads(done.stdout), outcomes()
    assert theirs.keys() == ours.keys()
    for key, values in ours.items():
        assert theirs[key] == pytest.approx(values, rel=1e-13), key


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((4, 4), (4, 3), (4, 4)), "masks: shape"),
        (((4, 4), (4, 4), (3, 4)), "masks: shape"),
        (((4, 4), (16,), (4, 4)), "masks: dimensions"),
    ],
)
def test_shapes_are_checked(shapes: tuple[tuple[int, ...], ...], message: str) -> None:
    weight, mask, found = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=message):
        _core.compare_masks(weight, mask.bool(), found.bool(), 1)


def test_dtypes_are_checked() -> None:
    weight, mask = torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="dtype"):
        _core.compare_masks(weight.int(), mask, mask, 1)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _core.compare_masks(None, mask, mask, 1)


def layers() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3, groups=4), nn.Flatten(), nn.Linear(32, 24)
    )
    sparsify(model, "2:4T")
    return model


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("solver", ["exact", "two_approx"])
def test_what_a_refresh_reports(last: bool, solver: str) -> None:
    """Flip rate, kept magnitude and gap, computed again from the masks before and after."""
    model = layers()
    if last:
        model = model.to(memory_format=torch.channels_last)
    sparse = [module for module in model if hasattr(module, "mask")]
    before = [layer.mask.clone() for layer in sparse]
    with torch.no_grad():
        for layer in sparse:
            layer.weight.add_(torch.randn_like(layer.weight), alpha=0.05)
    done = refresh_masks(model, solver)
    flips = size = 0
    kept = total = best = 0.0
    for layer, old in zip(sparse, before, strict=True):
        found = find_mask(layer.weight.detach(), "2:4T", solver=solver, layout=layer.layout).tensor
        assert torch.equal(layer.mask, found)
        change = reference(layer.weight.detach(), old, found)
        most = find_mask(layer.weight.detach(), "2:4T", layout=layer.layout).tensor
        flips, size = flips + change.flips, size + old.numel()
        kept, total = kept + change.kept, total + change.total
        best += reference(layer.weight.detach(), old, most).kept
    assert 0 < flips < size
    assert done.flip_rate == flips / size
    assert done.kept == pytest.approx(kept / total, rel=1e-12)
    assert done.gap == pytest.approx(1 - kept / best, abs=1e-12)
    assert (done.gap > 1e-4) == (solver == "two_approx")


@pytest.mark.parametrize("solver", ["exact", "two_approx"])
def test_a_nan_leaves_every_mask_as_it_was(solver: str) -> None:
    model = layers()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
        model[3].weight[5, 7] = float("nan")
    with pytest.raises(ScoresError, match=r"layer '3': .*index \(5, 7\)"):
        refresh_masks(model, solver)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


@pytest.mark.parametrize("solver", ["exact", "two_approx"])
def test_a_refresh_between_forward_and_backward_is_noticed(solver: str) -> None:
    """A gradient under another mask than the loss would be wrong in silence."""
    layer = SparseLinear(8, 8, pattern="2:4T")
    loss = layer(torch.randn(3, 8)).sum()
    refresh_masks(nn.Sequential(layer), solver)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("groups", [1, 2])
def test_masks_lie_in_memory_as_their_weights(groups: int) -> None:
    conv = nn.Conv2d(16, 16, 3, groups=groups).to(memory_format=torch.channels_last)
    expected = find_mask(conv.weight.detach(), "4:8T", layout="conv", groups=groups).tensor
    layer = SparseConv2d.from_dense(conv, "4:8T")
    assert layer.mask.stride() == layer.weight.stride()
    assert torch.equal(layer.mask, expected)
    turned = torch.randn(24, 16).t()
    linear = SparseLinear(24, 16, pattern="4:8T")
    mask = best_mask(turned, linear.pattern, linear.layout, False, "auto", "x")
    assert mask.stride() == turned.stride()
    assert torch.equal(mask, find_mask(turned, "4:8T").tensor)
    stored = best_mask(turned.t(), linear.pattern, linear.layout, True, "auto", "x")
    assert stored.is_contiguous()
    assert torch.equal(stored.t(), mask)
