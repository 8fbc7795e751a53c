"""How layers are read as regressions, against the layers themselves and torch's unfold."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from transposable.layout import Layout
from transposable.prune.moments import Moments
from transposable.prune.reading import Reading


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, torch.Tensor]:
    """A convolution with every option, in double precision, and an input."""
    torch.manual_seed(draw(st.integers(0, 99)))
    two = draw(st.booleans())
    groups = draw(st.sampled_from([1, 2, 3]))
    kernel = draw(st.integers(1, 3))
    options: dict[str, Any] = {
        "stride": draw(st.integers(1, 3)),
        "dilation": draw(st.integers(1, 2)),
        "padding": draw(st.integers(0, 2)),
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
    }
    if options["padding"] == 0 and draw(st.booleans()):
        options |= {"padding": "same", "stride": 1}
    kind = nn.Conv2d if two else nn.Conv1d
    cin, out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    layer = kind(cin, out, kernel, **options, dtype=torch.double)
    batch = draw(st.integers(1, 3))
    x = torch.randn(batch, cin, *([7, 9] if two else [8]), dtype=torch.double)
    return layer, x


@given(convolutions())
def test_a_convolution_is_its_matrix_times_its_inputs(case: tuple[nn.Module, torch.Tensor]) -> None:
    layer, x = case
    reading = Reading.of(layer)
    wanted = reading.outputs(layer(x))
    inputs = torch.cat(list(reading.inputs(layer, x)), 1)
    found = inputs @ reading.matrix(layer.weight).mT
    if layer.bias is not None:
        found += layer.bias.reshape(reading.groups, 1, reading.rows)
    assert torch.allclose(found, wanted)


def test_the_gram_of_a_convolution_is_that_of_unfold() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 8, 3, stride=2, padding=1, dilation=2)
    x = torch.randn(4, 6, 11, 9)
    reading = Reading.of(layer)
    moments = Moments(reading, x.device)
    moments.add(layer, x, layer(x) - layer.bias[:, None, None])
    patches = F.unfold(x, 3, padding=1, stride=2, dilation=2).double()
    by_channel = patches.transpose(1, 2).reshape(-1, 54)
    order = torch.arange(54).reshape(6, 9).t().flatten()  # channels within positions
    rows = by_channel[:, order]
    assert torch.allclose(moments.gram[0], rows.T @ rows, rtol=1e-5, atol=1e-5)
    assert torch.allclose(moments.inputs[0], rows.sum(0), rtol=1e-5, atol=1e-4)
    assert moments.count == len(rows)


def test_parts_of_an_input_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Conv2d(4, 4, 3).double()
    x = torch.randn(7, 4, 6, 6).double()
    reading = Reading.of(layer)
    whole = Moments(reading, x.device)
    whole.add(layer, x, layer(x))
    monkeypatch.setattr("transposable.prune.reading.CHUNK", 36 * 16 * 2)
    assert len(list(reading.inputs(layer, x))) == 4
    parts = Moments(reading, x.device)
    parts.add(layer, x, layer(x))
    assert whole.count == parts.count
    for a, b in zip(whole.tensors(), parts.tensors(), strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("layer", [nn.Linear(6, 5), Conv1D(5, 6)])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 3, 4, 6)])
def test_a_linear_layer_takes_any_number_of_dimensions(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape)
    reading = Reading.of(layer)
    (inputs,) = reading.inputs(layer, x)
    found = inputs @ reading.matrix(layer.weight).mT + layer.bias
    assert torch.allclose(found, reading.outputs(layer(x)), atol=1e-6)


@pytest.mark.parametrize(("kind", "sizes"), [(nn.Conv1d, (9,)), (nn.Conv2d, (5, 9))])
@pytest.mark.parametrize("out", [4, 9])
def test_a_convolution_without_a_batch(
    kind: type[nn.Module], sizes: tuple[int, ...], out: int
) -> None:
    layer = kind(4, out, 3, bias=False)
    x = torch.randn(4, *sizes)
    reading = Reading.of(layer)
    found = torch.cat(list(reading.inputs(layer, x)), 1) @ reading.matrix(layer.weight).mT
    assert torch.allclose(found, reading.outputs(layer(x)), atol=1e-6)


@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99)
)
def test_matrices_and_tiles_go_back(
    groups: int, rows: int, kernel: int, channels: int, seed: int
) -> None:
    torch.manual_seed(seed)
    layer = nn.Conv1d(groups * channels, groups * rows, kernel, groups=groups)
    reading = Reading.of(layer)
    matrix = reading.matrix(layer.weight)
    assert torch.equal(reading.weight(matrix, layer.weight.shape), layer.weight)
    assert torch.equal(reading.untile(reading.tiles(matrix)), matrix)
    # The tiles are those of the layout that masks, verification and kernels use.
    assert torch.equal(reading.tiles(matrix), Layout("conv", groups).matrices(layer.weight))


def test_the_sums_of_no_sample_take_no_memory() -> None:
    reading = Reading.of(nn.Linear(4096, 11008, device="meta"))
    moments = Moments.none(reading, torch.device("cpu"))
    assert moments.gram.shape == (1, 4096, 4096)
    assert moments.cross.shape == (1, 11008, 4096)
    assert sum(t.untyped_storage().nbytes() for t in moments.tensors()) < 1000
