"""Which convolutions run sparse: with measurements that the tests make up."""

from __future__ import annotations

import pickle
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.counted_calls import counted_calls
from transposable.errors import PlanError, SparseFormatError
from transposable.nn import DENSE_MASKED, SparseConv2d
from transposable.pattern import Pattern
from transposable.sparse import Choice, PlannedConv, ask, ask_conv, decide_for, plan
from transposable.sparse.cache import PlanCache
from transposable.sparse.images import Window
from transposable.sparse.measure import MAX_WORK, Part, Timing
from transposable.sparse.measure_conv import MOST_PIXELS, ConvQuestion
from transposable.sparse.planner import AnyQuestion, Planner, fixed_rule, measure_any

WIN, LOSS = Timing(2.0, 1.0, 2.0, 1.9), Timing(1.0, 2.0, 0.5, 0.4)
FREE = Timing(0.0, 0.0, 1.0, 1.0)
POINT = Window((1, 1), (1, 1), (0, 0), (1, 1))
SQUARE = Window((3, 3), (1, 1), (1, 1), (1, 1))
STRIDED = Window((3, 3), (2, 2), (1, 1), (1, 1))


def question(window: Window = SQUARE, **changes: Any) -> ConvQuestion:
    whole: dict[str, Any] = {
        "out": 256,
        "into": 256,
        "pattern": Pattern.parse("4:8T"),
        "batch": 8,
        "height": 14,
        "width": 14,
        "channels_last": False,
        "dtype": torch.float32,
        "threads": 1,
    }
    return ConvQuestion(window=window, **{**whole, **changes})


class Measurer:
    """Answers with what it was told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.timings = {"refresh": FREE, "refresh_transposed": FREE}
        self.asked: list[tuple[AnyQuestion, tuple[Part, ...]]] = []

    def __call__(self, asked: AnyQuestion, parts: Collection[Part]) -> dict[Part, Timing]:
        self.asked.append((asked, tuple(parts)))
        return {part: self.timings.get(part, WIN) for part in parts}


@pytest.fixture
def measured() -> Iterator[None]:
    """Decisions by measurement, although the suite is deterministic."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def measurer() -> Measurer:
    return Measurer()


@pytest.fixture
def planner(
    tmp_path: Path, measured: None, measurer: Measurer, monkeypatch: pytest.MonkeyPatch
) -> Planner:
    """What plan() and the layers ask."""
    made = Planner(PlanCache(tmp_path), measurer)
    monkeypatch.setattr(ask, "planner", lambda: made)
    monkeypatch.setattr(ask_conv, "planner", lambda: made)
    return made


def test_the_table(planner: Planner, measurer: Measurer) -> None:
    measurer.timings["weight_gradient"] = LOSS
    layer = SparseConv2d(64, 128, 3, padding=1, pattern="4:8T")
    assert str(plan(layer, batch=8, image=(28, 20), threads=2)).splitlines() == [
        "128 x 64 x 3 x 3 (out x in x kernel), 4:8T, 8 images of 28 x 20, float32, cpu, 2 threads",
        "direction        back end      ratio  reason",
        "forward          nm_cpu         2.00  measured 2.00 x the speed of dense",
        "input_gradient   nm_cpu         2.00  measured 2.00 x the speed of dense",
        "weight_gradient  dense_masked   0.50  measured 0.50 x the speed of dense, less than 1.05",
    ]
    asked, parts = measurer.asked[0]
    assert isinstance(asked, ConvQuestion)
    assert (asked.sides, asked.window) == ((128, 64), SQUARE)
    assert (asked.batch, asked.height, asked.width) == (4, 28, 20)  # no more pixels than needed
    assert set(parts) == {
        "forward",
        "input_gradient",
        "weight_gradient",
        "refresh",
        "refresh_transposed",
    }


def test_layers_and_shapes_ask_the_same(planner: Planner, measurer: Measurer) -> None:
    layer = SparseConv2d(64, 128, 3, stride=2, padding=1, pattern="4:8T")
    one = plan(layer, batch=2, image=(28, 20))
    other = plan((128, 64, 3, 3), "4:8T", batch=2, image=(28, 20), stride=2, padding=1)
    assert one == other
    assert len(measurer.asked) == 1
    last = layer.to(memory_format=torch.channels_last)
    assert plan(last, batch=2, image=(28, 20)) == plan(
        layer, batch=2, image=(28, 20), channels_last=True
    )
    assert len(measurer.asked) == 2
    assert plan(nn.Conv2d(64, 128, 3), "2:4T", batch=2, image=(28, 20)).tokens == 2 * 26 * 18


def test_the_input_gradient_of_a_stride_is_not_measured(
    planner: Planner, measurer: Measurer
) -> None:
    answer = plan((128, 64, 3, 3), "4:8T", batch=2, image=(28, 20), stride=2)
    assert (
        answer.input_gradient.reason == "the input gradient of a convolution with a stride is dense"
    )
    assert answer.forward.sparse
    assert not {"input_gradient", "refresh_transposed"} & set(measurer.asked[0][1])


def test_questions_have_names_of_their_own() -> None:
    one = question()
    others = [
        question(POINT),
        question(STRIDED),
        question(Window((3, 3), (1, 1), (0, 0), (1, 1))),
        question(Window((3, 3), (1, 1), (1, 1), (1, 2))),
        question(out=128),
        question(into=128),
        question(pattern=Pattern.parse("2:4T")),
        question(batch=4),
        question(height=15),
        question(width=15),
        question(channels_last=True),
        question(dtype=torch.bfloat16),
        question(threads=2),
    ]
    assert len({each.key("forward") for each in (one, *others)}) == 1 + len(others)


@pytest.mark.parametrize("batch", [0, 1, 3, 7, 64, 1000])
@pytest.mark.parametrize("side", [7, 14, 56, 224])
def test_a_batch_is_rounded_down(batch: int, side: int) -> None:
    asked = question(batch=batch, height=side, width=side)
    rounded = asked.rounded()
    assert 1 <= rounded.batch <= max(batch, 1)
    assert rounded.batch & (rounded.batch - 1) == 0
    assert rounded.batch == 1 or rounded.tokens <= MOST_PIXELS
    enough = batch < 2 * rounded.batch or 2 * rounded.tokens > MOST_PIXELS
    assert enough or batch == 0


@pytest.mark.parametrize("window", [POINT, SQUARE, STRIDED])
@pytest.mark.parametrize("sides", [(64, 64), (512, 512), (2048, 4096)])
@pytest.mark.parametrize("size", [1, 7, 56, 500])
def test_what_is_measured_is_bounded(window: Window, sides: tuple[int, int], size: int) -> None:
    asked = question(window, out=sides[0], into=sides[1], height=size, width=size).rounded()
    sliced = asked.sliced()
    assert sliced.tokens > 0
    one_row = sliced.weights * sliced.tokens // sliced.window.output(sliced.height, size)[0]
    assert sliced.weights * sliced.tokens <= MAX_WORK + 4 * one_row


@pytest.mark.parametrize("window", [POINT, SQUARE, STRIDED])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_measuring(
    measured: None, monkeypatch: pytest.MonkeyPatch, window: Window, channels_last: bool, dtype: Any
) -> None:
    """Every part is timed, sparse against dense, on what was asked for; nothing else changes."""
    from transposable.sparse import measure_conv

    calls: list[str] = []
    compared: list[torch.Tensor] = []

    def compare(dense: Any, sparse: Any, **options: Any) -> Timing:
        before = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
        assert before == (False, False)
        with counted_calls() as counted:
            dense()
            assert not counted
            wanted = dense()
            found = sparse()
            calls.append(max(counted, default="none"))
        if found is not None:  # refreshes return nothing; torch's gradients are three, two of None
            wanted = (
                wanted
                if isinstance(wanted, torch.Tensor)
                else next(filter(torch.is_tensor, wanted))
            )
            assert wanted.shape == found.shape
            compared.append(found)
        return WIN

    monkeypatch.setattr(measure_conv, "compare", compare)
    asked = question(
        window, out=20, into=24, batch=2, height=9, channels_last=channels_last, dtype=dtype
    )
    parts: tuple[Part, ...] = ("forward", "weight_gradient", "refresh")
    if window is not STRIDED:
        parts += ("input_gradient", "refresh_transposed")
    with torch.autocast("cpu", enabled=True):
        found = measure_any(asked, parts)
    assert set(found) == set(parts)
    assert "none" not in calls
    assert len(compared) == len(parts) - sum(part.startswith("refresh") for part in parts)


@pytest.mark.parametrize(
    ("changes", "sparse"),
    [
        ({}, (True, True, False)),
        ({"window": POINT}, (True, True, True)),
        ({"pattern": Pattern.parse("2:8T")}, (True, True, True)),
        ({"window": STRIDED, "height": 28, "width": 28}, (True, False, False)),
        ({"pattern": Pattern.parse("2:4")}, (True, False, False)),
        ({"out": 128}, (False, False, False)),
        ({"into": 128}, (False, False, False)),
        ({"batch": 1}, (False, False, False)),
        ({"dtype": torch.bfloat16}, (False, False, False)),
        ({"pattern": Pattern.parse("50%")}, (False, False, False)),
    ],
)
def test_the_fixed_rule(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], sparse: tuple[bool, ...]
) -> None:
    from transposable.sparse import planner as module

    monkeypatch.setattr(module._core, "isa", lambda: "avx512")
    choice = fixed_rule(question(**changes)).choice
    assert (choice.forward, choice.input_gradient, choice.weight_gradient) == sparse


WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "tokens": (((64, 64, 3, 3), "2:4T"), {"tokens": 3}, r"tokens=3 for a convolution"),
    "no image": (((64, 64, 3, 3), "2:4T"), {"image": None}, r"image=None"),
    "no batch": (((64, 64, 3, 3), "2:4T"), {"batch": None}, r"batch=None"),
    "half a batch": (((64, 64, 3, 3), "2:4T"), {"batch": 0.5}, r"batch=0.5"),
    "one side": (((64, 64, 3, 3), "2:4T"), {"image": (3,)}, r"image=\(3,\)"),
    "a text": (((64, 64, 3, 3), "2:4T"), {"image": 3}, r"image=3"),
    "negative": (((64, 64, 3, 3), "2:4T"), {"image": (3, -1)}, r"image=-1"),
    "its own stride": ((nn.Conv2d(64, 64, 3), "2:4T"), {"stride": 2}, r"stride=2 with a layer"),
    "linear": (((64, 64), "2:4T"), {}, r"tokens=None"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_questions(case: str) -> None:
    given, options, message = WRONG[case]
    with pytest.raises(PlanError, match=message):
        plan(*given, **{"batch": 2, "image": (28, 28), **options})


def test_numbers_that_are_none() -> None:
    with pytest.raises(SparseFormatError, match="stride=0"):
        plan((64, 64, 3, 3), "2:4T", batch=2, image=(28, 28), stride=0)


def test_a_layer_follows_the_plan(planner: Planner, measurer: Measurer) -> None:
    torch.manual_seed(0)
    layer, x = SparseConv2d(64, 64, 3, padding=1, pattern="2:4T"), torch.randn(4, 64, 7, 9)
    small = SparseConv2d(16, 16, 3, pattern="2:4T")
    groups = SparseConv2d(256, 256, 3, groups=2, pattern="2:4T")
    assert small.backend is groups.backend is DENSE_MASKED
    measurer.timings["weight_gradient"] = LOSS
    with counted_calls() as calls:
        for batch in (4, 4, 4, 1):
            layer(x[:batch].clone().requires_grad_()).sum().backward()
        assert calls["conv2d"] == 8
        assert calls["conv2d_weight_gradient"] == 0
    assert [asked.batch for asked, _ in measurer.asked] == [4, 1]
    layer(x.contiguous(memory_format=torch.channels_last))
    assert measurer.asked[2][0].channels_last
    measurer.timings |= {"forward": LOSS, "input_gradient": LOSS}
    twin = pickle.loads(pickle.dumps(layer))
    with counted_calls() as calls:
        y = twin(x[:, :, :6])
        assert torch.equal(y, twin.dense_forward(x[:, :, :6], twin.effective_weight()))
        assert not calls


def test_nothing_is_measured_in_a_backward_pass(planner: Planner, measurer: Measurer) -> None:
    decide = decide_for(SparseConv2d(64, 64, 3, pattern="2:4T"))
    assert isinstance(decide, PlannedConv)
    answers = []

    class Asks(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *dy: Any) -> Any:
            answers.append(decide.of_images(4, 9, 9, False, torch.float32))
            return dy[0]

    Asks.apply(torch.ones(1, requires_grad=True)).sum().backward()
    assert answers == [Choice(False, False, False)]
    assert measurer.asked == []
    assert decide.of_images(4, 9, 9, False, torch.float32) == Choice()
    assert decide.of_images(4, 9, 9, False, torch.float64) == Choice(False, False, False)
    assert decide(4 * 81, torch.float32) == Choice(False, False, False)
