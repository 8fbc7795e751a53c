"""verify, against a count by three plain loops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transposable import Layout, LayoutError, Mask, MaskError, Pattern, find_mask, verify
from transposable.verification import MAX_PLACES

Index = tuple[int, ...]


def groups_by_hand(
    shape: tuple[int, ...], axis: str, m: int, layout: Layout
) -> Iterator[list[Index]]:
    """Every group of the axis as the indices of its weights, by the definition of the layout."""
    if layout.name == "stacked":
        prefixes, out, inner = list(np.ndindex(shape[:-2])), shape[-2], shape[-1]
    elif layout.name == "linear":
        prefixes, out, inner = [()], shape[0], shape[1]
    else:
        prefixes = list(np.ndindex((layout.groups, *shape[2:])))
        out, inner = shape[0] // layout.groups, shape[1]

    def at(prefix: Index, row: int, col: int) -> Index:
        if layout.name == "conv":
            return (prefix[0] * out + row, col, *prefix[1:])
        return (*prefix, row, col)

    for prefix in prefixes:
        lines, length = (out, inner) if axis == "in" else (inner, out)
        for line in range(lines):
            for start in range(0, length, m):
                steps = range(start, min(start + m, length))
                if axis == "in":
                    yield [at(prefix, line, step) for step in steps]
                else:
                    yield [at(prefix, step, line) for step in steps]


def consecutive(flags: list[bool]) -> bool:
    return "".join("x" if f else " " for f in flags).strip().count(" ") == 0


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, Pattern, Layout]:
    m = draw(st.integers(2, 5))
    structure = draw(st.sampled_from(["row", "transposable", "sequential"]))
    pattern = Pattern(draw(st.integers(1, m - 1)), m, structure)
    name = draw(st.sampled_from(["linear", "conv", "stacked"]))
    groups = draw(st.integers(1, 2)) if name == "conv" else 1
    sides = st.integers(0, 7)
    shape: tuple[int, ...] = (groups * draw(sides), draw(sides))
    if name == "conv":
        shape = (*shape, *draw(st.lists(st.integers(1, 2), min_size=1, max_size=3)))
    if name == "stacked":
        shape = (*draw(st.lists(st.integers(1, 2), min_size=1, max_size=2)), *shape)
    density = draw(st.sampled_from([0.2, 0.5, 0.8, 1.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kept = torch.from_numpy(rng.random(shape) < density)
    return kept, pattern, Layout(name, groups)


@given(cases())
def test_against_plain_loops(case: tuple[torch.Tensor, Pattern, Layout]) -> None:
    kept, pattern, layout = case
    report = verify(kept, pattern, layout=layout)
    total = 0
    for axis in ("in", "out"):
        found = report.axis(axis)
        counts, places, exact, full = [], {}, 0, 0
        for group in groups_by_hand(tuple(kept.shape), axis, pattern.m, layout):
            flags = [bool(kept[index]) for index in group]
            counts.append(sum(flags))
            runs = pattern.structure == "sequential" and axis == "in" and not consecutive(flags)
            if sum(flags) > pattern.n or runs:
                places[group[0]] = sum(flags)
            if len(group) == pattern.m:
                full += 1
                exact += sum(flags) == pattern.n
        assert found.groups == len(counts)
        assert found.violations == len(places)
        assert found.most_kept == max(counts, default=0)
        assert {place.index: place.kept for place in found.places} == places
        assert found.exact == pytest.approx(exact / full if full else 1.0)
        assert found.required == (axis == "in" or pattern.transposable)
        total += len(places) if found.required else 0
    assert report.violations == total
    assert report.ok is bool(report) is (total == 0)
    assert report.density == pytest.approx(float(kept.double().mean()) if kept.numel() else 0.0)
    assert report.shape == tuple(kept.shape)


@given(cases())
def test_a_place_names_a_weight_of_its_group(case: tuple[torch.Tensor, Pattern, Layout]) -> None:
    """Clearing the group that starts at the place removes that violation, and no weight else."""
    kept, pattern, layout = case
    for axis in ("in", "out"):
        for place in verify(kept, pattern, layout=layout).axis(axis).places[:3]:
            group = next(
                g
                for g in groups_by_hand(tuple(kept.shape), axis, pattern.m, layout)
                if g[0] == place.index
            )
            cleared = kept.clone()
            for index in group:
                cleared[index] = False
            assert int((cleared != kept).sum()) == place.kept
            after = verify(cleared, pattern, layout=layout).axis(axis)
            assert place.index not in [p.index for p in after.places]
            assert (
                after.violations == verify(kept, pattern, layout=layout).axis(axis).violations - 1
            )


def test_a_weight_counts_what_is_not_zero() -> None:
    weight = torch.tensor([[1.0, -0.0, math.nan, 0.0], [0.0, 0.0, -2.0, 1e-45]])
    report = verify(weight, "1:4T")
    assert report.density == 0.5
    assert report.axis("in").violations == 2  # NaN is not zero
    assert report.axis("out").violations == 1
    for array in (weight.numpy(), weight != 0, (weight != 0).int(), weight.requires_grad_()):
        assert verify(array, "1:4T").axes == report.axes


def test_a_mask_brings_its_layout() -> None:
    mask = find_mask(torch.rand(8, 8, 3, 3), "2:4T", layout="conv", groups=2)
    assert verify(mask, "2:4T").ok
    assert verify(mask, "1:4T").violations > 0


def test_unstructured() -> None:
    weight = torch.ones(3, 3)
    weight[0] = 0
    assert verify(weight, "70%").ok  # at most ceil(6.3)
    report = verify(weight, "50%")
    assert report.violations == 1
    assert report.axis("all").most_kept == 6
    assert report.axis("all").places[0].index == (0, 0)
    assert not report.axis("all").exact
    assert verify(torch.ones(0, 3), "50%").ok


def test_places_are_limited_and_counts_are_not() -> None:
    report = verify(torch.ones(MAX_PLACES, 8), "2:4")
    assert report.axis("in").violations == 2 * MAX_PLACES
    assert len(report.axis("in").places) == MAX_PLACES


def test_the_text_of_a_report() -> None:
    text = str(verify(torch.ones(8, 8), "2:4"))
    assert text.splitlines()[:3] == [
        "2:4 on 8x8: violated, density 1.0000",
        "  in            16 of 16 groups violated, most kept 4",
        "      at (0, 0): keeps 4",
    ]
    assert "      and 11 more" in text
    assert "not promised by this pattern" in text
    assert str(verify(torch.zeros(8, 8), "2:4T")).startswith("2:4T on 8x8: holds, density 0.0000")


def test_bad_arguments() -> None:
    with pytest.raises(LayoutError, match=r"^verify: received a 4-D tensor"):
        verify(torch.zeros(4, 4, 3, 3), "2:4")
    with pytest.raises(MaskError, match="'all'; the axes of 2:4 are 'in', 'out'"):
        verify(torch.zeros(4, 4), "2:4").axis("all")


def test_masks_of_every_solver_pass_where_they_promise() -> None:
    weight = torch.randn(24, 40, generator=torch.Generator().manual_seed(0))
    assert verify(find_mask(weight, "2:4"), "2:4").ok
    assert not verify(find_mask(weight, "2:4"), "2:4T").ok
    assert verify(find_mask(weight, "2:4S"), "2:4S").ok
    assert verify(find_mask(weight, "2:4T"), "2:4T").ok
    transposed = Mask(find_mask(weight, "2:4T").tensor.T, "2:4T")
    assert verify(transposed, "2:4").ok
