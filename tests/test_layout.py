"""Layouts: what a tile spans in the tensor, and the exact way back."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transposable import Layout, LayoutError
from transposable.layout import blocks, unblocks

SIDES = st.integers(0, 5)


@st.composite
def readings(draw: st.DrawFn) -> tuple[Layout, tuple[int, ...]]:
    """A layout and a shape that it can read, empty ones included."""
    name = draw(st.sampled_from(["linear", "conv", "stacked"]))
    if name == "linear":
        return Layout("linear"), (draw(SIDES), draw(SIDES))
    if name == "stacked":
        batch = draw(st.lists(SIDES, min_size=1, max_size=3))
        return Layout("stacked"), (*batch, draw(SIDES), draw(SIDES))
    groups = draw(st.integers(1, 3))
    kernel = draw(st.lists(SIDES, min_size=1, max_size=3))
    return Layout("conv", groups), (groups * draw(SIDES), draw(SIDES), *kernel)


def counted(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


@given(readings())
def test_restore_inverts_matrices(reading: tuple[Layout, tuple[int, ...]]) -> None:
    layout, shape = reading
    tensor = counted(shape)
    layout.check(shape, "test")
    matrices = layout.matrices(tensor)
    assert matrices.ndim == 3
    assert matrices.numel() == tensor.numel()
    restored = layout.restore(matrices, shape)
    assert restored.is_contiguous()
    assert torch.equal(restored, tensor)


@given(readings())
def test_index_names_the_place_in_the_tensor(reading: tuple[Layout, tuple[int, ...]]) -> None:
    layout, shape = reading
    tensor = counted(shape)
    matrices = layout.matrices(tensor)
    for place in itertools.islice(itertools.product(*map(range, matrices.shape)), 200):
        assert tensor[layout.index(place, shape)] == matrices[place]


@given(readings())
def test_layouts_read_any_strides(reading: tuple[Layout, tuple[int, ...]]) -> None:
    layout, shape = reading
    tensor = counted(shape)
    strided = tensor.permute(*reversed(range(tensor.ndim))).contiguous()
    strided = strided.permute(*reversed(range(tensor.ndim)))
    assert torch.equal(layout.matrices(strided), layout.matrices(tensor))


def test_linear_is_a_view() -> None:
    tensor = counted((6, 8))
    assert Layout().matrices(tensor.T).data_ptr() == tensor.data_ptr()
    assert Layout().matrices(tensor).tolist() == [tensor.tolist()]


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 3, 2)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_conv_matrix_is_one_group_at_one_kernel_position(
    kernel: tuple[int, ...], groups: int
) -> None:
    """Rows: the group's output channels; columns: its input channels (docstring of Layout)."""
    weight = counted((8, 3, *kernel))
    matrices = Layout("conv", groups).matrices(weight)
    per_group = 8 // groups
    assert matrices.shape == (groups * math.prod(kernel), per_group, 3)
    expected = [
        weight[(slice(g * per_group, (g + 1) * per_group), slice(None), *position)]
        for g in range(groups)
        for position in itertools.product(*map(range, kernel))
    ]
    assert torch.equal(matrices, torch.stack(expected))


def test_a_tile_of_a_conv_spans_channels_only() -> None:
    weight = counted((8, 8, 3, 3))
    tiles = blocks(Layout("conv").matrices(weight), 4)
    assert torch.equal(tiles[5, 1, 0], weight[4:8, 0:4, 1, 2])


def test_stacked_is_one_matrix_after_the_other() -> None:
    weight = counted((2, 3, 4, 5))
    assert torch.equal(Layout("stacked").matrices(weight)[4], weight[1, 1])


@given(st.integers(0, 3), st.integers(0, 9), st.integers(0, 9), st.integers(1, 5))
def test_blocks(batch: int, rows: int, cols: int, m: int) -> None:
    matrices = 1 + counted((batch, rows, cols))
    tiles = blocks(matrices, m)
    assert tiles.shape == (batch, -(-rows // m), -(-cols // m), m, m)
    assert tiles.sum() == matrices.sum()  # padded with zeros
    assert torch.equal(unblocks(tiles, rows, cols), matrices)
    for b, r, c in itertools.product(*map(range, matrices.shape)):
        assert tiles[b, r // m, c // m, r % m, c % m] == matrices[b, r, c]


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("linear", ()),
        ("linear", (4,)),
        ("linear", (4, 4, 4)),
        ("conv", (4, 4)),
        ("conv", (4, 4, 1, 1, 1, 1)),
        ("stacked", (4, 4)),
        ("stacked", (4,)),
    ],
)
def test_wrong_dimensions(layout: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        LayoutError,
        match=rf"^op: received a {len(shape)}-D tensor .* with layout '{layout}', which",
    ) as error:
        Layout(layout).check(shape, "op")
    assert "layout=" in str(error.value)


def test_groups() -> None:
    with pytest.raises(LayoutError, match="received 9 output channels and groups=2"):
        Layout("conv", 2).check((9, 4, 3, 3), "op")
    for groups in (0, -1, True, 1.0, "2"):
        with pytest.raises(LayoutError, match="it must be an integer >= 1"):
            Layout("conv", groups)  # type: ignore[arg-type]
    for name in ("linear", "stacked"):
        with pytest.raises(LayoutError, match="only convolutions have groups"):
            Layout(name, 2)


@pytest.mark.parametrize("name", ["", "Linear", "conv2d", None, 3, ["linear"]])
def test_unknown_layouts(name: object) -> None:
    with pytest.raises(LayoutError, match="the layouts are 'linear', 'conv' and 'stacked'"):
        Layout(name)  # type: ignore[arg-type]


def test_of_passes_a_layout_through() -> None:
    layout = Layout("conv", 2)
    assert Layout.of(layout) is layout
    assert Layout.of("conv", 2) == layout
