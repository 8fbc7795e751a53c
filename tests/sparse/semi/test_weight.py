"""SemiWeight: packed once for each step, anew when it must be; bad masks; the operators over it."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch.nn import functional as F

from tests.sparse.cases import generator, pattern_mask
from tests.sparse.semi.fake_gpu import Calls, gpu
from transposable import Pattern
from transposable.errors import MaskError
from transposable.sparse import Choice, SemiWeight, nm_linear
from transposable.sparse.handles import find_packed
from transposable.sparse.semi import CUSPARSELT, REFERENCE, Algorithm, Tuner, probe
from transposable.sparse.semi import weight as weights

__all__ = ["gpu"]
PATTERN = Pattern.parse("2:4T")
FORMATS = ["reference", "cusparselt", "cutlass"]


@pytest.fixture(autouse=True)
def one_tuner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuner of each test's own; it trusts what it is given, which other tests look at."""
    tuner = Tuner(None)
    monkeypatch.setattr(tuner, "why_unsound", lambda case: None)
    monkeypatch.setattr(weights, "tuner_of", lambda device: tuner)


def tensors(
    dtype: torch.dtype = torch.bfloat16, tokens: int = 24
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight, mask, bias of a layer 64 x 128."""
    x = torch.randn(tokens, 128, generator=generator(0)).to(dtype)
    weight = torch.randn(64, 128, generator=generator(1)).to(dtype)
    bias = torch.randn(64, generator=generator(2)).to(dtype)
    return x, weight, pattern_mask("2:4T", 64, 128), bias


def grads(
    packed: SemiWeight, through: bool = False, shape: tuple[int, ...] = (24,)
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(found, wanted) of y and all gradients, wanted in float64."""
    x, weight, mask, bias = tensors(tokens=torch.Size(shape).numel())
    x = x.reshape(*shape, 128)
    given = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = nm_linear(given[0], given[1], mask, given[2], packed.tag, through)
    weigh = torch.randn(y.shape, generator=generator(3)).bfloat16()
    (y * weigh).sum().backward()
    exact = [t.detach().double().requires_grad_() for t in given]
    kept = torch.where(mask, exact[1], 0.0)
    if through:
        kept = exact[1] + (kept - exact[1]).detach()
    wanted = F.linear(exact[0], kept, exact[2])
    (wanted * weigh.double()).sum().backward()
    pairs = [(y.detach(), wanted.detach())]
    for one, other in zip(given, exact, strict=True):
        assert one.grad is not None
        assert one.grad.dtype == one.dtype
        pairs.append((one.grad, other.grad))
    return pairs


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("shape", [(24,), (2, 3, 5), (1,)])
def test_gradients(gpu: Calls, format: str, through: bool, shape: tuple[int, ...]) -> None:
    packed = SemiWeight(PATTERN, format=format)
    for found, wanted in grads(packed, through, shape):
        error = (found.double() - wanted).norm() / wanted.norm()
        assert error < 0.01
    assert packed.packings == 2  # W and its transpose


@pytest.mark.parametrize(
    "choice", [Choice(f, g, False) for f in (False, True) for g in (False, True)]
)
def test_what_is_chosen_runs(gpu: Calls, choice: Choice) -> None:
    packed = SemiWeight(PATTERN, format="cusparselt", decide=lambda tokens, dtype: choice)
    gpu.log.clear()
    for found, wanted in grads(packed):
        assert (found.double() - wanted).norm() < 0.01 * wanted.norm()
    assert packed.packings == choice.forward + choice.input_gradient
    rows = {given["compressed_A"].shape[0] for name, given in gpu.log if name == "mm"}
    assert rows == set([64] * choice.forward + [128] * choice.input_gradient)


def test_packed_once_for_each_step(gpu: Calls) -> None:
    """Micro-batches share it; every optimizer counts, fused ones too, which count no version."""
    x, weight, mask, bias = tensors()
    weight.requires_grad_()
    packed = SemiWeight(PATTERN, format="cusparselt")

    def micro_batch() -> torch.Tensor:
        given = x.clone().requires_grad_()
        y = nm_linear(given, weight, mask, bias, packed.tag)
        y.float().square().mean().backward()
        return y.detach()

    for options in ({"fused": True}, {"foreach": True}, {"fused": False, "foreach": False}):
        optimizer = torch.optim.AdamW([weight], 0.1, **options)
        for _ in range(2):
            before = packed.packings
            found = [micro_batch() for _ in range(3)]
            assert packed.packings - before == 2
            wanted = F.linear(
                x.float(), torch.where(mask, weight.detach().float(), 0), bias.float()
            )
            for y in found:
                assert (y.float() - wanted).norm() < 0.01 * wanted.norm()
            optimizer.step()
            optimizer.zero_grad()


def test_what_is_packed_anew(gpu: Calls) -> None:
    x, weight, mask, _ = tensors()
    packed = SemiWeight(PATTERN, format="cusparselt")

    def run(given: torch.Tensor = x, of: torch.Tensor = weight) -> int:
        before = packed.packings
        y = packed.product(given, of, mask)
        assert y is not None
        wanted = F.linear(given.float(), torch.where(mask, of.detach().float(), 0))
        assert (y.float() - wanted).norm() < 0.01 * wanted.norm()
        return packed.packings - before

    assert (run(), run()) == (1, 0)
    weight.mul_(2)
    assert (run(), run()) == (1, 0)
    assert (run(x.half()), run(x.half()), run()) == (1, 0, 1)  # one dtype is kept
    other = weight.clone()
    assert (run(of=other), run(of=other), run()) == (1, 0, 1)
    mask.copy_(pattern_mask("2:4T", 64, 128, seed=5))
    assert (run(), run()) == (1, 0)
    weight.data.mul_(2)
    packed.forget()
    assert run() == 1
    with torch.inference_mode():
        copied = weight.clone()  # it has no version
        assert (run(of=copied), run(of=copied), run(of=copied)) == (1, 1, 1)
    assert packed.nbytes == 64 * 128 * 9 // 8


def test_where_fsdp_gathers_weights_nothing_is_kept(
    gpu: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, mask, _ = tensors()
    packed = SemiWeight(PATTERN, format="cusparselt")
    monkeypatch.setattr(weights, "fsdp_at_work", lambda: True)
    packed.product(x, weight, mask)
    weight.data.mul_(2)  # as a gathered weight is written: without a version
    y = packed.product(x, weight, mask)
    wanted = F.linear(x.float(), torch.where(mask, weight.float(), 0))
    assert y is not None
    assert (y.float() - wanted).norm() < 0.01 * wanted.norm()


def test_a_captured_graph_packs_at_every_replay(
    gpu: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing from outside is used in a capture, nor outside what was captured."""
    x, weight, mask, _ = tensors()
    packed = SemiWeight(PATTERN, format="cusparselt")
    packed.product(x, weight, mask)  # warm-up: tuned, packed
    monkeypatch.setattr(probe, "is_capturing", lambda tensor: True)
    outside = packed.nbytes
    assert packed.product(x, weight, mask) is not None
    assert packed.product(x, weight, mask) is not None
    assert packed.packings == 3
    assert packed.nbytes == outside
    monkeypatch.setattr(probe, "is_capturing", lambda tensor: False)
    weight.data.mul_(3)  # a replay
    y = packed.product(x, weight, mask)
    wanted = F.linear(x.float(), torch.where(mask, weight.float(), 0))
    assert y is not None
    assert (y.float() - wanted).norm() < 0.01 * wanted.norm()


def test_what_is_not_tuned_is_dense_in_a_capture(
    gpu: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, mask, _ = tensors()
    packed = SemiWeight(PATTERN, format="cusparselt")
    monkeypatch.setattr(probe, "is_capturing", lambda tensor: True)
    assert packed.product(x, weight, mask) is None
    assert gpu.log == []


def test_a_mask_that_does_not_fit_is_dense(gpu: Calls) -> None:
    x, weight, mask, _ = tensors()
    mask[3, :3] = True
    for format in FORMATS:
        packed = SemiWeight(PATTERN, format=format)
        assert packed.product(x, weight, mask) is None
        y = nm_linear(x, weight, mask, None, packed.tag)
        assert torch.equal(y, F.linear(x, torch.where(mask, weight, 0)))
    good = pattern_mask("2:4T", 64, 128)
    columns = good.clone()
    columns[:4, 0] = True  # fits along rows only where nothing else is kept
    columns[:4, 1:4] = False
    packed = SemiWeight(PATTERN, format="cusparselt")
    assert packed.product(x, weight, columns) is None
    mask.copy_(good)
    assert packed.product(x, weight, mask) is not None


def test_a_later_mask_that_does_not_fit_is_nan_and_then_an_error(
    gpu: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where nothing waits for the mask to be looked at."""
    told: list[torch.Tensor] = []

    class Doubt:
        def __init__(self, good: torch.Tensor) -> None:
            told.append(good)

        def refuted(self) -> bool:
            return not bool(told[-1])

    monkeypatch.setattr(weights, "_Doubt", Doubt)
    monkeypatch.setattr(weights, "_on_gpu", lambda mask: True)
    x, weight, mask, _ = tensors()
    packed = SemiWeight(PATTERN, format="reference")
    assert packed.product(x, weight, mask) is not None
    assert told == []
    mask.copy_(pattern_mask("2:4T", 64, 128, seed=7))
    y = packed.product(x, weight, mask)
    assert y is not None
    assert y.isfinite().all()
    mask[8, :4] = True
    y = packed.product(x, weight, mask)
    assert y is not None
    assert y.isnan().any()
    with pytest.raises(MaskError, match="more than two of four"):
        packed.product(x, weight, mask)
    assert packed.product(x, weight, mask) is None  # looked at first: dense


def test_what_cannot_be_packed_is_dense(gpu: Calls) -> None:
    x, weight, mask, _ = tensors()
    packed = SemiWeight(PATTERN, format="cusparselt")
    assert packed.product(x.float(), weight, mask) is None
    assert packed.product(x[:0], weight, mask) is None
    assert packed.product(x[:, :120], weight[:, :120], mask[:, :120]) is None
    rows = SemiWeight(Pattern.parse("2:4"), format="cusparselt")
    assert rows.product(x, weight, mask) is not None
    assert rows.product(x[:, :64], weight, mask, transposed=True) is None
    assert SemiWeight(PATTERN).product(x, weight, mask) is not None
    assert gpu.count("compress") > 0


def test_a_library_without_a_right_algorithm_is_dense(gpu: Calls) -> None:
    gpu.broken = dict.fromkeys(range(4), lambda y: y * 1.1)
    x, weight, mask, bias = tensors()
    packed = SemiWeight(PATTERN, format="cusparselt")
    y = nm_linear(x, weight, mask, bias, packed.tag)
    assert torch.equal(y, F.linear(x, torch.where(mask, weight, 0), bias))


def test_copies_stand_alone(gpu: Calls) -> None:
    packed = SemiWeight(PATTERN, format="reference", weight_gradient="mvue")
    x, weight, mask, _ = tensors()
    packed.product(x, weight, mask)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert (other.packings, other.format) == (0, "reference")
        assert other.weight_gradient_kind == "mvue"
        assert find_packed(other.handle) is other
    handle = packed.handle
    del packed
    gc.collect()
    assert find_packed(handle) is None


# ---- the estimated weight gradient ---------------------------------------------------------------


@pytest.mark.parametrize("format", ["cusparselt", "reference"])
@pytest.mark.parametrize("through", [False, True])
def test_the_estimated_gradient_is_unbiased(gpu: Calls, format: str, through: bool) -> None:
    x, _, mask, _ = tensors(tokens=22)
    dy = torch.randn(22, 64, generator=generator(5)).bfloat16()
    packed = SemiWeight(PATTERN, format=format, weight_gradient="mvue")
    seen = None if through else mask
    exact = dy.double().t() @ x.double()
    wanted = exact if through else torch.where(mask, exact, 0)
    torch.manual_seed(0)
    draws = torch.stack([packed.weight_gradient(x, dy, seen) for _ in range(400)]).double()
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - wanted).abs()
    spread = draws.std(0) / 20
    assert (error <= 6 * spread + 0.05).all()
    assert (draws[:, wanted == 0] == 0).all()


def test_the_estimate_runs_in_the_backward_pass(gpu: Calls) -> None:
    x, weight, mask, _ = tensors()
    for through in (False, True):
        packed = SemiWeight(PATTERN, format="cusparselt", weight_gradient="mvue")
        given = weight.clone().requires_grad_()
        y = nm_linear(x, given, mask, None, packed.tag, through, estimate=True)
        gpu.log.clear()
        y.float().sum().backward()
        assert gpu.log[-1][1]["transpose_result"] is False
        assert given.grad is not None
        assert through or not given.grad[~mask].any()
    assert SemiWeight(PATTERN, format="reference").weight_gradient(x, x[:, :64], mask) is None


# ---- torch's own checks --------------------------------------------------------------------------


@pytest.mark.parametrize("through", [False, True])
@pytest.mark.parametrize("kind", ["dense", "mvue"])
def test_opcheck(through: bool, kind: str) -> None:
    x, weight, mask, bias = tensors()
    packed = SemiWeight(PATTERN, format="reference", weight_gradient=kind)  # type: ignore[arg-type]
    given = [t.clone().requires_grad_() for t in (x, weight, bias)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    if kind == "dense":  # the estimate is another one each time
        tests += ("test_aot_dispatch_dynamic",)
    torch.library.opcheck(
        torch.ops.transposable.nm_linear,
        (given[0], given[1], mask, given[2], packed.tag, through, kind == "mvue"),
        test_utils=tests,
    )
    ops = torch.ops.transposable
    dy = torch.randn(24, 64).bfloat16()
    torch.library.opcheck(ops.nm_input_gradient, (dy, weight, mask, packed.tag))
    utils = ("test_schema", "test_faketensor")
    seen = None if through else mask
    torch.library.opcheck(ops.nm_weight_gradient, (x, dy, seen, packed.tag), test_utils=utils)


def test_formats_by_name() -> None:
    assert SemiWeight(format="reference").format_on(torch.device("cpu")) is REFERENCE
    assert "NVIDIA" in str(SemiWeight().format_on(torch.device("cpu")))
    assert Algorithm() == Algorithm(0, 1, -1, True)
    assert CUSPARSELT.name == "cusparselt"
