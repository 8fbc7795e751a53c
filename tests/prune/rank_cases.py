"""What is tested with two processes that prune one model; every case runs on both, and asserts."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn

from prune import killed, routed
from transposable.errors import CalibrationError, CheckpointError, MethodError
from transposable.prune import AdaPrune, Method, PruneReport, prune_model
from transposable.prune.ranks import Ranks

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


def alone(model: nn.Module, **options: Any) -> PruneReport:
    """What one process does."""
    with mock.patch("torch.distributed.is_initialized", return_value=False):
        return prune_model(model, "2:4T", **options)


def must_be_the_same_everywhere(model: nn.Module, report: PruneReport) -> None:
    state = {name: value.tolist() for name, value in model.state_dict().items()}
    masks = {name: mask.tolist() for name, mask in report.masks.items()}
    layers = [layer.to_json() for layer in report.layers]
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, (state, masks, layers, report.notes, report.batches))
    assert all(one == said[0] for one in said)


def must_equal(model: nn.Module, tolerance: float = 1e-5, **options: Any) -> PruneReport:
    other = copy.deepcopy(model)
    report = prune_model(model, "2:4T", **options)
    must_be_the_same_everywhere(model, report)
    wanted = alone(other, **{**options, "resume": None})
    assert [layer.name for layer in report.layers] == [layer.name for layer in wanted.layers]
    assert (report.samples, report.batches) == (wanted.samples, wanted.batches)
    for mine, theirs in zip(report.layers, wanted.layers, strict=True):
        assert torch.equal(mine.mask, theirs.mask), f"masks of {mine.name} differ"
        assert mine.samples == theirs.samples
        assert mine.note == theirs.note
        torch.testing.assert_close(mine.error, theirs.error, rtol=1e-4, atol=1e-6)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(
            model.state_dict()[name], value, rtol=tolerance, atol=tolerance, msg=name
        )
    return report


def must_be_as_it_was(model: nn.Module) -> None:
    for name, value in killed.model().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


for mode in ("sequential", "parallel"):
    for batchnorm in ("match", "estimate", "keep"):

        def one(mode: str = mode, batchnorm: str = batchnorm) -> None:
            must_equal(killed.model(), calibration=killed.data(), mode=mode, batchnorm=batchnorm)

        CASES[f"{mode} {batchnorm}"] = one

    def single(mode: str = mode) -> None:
        """The second rank has no batch."""
        for batchnorm in ("match", "estimate"):
            data = killed.data()[:1]
            must_equal(killed.model(), calibration=data, mode=mode, batchnorm=batchnorm)

    CASES[f"{mode} fewer batches than ranks"] = single

    def without_data(mode: str = mode) -> None:
        report = must_equal(killed.model(), method="magnitude", mode=mode)
        assert report.samples == 0

    CASES[f"{mode} without data"] = without_data


class Branching(nn.Module):
    """Batches of odd length take another way, so that each rank reaches other layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.even, self.odd = (nn.Linear(8, 8) for _ in range(3))
        self.never = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.first(x))
        return self.odd(x) if len(x) % 2 else self.even(x)


@case
def layers_that_one_rank_never_reaches() -> None:
    torch.manual_seed(0)
    data = [torch.randn(16 + number, 8) for number in range(4)]
    for mode in ("sequential", "parallel"):
        torch.manual_seed(0)
        report = must_equal(Branching(), calibration=data, mode=mode)
        assert [layer.name for layer in report.layers] == ["first", "even", "odd", "never"]
        assert "pruned by magnitude" in report.layers[-1].note


@case
def experts() -> None:
    """Which tokens reach one changes while layers before it are pruned, on one rank or on all."""
    torch.manual_seed(0)
    report = must_equal(routed.Network(), calibration=routed.batches(), exclude="*.router")
    assert sum(layer.note.startswith("routed") for layer in report.layers) >= 4


@case
def a_function_that_runs_the_model() -> None:
    def loop(model: nn.Module) -> None:
        for batch in killed.data():
            model(batch)

    must_equal(killed.model(), calibration=loop)


@case
def layers_are_solved_on_different_ranks() -> None:
    class Noting(AdaPrune):
        def prune(self, problem: Any) -> Any:
            mine.append(problem.name)
            return super().prune(problem)

    for mode in ("parallel", "sequential"):
        mine: list[str] = []
        prune_model(killed.model(), "2:4T", Noting(), killed.data(), mode=mode)
        said: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(said, mine)
        assert all(said)
        names = [name for one in said for name in one]
        assert len(names) == len(set(names)) == 9  # ten layers, two of which share a weight


@case
def half_precision() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).bfloat16()
    model[0].weight.data = model[0].weight.data.to(memory_format=torch.channels_last)
    data = [torch.randn(4, 4, 5, 5).bfloat16() for _ in range(4)]
    must_equal(model, 1e-2, calibration=data, mode="parallel")
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


@case
def chains() -> None:
    report = must_equal(killed.model(), calibration=killed.data())
    assert any("replayed one by one" in note for note in report.notes)


@case
def resumed() -> None:
    """Stopped on all ranks by a failure on one of them, in turns."""
    box = [tempfile.mkdtemp() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(box, src=0)
    assert box[0] is not None
    folder = Path(box[0])
    for culprit in range(dist.get_world_size()):
        left = [2]

        def stop(share: float, name: str, left: list[int] = left, culprit: int = culprit) -> None:
            left[0] -= 1
            if left[0] == 0 and dist.get_rank() == culprit:
                raise KeyboardInterrupt

        model = killed.model()
        caught = KeyboardInterrupt if dist.get_rank() == culprit else CalibrationError
        with pytest.raises(caught):
            prune_model(model, "2:4T", calibration=killed.data(), resume=folder, progress=stop)
        must_be_as_it_was(model)
    if dist.get_rank() == 0:
        assert len(list(folder.glob("*.safetensors"))) >= 2
    dist.barrier()
    report = must_equal(killed.model(), calibration=killed.data(), resume=folder)
    assert any("resumed" in note for note in report.notes)
    with pytest.raises((CheckpointError, CalibrationError), match="differs in mode"):
        prune_model(
            killed.model(), "2:4T", calibration=killed.data(), resume=folder, mode="parallel"
        )


@case
def a_failure_of_the_model_on_one_rank() -> None:
    data = killed.data()
    data[1] = torch.randn(3, 7)  # the second rank's
    model = killed.model()
    with pytest.raises(CalibrationError, match="failed on batch 1") as caught:
        prune_model(model, "2:4T", calibration=data)
    assert ("rank 1 failed" in str(caught.value)) == (dist.get_rank() == 0)
    must_be_as_it_was(model)


@case
def a_failure_of_the_method_on_one_rank() -> None:
    class Failing(AdaPrune):
        def prune(self, problem: Any) -> Any:
            if dist.get_rank() == 1:
                raise ZeroDivisionError("on purpose")
            return super().prune(problem)

    for mode in ("parallel", "sequential"):
        model = killed.model()
        with pytest.raises((ZeroDivisionError, CalibrationError), match="on purpose"):
            prune_model(model, "2:4T", Failing(), killed.data(), mode=mode)
        must_be_as_it_was(model)


@case
def a_broken_model_on_one_rank() -> None:
    model = killed.model()
    if dist.get_rank() == 1:
        model[0].weight.data[0, 0] = torch.nan
    with pytest.raises(Exception, match="holds NaN or infinity"):
        prune_model(model, "2:4T", calibration=killed.data())


@case
def ranks_that_are_given_different_things() -> None:
    rank = dist.get_rank()
    data = killed.data()
    with pytest.raises(CalibrationError, match="differs from rank 0 in weights;"):
        prune_model(killed.model(rank), "2:4T", calibration=data)
    with pytest.raises(CalibrationError, match="differs from rank 0 in calibration;"):
        prune_model(killed.model(), "2:4T", calibration=killed.data(rank))
    method = AdaPrune(ridge=rank / 8)
    with pytest.raises(CalibrationError, match="differs from rank 0 in pattern, method;"):
        prune_model(killed.model(), ("2:4T", "2:4")[rank], method, data)


@case
def methods_that_need_samples() -> None:
    class Looking(AdaPrune):
        needs_samples = True

    method: Method = Looking()
    with pytest.raises(MethodError, match="looks at single samples"):
        prune_model(killed.model(), "2:4T", method, killed.data())


@case
def tensors_are_shared_to_the_bit() -> None:
    ranks = Ranks()
    for dtype in (torch.bool, torch.bfloat16, torch.float16, torch.float64, torch.int64):
        torch.manual_seed(ranks.rank)
        mine = torch.randn(3, 5).mul(4).to(dtype).t()
        torch.manual_seed(1)
        wanted = torch.randn(3, 5).mul(4).to(dtype).t()
        assert torch.equal(ranks.share_tensor(1, mine), wanted)
    empty, scalar = torch.empty(0, 4), torch.tensor(2.0)
    assert ranks.share_tensor(0, empty).shape == (0, 4)
    assert ranks.share_tensor(0, scalar) == 2
