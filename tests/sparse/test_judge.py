"""What timings speak for: a direction, and the layer as a whole."""

from __future__ import annotations

import pytest

from transposable.sparse import Choice
from transposable.sparse.measure import Timing
from transposable.sparse.planner import OPERATOR, _whole, judge

WIN, LOSS = Timing(2.0, 1.0, 2.0, 1.9), Timing(1.0, 2.0, 0.5, 0.4)
FREE = Timing(0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("ratio", "low", "sparse"),
    [
        (1.05, 1.04, False),
        (1.051, 1.04, True),
        (1.051, 1.0, False),
        (9.0, 0.99, False),
        (9.0, 1.01, True),
        (0.5, 0.4, False),
    ],
)
def test_only_a_clear_gain_is_one(ratio: float, low: float, sparse: bool) -> None:
    timing = Timing(ratio, 1.0, ratio, low)
    verdicts = judge(
        {"forward": timing, "input_gradient": LOSS, "weight_gradient": LOSS}, training=False
    )
    assert verdicts.forward.sparse == sparse
    assert verdicts.forward.ratio == ratio
    assert f"{ratio:.2f} x" in verdicts.forward.reason
    assert not verdicts.input_gradient.sparse
    assert verdicts.choice == Choice(sparse, False, False)


def test_packing_counts_in_training() -> None:
    timings = {
        "forward": Timing(2.0, 1.0, 2.0, 2.0),
        "input_gradient": Timing(2.0, 1.0, 2.0, 2.0),
        "weight_gradient": Timing(2.0, 1.0, 2.0, 2.0),
        "refresh": Timing(0.0, 1.0, 0.01, 0.01),
        "refresh_transposed": Timing(0.0, 0.5, 0.01, 0.01),
    }
    verdicts = judge(timings, training=True)
    assert verdicts.forward.ratio == 1.0
    assert verdicts.input_gradient.ratio == pytest.approx(2.0 / 1.5)
    assert verdicts.weight_gradient.ratio == 2.0
    assert verdicts.choice == Choice(False, True, True)
    assert judge(timings, training=False).choice == Choice(True, True, True)


def test_masking_counts_once() -> None:
    """Dense masks the weight once for both passes, so one of them alone saves none of it."""
    even = Timing(1.0, 1.0, 1.0, 1.0)
    refresh = Timing(0.5, 0.0, 9.0, 9.0)
    common = {"forward": even, "refresh": refresh, "refresh_transposed": FREE}
    alone = judge({**common, "input_gradient": LOSS, "weight_gradient": LOSS}, training=True)
    both = judge({**common, "input_gradient": WIN, "weight_gradient": even}, training=True)
    assert not alone.forward.sparse
    assert both.forward.ratio == both.weight_gradient.ratio == 1.5
    only = judge({**common, "input_gradient": LOSS, "weight_gradient": even}, training=True)
    assert only.choice == Choice(False, False, False)


@pytest.mark.parametrize(("gain", "sparse"), [(1.1, False), (1.2, True)])
def test_the_layer_as_a_whole_must_win(gain: float, sparse: bool) -> None:
    """A small gain in one direction does not pay for leaving the dense layer."""
    even = Timing(1.0, 1.0, 1.0, 1.0)
    timings = {
        "forward": even,
        "input_gradient": even,
        "weight_gradient": Timing(gain, 1.0, gain, gain),
        "refresh": FREE,
        "refresh_transposed": FREE,
    }
    verdicts = judge(timings, training=True)
    assert verdicts.choice == Choice(False, False, sparse)
    assert verdicts.weight_gradient.ratio == gain
    assert ("whole layer" in verdicts.weight_gradient.reason) != sparse
    assert "less than 1.05" in verdicts.forward.reason
    assert judge(timings, training=False).weight_gradient.sparse, "each stands for itself"


def test_what_the_whole_layer_takes() -> None:
    """Dense: three products, the weight and its gradient masked. Mixed: what runs, and packing."""
    timings = {
        "forward": Timing(10.0, 5.0, 2.0, 2.0),
        "input_gradient": Timing(7.0, 9.0, 0.8, 0.8),
        "weight_gradient": Timing(8.0, 4.0, 2.0, 2.0),
        "refresh": Timing(1.0, 2.0, 0.5, 0.5),
        "refresh_transposed": Timing(1.0, 3.0, 0.3, 0.3),
    }
    verdicts = judge(timings, training=True)
    assert verdicts.choice == Choice(True, False, True)
    dense, mixed = (10 + 7 + 1) + (8 + 1), (5 + 2) + (7 + 1 + OPERATOR) + 4
    assert _whole(verdicts, timings) == pytest.approx(dense / mixed)
    del timings["input_gradient"], timings["refresh_transposed"]  # as with a stride
    strided = judge(timings, training=True)
    assert _whole(strided, timings) == pytest.approx((10 + 1 + 8 + 1) / (5 + 2 + 4))


@pytest.mark.parametrize(("unit", "sparse"), [(1e-3, False), (1e-2, True)])
def test_a_short_step_does_not_pay_for_operators(unit: float, sparse: bool) -> None:
    even, better = Timing(unit, unit, 1.0, 1.0), Timing(1.3 * unit, unit, 1.3, 1.3)
    timings = {
        "forward": even,
        "input_gradient": even,
        "weight_gradient": better,
        "refresh": FREE,
        "refresh_transposed": FREE,
    }
    assert judge(timings, training=True).choice == Choice(False, False, sparse)
