"""plan(device="cuda"): which back end, by how much, and why not; with GPUs that are made up."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from transposable.nn import SparseConv2d, SparseLinear
from transposable.pattern import Pattern
from transposable.sparse import Choice, PlannedSemi, ask, ask_semi, plan
from transposable.sparse.cache import PlanCache
from transposable.sparse.measure import Part, Timing
from transposable.sparse.planner import Planner, Verdicts, judge
from transposable.sparse.semi import probe
from transposable.sparse.semi.measure import SemiQuestion, measure_semi

GPU = torch.device("cuda", 0)
WIN, LOSS = Timing(2.0, 1.0, 2.0, 1.9), Timing(1.0, 2.0, 0.5, 0.4)
FREE = Timing(0.0, 0.0, 1.0, 1.0)


class Machine:
    """A GPU as the probes tell of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch
        self.has(cuda=True, cusparselt=True, capability=(9, 0))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(probe, "gpu_identity", lambda device: {"gpu": "made up"})
        monkeypatch.setattr(probe, "with_index", lambda device: GPU)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)

    def has(
        self,
        cuda: bool | None = None,
        cusparselt: bool | None = None,
        capability: tuple[int, int] | None = None,
    ) -> None:
        told = {"has_cuda": cuda, "has_cusparselt": cusparselt, "capability_of": capability}
        for name, value in told.items():
            if value is not None:
                self.patch.setattr(probe, name, lambda *_, value=value: value)


class Measurer:
    """Answers with what it was told, and counts."""

    def __init__(self) -> None:
        self.timings: dict[str, Timing] = {"refresh": FREE, "refresh_transposed": FREE}
        self.asked: list[tuple[Any, tuple[Part, ...]]] = []

    def __call__(self, asked: Any, parts: Collection[Part]) -> dict[Part, Timing]:
        self.asked.append((asked, tuple(parts)))
        return {part: self.timings.get(part, WIN) for part in parts}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.fixture
def measurer(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Measurer]:
    made = Measurer()
    planner = Planner(PlanCache(tmp_path, {"gpu": "made up"}), made)
    for module in (ask, ask_semi):
        monkeypatch.setattr(module, "semi_planner", lambda device: planner)
        monkeypatch.setattr(module, "why_unsound_here", lambda question: None)
    torch.use_deterministic_algorithms(False)
    yield made
    torch.use_deterministic_algorithms(True)


def dense_reason(shape: Any = (1024, 4096), pattern: str | None = "2:4T", **how: Any) -> str:
    how = {"tokens": 8192, "device": "cuda", "dtype": torch.bfloat16, **how}
    answer = plan(shape, pattern, **how)
    assert not any(v.sparse for v in (answer.forward, answer.input_gradient))
    assert not answer.weight_gradient.sparse
    return answer.forward.reason


def test_the_table(measurer: Measurer) -> None:
    text = str(plan((1024, 4096), "2:4T", tokens=13008, device="cuda", dtype=torch.bfloat16))
    assert text.splitlines() == [
        "1024 x 4096 (out x in), 2:4T, 13008 tokens, bfloat16, cuda",
        "direction        back end      ratio  reason",
        "forward          cusparselt     2.00  measured 2.00 x the speed of dense",
        "input_gradient   cusparselt     2.00  measured 2.00 x the speed of dense",
        "weight_gradient  dense_masked      -  dense by choice: only its 2:4 estimate (mvue) would "
        "run sparse",
    ]
    ((asked, parts),) = measurer.asked
    assert asked.tokens == 12288
    assert parts == ("forward", "input_gradient", "refresh", "refresh_transposed")


def test_why_not(machine: Machine, measurer: Measurer) -> None:
    half: Any = {"dtype": torch.bfloat16, "tokens": 8192, "device": "cuda"}
    machine.has(cuda=False)
    assert dense_reason().startswith("no CUDA")
    machine.has(cuda=True, capability=(7, 5))
    assert dense_reason() == ("compute capability 7.5: sparse tensor cores begin with 8.0 (Ampere)")
    machine.has(capability=(9, 0), cusparselt=False)
    assert dense_reason().startswith("no cuSPARSELt")
    machine.has(capability=(8, 0))
    assert plan((1024, 4096), "2:4T", **half).forward.backend == "cutlass"
    assert "multiples of 64 for cutlass" in dense_reason((1024, 4112))
    machine.has(cusparselt=True)
    assert plan((1024, 4112), "2:4T", **half).forward.backend == "cusparselt"
    assert "1000 x 4100: the sides of a weight must be multiples of 16" in dense_reason(
        (1000, 4100)
    )
    for pattern in ("4:8T", "8:16T", "3:4", "50%", "2:4S"):
        assert "sparse tensor cores take two of every four" in dense_reason(pattern=pattern)
    assert "float32: sparse tensor cores take" in dense_reason(dtype=torch.float32)
    assert "float64" in dense_reason(dtype=torch.float64)
    for tokens in (0, 1, 15):
        assert dense_reason(tokens=tokens) == f"{tokens} tokens are less than 16"
    assert "less than 16,384" in dense_reason((64, 64))
    assert "torch sees 1 GPU(s)" in dense_reason(device="cuda:3")
    conv = SparseConv2d(64, 64, 1, pattern="2:4T", dtype=torch.bfloat16)
    answer = plan(conv, batch=8, image=(56, 56), device="cuda")
    assert "only linear layers" in answer.forward.reason
    layer = SparseLinear(256, 256, pattern="2:4T", dtype=torch.bfloat16)
    layer.mask = layer.mask.to("meta")
    assert "its mask is on meta" in dense_reason(layer, None)
    torch.use_deterministic_algorithms(True)
    assert dense_reason().endswith("dense on a GPU")


def test_too_slow_is_dense(measurer: Measurer) -> None:
    measurer.timings["forward"] = Timing(1.0, 0.97, 1.03, 1.01)
    measurer.timings["input_gradient"] = Timing(1.1, 1.0, 1.1, 0.99)
    answer = plan((1024, 4096), "2:4T", tokens=512, device="cuda", dtype=torch.float16)
    assert answer.forward.reason == "measured 1.03 x the speed of dense, less than 1.05"
    assert "0.99 in the lower quartile" in answer.input_gradient.reason


def test_packing_counts_in_training(measurer: Measurer) -> None:
    measurer.timings |= {
        "forward": Timing(1.5, 1.0, 1.5, 1.5),
        "refresh": Timing(0.1, 0.7, 0.14, 0.14),
        "refresh_transposed": Timing(0.1, 0.7, 0.14, 0.14),
    }
    asked: Any = {"tokens": 512, "device": "cuda", "dtype": torch.float16}
    assert not plan((1024, 4096), "2:4T", **asked).forward.sparse
    assert plan((1024, 4096), "2:4T", **asked, training=False).forward.sparse


def test_rows_only(measurer: Measurer) -> None:
    answer = plan((1024, 4096), "2:4", tokens=512, device="cuda", dtype=torch.float16)
    assert answer.forward.sparse
    assert "not transposable" in answer.input_gradient.reason


def test_a_library_that_is_not_trusted(measurer: Measurer, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (ask, ask_semi):
        monkeypatch.setattr(module, "why_unsound_here", lambda question: "it is wrong here")
    assert dense_reason() == "it is wrong here"
    decide = PlannedSemi(1024, 4096, Pattern.parse("2:4T"))
    assert decide.on(GPU, 8192, torch.bfloat16) == Choice(False, False, False)


def test_the_decision_of_a_layer(measurer: Measurer, monkeypatch: pytest.MonkeyPatch) -> None:
    decide = PlannedSemi(1024, 4096, Pattern.parse("2:4T"), bias=True)
    for _ in range(2):
        assert decide.on(GPU, 8192, torch.bfloat16) == Choice(True, True, False)
    assert len(measurer.asked) == 1
    assert measurer.asked[0][0].bias
    assert not decide.on(GPU, 8192, torch.float32).any
    assert not decide.on(torch.device("cpu"), 8192, torch.bfloat16).any
    # Nothing is measured in a capture, and what is dense for that is asked again later.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not decide.on(GPU, 4096, torch.bfloat16).any
    assert decide.on(GPU, 8192, torch.bfloat16).any
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert decide.on(GPU, 4096, torch.bfloat16).any
    for other in (copy.deepcopy(decide), pickle.loads(pickle.dumps(decide))):
        assert (other.rows, other.bias) == (1024, True)
        assert other.on(GPU, 8192, torch.bfloat16).forward


def test_an_estimated_gradient_is_planned_too(measurer: Measurer) -> None:
    decide = PlannedSemi(1024, 4096, Pattern.parse("2:4T"), weight_gradient="mvue")
    assert decide.on(GPU, 8192, torch.bfloat16) == Choice(True, True, True)
    assert "weight_gradient" in measurer.asked[0][1]


def test_judging_names_the_back_end() -> None:
    timings: dict[Part, Timing] = {"forward": WIN}
    verdicts = judge(timings, training=False, backend="cutlass")
    assert verdicts.forward.backend == "cutlass"
    assert verdicts.choice == Choice(True, False, False)
    assert Verdicts.dense("so").choice == Choice(False, False, False)


@pytest.mark.parametrize("gradient", ["dense", "mvue"])
def test_a_measurement_on_the_readable_twin(gradient: Any) -> None:
    """All parts run, on the CPU; that is what the GPU does, but for the clock."""
    question = SemiQuestion(
        64,
        128,
        Pattern.parse("2:4T"),
        32,
        torch.bfloat16,
        torch.device("cpu"),
        "reference",
        bias=True,
        weight_gradient=gradient,
    )
    parts: tuple[Part, ...] = ("forward", "input_gradient", "weight_gradient", "refresh")
    found = measure_semi(question, (*parts, "refresh_transposed"))
    assert all(t.dense > 0 and t.sparse > 0 for t in found.values())
    assert question.key("forward").endswith("32 tokens bfloat16 bias")
