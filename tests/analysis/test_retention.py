"""What patterns keep, against plain numpy: sorting, and every mask of a tile tried."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from transposable.analysis import retention
from transposable.analysis.sampling import sample_tiles, tile_side
from transposable.errors import PatternError, ScoresError, SelectionError
from transposable.export import Choice, open_source
from transposable.pattern import Pattern

PATTERNS = ["2:4", "4:8", "2:4T", "4:8S"]


def masks_2_4t() -> np.ndarray:
    rows = [np.isin(range(4), pair) for pair in itertools.combinations(range(4), 2)]
    found = [np.array(four) for four in itertools.product(rows, repeat=4)]
    return np.array([mask for mask in found if (mask.sum(0) == 2).all()])


def kept_by_hand(scores: np.ndarray, pattern: str) -> float:
    """The largest sum of scores [rows, cols] under a pattern; sides are multiples of 8."""
    rows, cols = scores.shape
    if pattern == "2:4T":
        tiles = scores.reshape(rows // 4, 4, cols // 4, 4).transpose(0, 2, 1, 3)
        sums = np.einsum("abij,mij->abm", tiles, masks_2_4t().astype(float))
        return float(sums.max(2).sum())
    n, m = (int(part) for part in pattern.rstrip("S").split(":"))
    groups = scores.reshape(rows, cols // m, m)
    if pattern.endswith("S"):
        windows = np.stack([groups[..., s : s + n].sum(2) for s in range(m - n + 1)], -1)
        return float(windows.max(-1).sum())
    return float(np.sort(groups)[..., m - n :].sum())


def unstructured_by_hand(scores: np.ndarray) -> float:
    return float(np.sort(scores, axis=None)[scores.size // 2 :].sum())


@pytest.mark.parametrize("scores", ["l1", "l2"])
def test_linear_layers(scores: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 24).double())
    found = retention(model, PATTERNS, scores)
    assert [layer.name for layer in found.layers] == ["0", "2"]
    assert (found.weights, found.measured, found.title) == (32 * 16 + 16 * 24, 896, "Sequential")
    arrays = [model[i].weight.detach().double().abs().numpy() for i in (0, 2)]
    if scores == "l2":
        arrays = [array**2 for array in arrays]
    for pattern in PATTERNS:
        by_hand = [kept_by_hand(array, pattern) for array in arrays]
        for layer, array, kept in zip(found.layers, arrays, by_hand, strict=True):
            one = layer.kept[PATTERNS.index(pattern)]
            assert one.kept == pytest.approx(kept, rel=1e-5)
            assert one.relative == pytest.approx(kept / unstructured_by_hand(array), rel=1e-5)
            assert one.of_dense == pytest.approx(kept / array.sum(), rel=1e-5)
            assert one.violations["in"] == 0
            assert one.proved
            if pattern == "2:4T":
                assert one.violations["out"] == 0
                assert one.certificate is not None
                assert one.certificate < 1e-6
        total = found.total(pattern)
        best = sum(unstructured_by_hand(array) for array in arrays)
        assert total.relative == pytest.approx(sum(by_hand) / best, rel=1e-5)
        assert total.of_dense == pytest.approx(
            sum(by_hand) / sum(a.sum() for a in arrays), rel=1e-5
        )
        assert total.proved == total.layers == 2
        index = PATTERNS.index(pattern)
        assert total.least == min(layer.kept[index].relative or 2 for layer in found.layers)


def test_convolutions_are_read_by_kernel_position() -> None:
    torch.manual_seed(1)
    model = nn.Conv2d(32, 16, 3, groups=2)
    weight = model.weight.detach().double().abs().numpy()  # [16, 16, 3, 3]
    found = retention(model, PATTERNS)
    assert found.layers[0].name == "Conv2d", "the root has no name"
    for pattern in PATTERNS:
        parts = [
            kept_by_hand(np.ascontiguousarray(weight[g * 8 : g * 8 + 8, :, i, j]), pattern)
            for g in range(2)
            for i in range(3)
            for j in range(3)
        ]
        expected = sum(parts) / unstructured_by_hand(weight)
        assert found.total(pattern).relative == pytest.approx(expected, rel=1e-5)


def test_a_file_and_its_module_agree(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(20, 36), nn.Linear(36, 12))
    path = tmp_path / "model.safetensors"
    save_file(model.state_dict(), path)
    here, there = retention(model, PATTERNS), retention(path, PATTERNS)
    with open_source(path) as source:
        again = retention(source, PATTERNS)
    assert there.title == path.name
    assert [e.reason for e in there.excluded] == ["bias", "bias"]
    for pattern in PATTERNS:
        assert here.total(pattern).relative == there.total(pattern).relative
        assert again.total(pattern).relative == there.total(pattern).relative


def test_weights_stored_in_out(tmp_path: Path) -> None:
    """GPT-2's [in, out]: groups of plain patterns lie along the input features."""
    weight = torch.randn(16, 48)
    path = tmp_path / "model.safetensors"
    save_file({"h.0.attn.c_attn.weight": weight}, path)
    found = retention(path, PATTERNS)
    expected = kept_by_hand(weight.T.double().abs().numpy(), "2:4")
    assert found.layers[0].kept[0].kept == pytest.approx(expected, rel=1e-5)
    assert found.layers[0].shape == (16, 48)


@pytest.mark.parametrize("shape", [(3, 2), (5, 9), (1, 8), (9, 1), (12, 20)])
def test_ragged_layers_keep_at_most_everything(shape: tuple[int, int]) -> None:
    model = nn.Linear(*shape)
    found = retention(model, [*PATTERNS, "4:8T", "50%"])
    for one in found.layers[0].kept:
        assert one.relative is not None
        assert 0 < one.relative <= 1 + 1e-6
        assert all(one.violations[axis] == 0 for axis in one.promised)
    assert found.total("50%").relative == pytest.approx(1)


def test_own_scores() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    importance = {"0": np.random.default_rng(0).random((16, 16)), "1.weight": torch.rand(8, 16)}
    with pytest.raises(ScoresError, match="'1'"):
        retention(model, ["2:4"], importance)
    importance["1"] = importance["1.weight"]
    found = retention(model, PATTERNS, importance)
    assert found.scores == "own"
    for pattern in PATTERNS:
        expected = kept_by_hand(importance["0"], pattern)
        assert found.layers[0].kept[PATTERNS.index(pattern)].kept == pytest.approx(expected)

    def by_column(name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight.abs() * torch.arange(weight.shape[1])

    called = retention(model, ["2:4"], by_column)
    expected = kept_by_hand(by_column("", model[0].weight.detach().double()).numpy(), "2:4")
    assert called.layers[0].kept[0].kept == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("scores", "said"),
    [
        ("l3", "l3"),
        (3, "scores=3"),
        ({}, "empty mapping"),
        (lambda name, w: w[:4], "per weight"),
        (lambda name, w: w - 100, "scores >= 0"),
        (lambda name, w: w * float("nan"), "scores >= 0"),
        (lambda name, w: "no array", "str"),
    ],
)
def test_what_are_no_scores(scores: Any, said: str) -> None:
    with pytest.raises(ScoresError, match=said):
        retention(nn.Linear(8, 8), ["2:4"], scores)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_neither_overflow_nor_vanish(scale: float) -> None:
    model = nn.Linear(16, 16)
    plain = retention(model, ["2:4T"], "l2").total("2:4T").relative
    model.weight.data *= scale
    assert retention(model, ["2:4T"], "l2").total("2:4T").relative == pytest.approx(plain, rel=1e-5)


def test_not_numbers_are_named_and_left_out() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight.data[3, 5] = float("nan")
    found = retention(model, ["2:4"])
    assert [layer.name for layer in found.layers] == ["1"]
    assert [(one.name, one.shape) for one in found.failed] == [("0", (8, 8))]
    assert "(3, 5)" in found.failed[0].reason


def test_infinite_and_zero_weights() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].weight.data[0, 0] = float("inf")
    model[1].weight.data.zero_()
    found = retention(model, ["2:4", "4:8T"])
    assert found.layers[0].kept[0].relative is None
    assert found.layers[1].kept[0].relative == 1.0, "nothing to lose"
    assert found.layers[1].zero_share == 1
    total = found.total("2:4")
    assert total.infinite == 1
    assert total.relative == found.layers[2].kept[0].relative


def test_a_sample_is_whole_tiles() -> None:
    matrices = torch.arange(3 * 40 * 50, dtype=torch.float64).reshape(3, 40, 50)
    every = {
        tuple(matrices[b, i : i + 8, j : j + 8].flatten().tolist())
        for b in range(3)
        for i in range(0, 40, 8)
        for j in range(0, 48, 8)
    }
    seen = set()
    for seed in range(150):
        drawn = sample_tiles(matrices, 8, 700, seed, "layer")
        assert drawn is not None
        assert drawn.shape[0] == 1
        assert drawn.numel() <= 700
        tiles = drawn[0].unfold(0, 8, 8).unfold(1, 8, 8).reshape(-1, 64).tolist()
        assert len({tuple(tile) for tile in tiles}) == len(tiles) >= 9
        assert {tuple(tile) for tile in tiles} <= every
        seen |= {tuple(tile) for tile in tiles}
        again = sample_tiles(matrices, 8, 700, seed, "layer")
        assert torch.equal(drawn, again)  # type: ignore[arg-type]
    assert seen == every, "every tile has its chance"
    assert not torch.equal(drawn, sample_tiles(matrices, 8, 700, seed, "other"))  # type: ignore[arg-type]
    assert sample_tiles(matrices, 8, 6000, 0, "layer") is None
    assert sample_tiles(matrices[:, :7], 8, 64, 0, "layer") is None, "no whole tile in it"
    assert tile_side([Pattern.parse(p) for p in ("2:4", "3:6T", "10%")]) == 12


def test_sampled_layers() -> None:
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(256, 256), nn.Linear(16, 16))
    whole = retention(model, PATTERNS)
    found = retention(model, PATTERNS, sample=8192)
    assert [layer.measured for layer in found.layers] == [7744, 256]
    assert [layer.sampled for layer in found.layers] == [True, False]
    for pattern in PATTERNS:
        one, other = found.total(pattern), whole.total(pattern)
        assert one.relative == pytest.approx(other.relative, abs=0.01)
        assert one.of_dense == pytest.approx(other.of_dense, abs=0.01)
        # A layer counts with all its weights, whatever was measured of it.
        sums = [
            (layer.weights / layer.measured, layer.kept[PATTERNS.index(pattern)])
            for layer in found.layers
        ]
        expected = sum(s * k.kept for s, k in sums) / sum(s * k.unstructured for s, k in sums)
        assert one.relative == pytest.approx(expected)
    again = retention(model, PATTERNS, sample=8192)
    assert again.layers[0].kept[0].kept == found.layers[0].kept[0].kept
    other = retention(model, PATTERNS, sample=8192, seed=1)
    assert other.layers[0].kept[0].kept != found.layers[0].kept[0].kept


def test_progress_and_choice(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({f"l.{i}.weight": torch.randn(8, 8) for i in range(3)}, path)
    seen: list[tuple[float, str]] = []
    found = retention(
        path, "2:4", choice=Choice(exclude=("l.1",)), progress=lambda s, n: seen.append((s, n))
    )
    assert [layer.name for layer in found.layers] == ["l.0.weight", "l.2.weight"]
    assert seen == [(0.5, "l.0.weight"), (1.0, "l.2.weight")]
    assert found.excluded[0].reason == "--exclude l.1"
    with pytest.raises(SelectionError, match="nosuch"):
        retention(path, "2:4", choice=Choice(include=("nosuch",)))
    with pytest.raises(SelectionError, match="nosuch"):
        retention(nn.Linear(8, 8), "2:4", choice=Choice(include=("nosuch",)))
    with pytest.raises(SelectionError, match="layouts"):
        retention(nn.Linear(8, 8), "2:4", choice=Choice(layouts=("linear",)))


def test_nothing_to_analyse(tmp_path: Path) -> None:
    empty = nn.Linear(1, 8)
    empty.weight = nn.Parameter(torch.empty(8, 0))
    for model in (nn.ReLU(), nn.Sequential(empty)):
        found = retention(model, ["2:4T"])
        assert found.layers == ()
        assert found.total("2:4T").relative is None
    path = tmp_path / "m.safetensors"
    save_file({"lm_head.weight": torch.zeros(8, 8)}, path)
    assert retention(path, ["2:4T"]).excluded[0].reason == "head or pooler"


def test_bad_arguments() -> None:
    model = nn.Linear(8, 8)
    with pytest.raises(PatternError, match="no pattern"):
        retention(model, [])
    with pytest.raises(PatternError, match="measured are 2:4"):
        retention(model, ["2:4"]).total("4:8")
    for sample in (0, -1, 2.5, True):
        with pytest.raises(ScoresError, match="sample="):
            retention(model, ["2:4"], sample=sample)  # type: ignore[arg-type]
