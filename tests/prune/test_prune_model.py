"""prune_model: what it does to whole models, and what it leaves alone when it cannot."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from transposable import (
    CalibrationError,
    DeviceError,
    LayerError,
    MethodError,
    ScoresError,
    SelectionError,
    sparsify,
    verify,
)
from transposable.prune import (
    ALPS,
    AdaPrune,
    LayerProblem,
    Magnitude,
    Method,
    PublishedAdaPrune,
    SparseGPT,
    prune_model,
)


class Net(nn.Module):
    """Convolutions of several kinds, batch norm, linear layers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv1d(16, 16, 3, groups=2, stride=2)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16, bias=False))
        self.head = Conv1D(12, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(F.relu(self.norm(self.stem(x))).flatten(2)).mean(-1)
        return self.head(F.relu(self.mlp(x)))


LAYERS = ["stem", "conv", "mlp.0", "mlp.2", "head"]


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.norm.running_mean.normal_()
        net.norm.running_var.uniform_(0.5, 2)
    return net.eval()


@pytest.fixture
def data() -> list[torch.Tensor]:
    torch.manual_seed(1)
    mixing = torch.randn(8, 8)  # correlated channels: something to make up for
    return [torch.einsum("bchw,dc->bdhw", torch.randn(32, 8, 4, 4), mixing) for _ in range(4)]


def _same(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    after = model.state_dict()
    return before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def _loss(pruned: nn.Module, dense: nn.Module, data: list[torch.Tensor]) -> float:
    with torch.no_grad():
        return float(sum((pruned(x) - dense(x)).square().mean() for x in data))


@pytest.mark.parametrize("method", ["magnitude", "wanda", "adaprune"])
@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("pattern", ["2:4T", "4:8T", "2:4", "4:8S", "3:4T", "40%"])
def test_every_layer_satisfies_the_pattern(
    net: Net, data: list[torch.Tensor], method: str, mode: Any, pattern: str
) -> None:
    report = prune_model(net, pattern, method, data, mode=mode)
    assert [layer.name for layer in report.layers] == LAYERS
    for layer in report.layers:
        module = net.get_submodule(layer.name)
        weight = module.weight.t() if isinstance(module, Conv1D) else module.weight
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            assert verify(weight.detach(), pattern, layout="conv", groups=module.groups)
        else:
            assert verify(weight.detach(), pattern)
        assert torch.equal(layer.mask | (module.weight == 0), torch.ones_like(layer.mask))
        assert 0 < layer.kept < 1
        assert layer.kept < layer.magnitude < 1
        assert layer.error is not None
        assert layer.error_masked is not None
        assert layer.error <= layer.error_masked + 1e-12
        assert layer.violated > 0
    assert report.samples == 128
    assert report.batches == 4
    assert report.batch_norms == ("norm",)


def test_the_update_helps_and_sequential_helps_more(net: Net, data: list[torch.Tensor]) -> None:
    losses = {}
    for method in ("magnitude", "adaprune"):
        for mode in ("sequential", "parallel"):
            pruned = copy.deepcopy(net)
            prune_model(pruned, "2:4T", method, data, mode=mode, batchnorm="keep")
            losses[method, mode] = _loss(pruned, net, data)
    assert losses["magnitude", "sequential"] == losses["magnitude", "parallel"]
    assert losses["adaprune", "sequential"] < losses["adaprune", "parallel"]
    assert losses["adaprune", "parallel"] < losses["magnitude", "parallel"]


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_a_mask_that_keeps_all_changes_nothing(
    net: Net, data: list[torch.Tensor], mode: Any
) -> None:
    class KeepAll(AdaPrune):
        def prune(self, problem: LayerProblem) -> Any:
            every = torch.ones_like(problem.weight, dtype=torch.bool)
            problem.find_mask = lambda scores: every  # type: ignore[method-assign]
            return super().prune(problem)

    before = _state(net)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transposable.prune.one_layer._check", lambda layer, method: None)
        report = prune_model(net, "2:4T", KeepAll(ridge=1e-5), data, mode=mode)
    for layer in report.layers:
        assert layer.error == pytest.approx(0, abs=1e-6)
    for key, value in net.state_dict().items():
        assert torch.allclose(value, before[key], atol=1e-3), key


def test_wrong_output_targets_are_those_of_the_dense_model(
    net: Net, data: list[torch.Tensor]
) -> None:
    """The reported error of the last layer, measured by hand on the two models."""
    pruned = copy.deepcopy(net)
    report = prune_model(pruned, "2:4T", "adaprune", data, batchnorm="keep")
    with torch.no_grad():
        found = torch.cat([pruned(x) for x in data]).double()
        wanted = torch.cat([net(x) for x in data]).double()
    # Both less their means: the bias is free to move the output.
    spread = (wanted - wanted.mean(0)).square().sum()
    by_hand = (found - wanted).square().sum() / spread
    assert report.layers[-1].error == pytest.approx(float(by_hand), rel=1e-3)
    assert torch.allclose(found.mean(0), wanted.mean(0), atol=1e-4)


def test_parameters_and_modes_keep_their_identity(net: Net, data: list[torch.Tensor]) -> None:
    net.train()
    net.norm.eval()
    parameters = dict(net.named_parameters())
    memory = {name: p.data_ptr() for name, p in parameters.items()}
    prune_model(net, "2:4T", calibration=data)
    assert {name: p.data_ptr() for name, p in net.named_parameters()} == memory
    assert all(p is parameters[name] for name, p in net.named_parameters())
    assert net.training
    assert net.mlp.training
    assert not net.norm.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(net: Net, data: list[torch.Tensor], dtype: torch.dtype) -> None:
    net.to(dtype)
    report = prune_model(net, "2:4T", calibration=[x.to(dtype) for x in data])
    assert all(p.dtype == dtype for p in net.parameters())
    assert report.error is not None
    assert report.error < 0.8 * (report.error_masked or 0)


def test_channels_last_weights_keep_their_strides(net: Net, data: list[torch.Tensor]) -> None:
    net.stem = net.stem.to(memory_format=torch.channels_last)
    strides = net.stem.weight.stride()
    prune_model(net, "2:4T", calibration=data)
    assert net.stem.weight.stride() == strides


def test_sparsify_finds_the_same_masks_again(net: Net, data: list[torch.Tensor]) -> None:
    report = prune_model(net, "2:4T", calibration=data)
    sparsify(net, "2:4T")
    for name, mask in report.masks.items():
        assert torch.equal(net.get_submodule(name).mask, mask)


def test_several_patterns(net: Net, data: list[torch.Tensor]) -> None:
    report = prune_model(net, {"mlp.*": "2:4T", "head": "1:4"}, calibration=data)
    assert [(layer.name, layer.pattern) for layer in report.layers] == [
        ("mlp.0", "2:4T"),
        ("mlp.2", "2:4T"),
        ("head", "1:4"),
    ]


def test_magnitude_needs_no_data(net: Net) -> None:
    report = prune_model(net, "2:4T", "magnitude")
    assert report.error is None
    assert report.samples == 0
    assert all(layer.note == "" for layer in report.layers)
    assert report.batch_norms == ()
    assert report.to_json()["layers"][0]["shape"] == [16, 8, 3, 3]


# ---- unstructured input ----


def test_zeros_stay_zeros(net: Net, data: list[torch.Tensor]) -> None:
    prune_model(net, "30%", "adaprune", data)
    zeros = {name: net.get_submodule(name).weight == 0 for name in LAYERS}
    kept = copy.deepcopy(net)
    report = prune_model(kept, "4:8T", calibration=data)
    for name, zero in zeros.items():
        assert bool((kept.get_submodule(name).weight[zero] == 0).all())
    assert all(0 < layer.violated < 0.9 for layer in report.layers)
    filled = prune_model(net, "4:8T", calibration=data, keep_zeros=False)
    assert (filled.error or 1) < (report.error or 0)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "alps", "adaprune"])
def test_a_refitted_bias_keeps_the_mean_output(method: str) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(32, 16))
    x = torch.randn(200, 32) + 1
    means = {}
    for refit in (True, False):
        model = copy.deepcopy(dense)
        prune_model(model, "2:4T", method, x, refit_bias=refit)
        assert torch.equal(model[0].bias, dense[0].bias) is not refit
        with torch.no_grad():
            means[refit] = float((model(x) - dense(x)).mean(0).abs().max())
    assert means[True] < 1e-5 < means[False]


# ---- shared and unreached layers ----


class Shared(nn.Module):
    """One module called twice, one weight in two modules, one module that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(16, 16)
        self.a = nn.Linear(16, 16)
        self.b = nn.Linear(16, 16)
        self.b.weight = self.a.weight
        self.never = nn.Linear(16, 16)
        self.functional = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.twice(F.relu(self.twice(x))))
        x = self.b(F.relu(self.a(x)))
        return F.linear(x, self.functional.weight, self.functional.bias)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_shared_and_unreached_layers(mode: Any) -> None:
    torch.manual_seed(0)
    model = Shared()
    dense = copy.deepcopy(model)
    data = [torch.randn(64, 16) @ torch.randn(16, 16) for _ in range(3)]
    with pytest.raises(CalibrationError, match=r"never reached 'never', 'functional'"):
        prune_model(model, "2:4T", calibration=data, strict=True, mode=mode)
    assert _same(model, dense.state_dict())
    report = prune_model(model, "2:4T", calibration=data, mode=mode)
    found = {layer.name: layer for layer in report.layers}
    assert model.a.weight is model.b.weight
    assert torch.equal(found["a"].mask, found["b"].mask)
    assert found["b"].note == "shares the weight of a"
    assert found["twice"].samples == 2 * 192
    assert found["a"].samples == 2 * 192
    for name in ("never", "functional"):
        assert found[name].method == "magnitude"
        assert "never reached" in found[name].note
        assert found[name].error is None
    by_magnitude = copy.deepcopy(dense)
    prune_model(by_magnitude, "2:4T", "magnitude")
    assert torch.equal(model.never.weight, by_magnitude.never.weight)
    assert _loss(model, dense, data) < _loss(by_magnitude, dense, data)


def test_a_weight_shared_with_an_embedding() -> None:
    model = nn.Sequential(nn.Embedding(8, 16), nn.Linear(16, 8))
    model[1].weight = model[0].weight
    with pytest.raises(LayerError, match=r"layer '1' shares its weight with '0', a Embedding.*ex"):
        prune_model(model, "2:4T", "magnitude")


def test_layers_with_one_weight_and_two_patterns() -> None:
    model = Shared()
    with pytest.raises(LayerError, match="share one weight and would have it pruned in different"):
        prune_model(model, {"a": "2:4T", "b": "4:8T"}, "magnitude")


# ---- errors: all or nothing ----


class Failing(AdaPrune):
    def prune(self, problem: LayerProblem) -> Any:
        if problem.name == "mlp.2":
            raise KeyboardInterrupt
        return super().prune(problem)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_all_or_nothing(net: Net, data: list[torch.Tensor], mode: Any) -> None:
    net.train()
    before = _state(net)
    with pytest.raises(KeyboardInterrupt):
        prune_model(net, "2:4T", Failing(), data, mode=mode)
    assert _same(net, before)
    assert net.training
    with pytest.raises(KeyboardInterrupt):
        prune_model(net, "2:4T", Failing(), data, mode=mode, inplace_progress=True)
    assert verify(net.mlp[0].weight.detach(), "2:4T")
    assert torch.equal(net.mlp[2].weight, before["mlp.2.weight"])


def _break(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x[0, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda d: [d[0], _break(d[1], float("nan"))], "input of layer 'stem' holds NaN.*batch 1"),
        (lambda d: [d[0], _break(d[1], float("inf"))], "input of layer 'stem' holds NaN.*batch 1"),
        (lambda d: [d[0], d[1][:, :5]], r"failed on batch 1 \(float32 \(32, 5, 4, 4\)\), before"),
        (lambda d: [d[0], d[1][:, :, :2, :1]], "failed on batch 1.*after layer 'stem'"),
        (lambda d: [d[0].long()], "failed on batch 0"),
        (lambda d: [d[0], d[1].to("meta")], "batch 1.*cannot be moved"),
        (lambda d: [], "there was no batch"),
    ],
)
def test_bad_batches(
    net: Net, data: list[torch.Tensor], spoil: Callable[[list[torch.Tensor]], Any], message: str
) -> None:
    before = _state(net)
    with pytest.raises(CalibrationError, match=message):
        prune_model(net, "2:4T", calibration=spoil(data))
    assert _same(net, before)
    assert not any(m._forward_hooks for m in net.modules())


def test_activations_that_are_not_finite_name_their_layer(
    net: Net, data: list[torch.Tensor]
) -> None:
    with torch.no_grad():
        net.norm.weight[0] = float("inf")
    with pytest.raises(CalibrationError, match="the input of layer 'conv' holds NaN or infinity"):
        prune_model(net, "2:4T", calibration=data)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"method": "sgd"}, MethodError, r"received method 'sgd'; the methods are 'magnitude'"),
        ({"method": 3}, MethodError, "received method=3"),
        ({"scores": "best"}, MethodError, "received 'best'; the scores are"),
        ({"method": "wanda", "scores": "obs"}, MethodError, "has scores of its own"),
        ({"mode": "both"}, MethodError, "received mode='both'"),
        ({"batchnorm": "new"}, MethodError, "received batchnorm='new'"),
        ({"calibration": None}, CalibrationError, "needs calibration data and received none"),
        ({"include": "nothing"}, SelectionError, r"prune_model \(include\): 'nothing' matches"),
        ({"pattern": {"mlp.*": "2:4T", "x": "2:4T"}}, SelectionError, r"prune_model \(pattern\)"),
        ({"calibration": iter([1]), "batchnorm": "estimate"}, CalibrationError, "second time"),
    ],
)
def test_bad_arguments(
    net: Net,
    data: list[torch.Tensor],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    before = _state(net)
    with pytest.raises(error, match=message):
        prune_model(net, **({"pattern": "2:4T", "calibration": data} | arguments))
    assert _same(net, before)


def test_layers_that_cannot_be_pruned(net: Net, data: list[torch.Tensor]) -> None:
    with pytest.raises(DeviceError, match=r"layer 'stem' is on the meta device"):
        prune_model(Net().to("meta"), "2:4T", "magnitude")
    sparse = copy.deepcopy(net)
    sparsify(sparse, "2:4T", include="head")
    with pytest.raises(LayerError, match=r"layer 'head' is sparse already.*densify"):
        prune_model(sparse, "2:4T", "magnitude")
    with torch.no_grad():
        net.mlp[0].weight[3, 3] = float("nan")
    with pytest.raises(ScoresError, match=r"layer 'mlp.0' holds NaN"):
        prune_model(net, "2:4T", "magnitude")
    small = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(LayerError, match=r"layer '0' cannot have pattern 2:4T.*exclude='0'"):
        prune_model(small, "2:4T", "magnitude")


# ---- progress ----


def test_progress(net: Net, data: list[torch.Tensor]) -> None:
    told: list[tuple[float, str]] = []
    prune_model(net, "2:4T", calibration=data, progress=lambda *a: told.append(a))
    assert [name for _, name in told] == LAYERS
    assert [share for share, _ in told] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def _loader(data: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    yield from data


def test_an_iterator_is_read_once(net: Net, data: list[torch.Tensor]) -> None:
    twin = copy.deepcopy(net)
    prune_model(net, "2:4T", calibration=_loader(data))
    prune_model(twin, "2:4T", calibration=data)
    assert _same(net, twin.state_dict())


def test_a_function_and_a_list_give_the_same(net: Net, data: list[torch.Tensor]) -> None:
    twin = copy.deepcopy(net)
    prune_model(net, "2:4T", Magnitude(), lambda model: [model(x) for x in data])
    prune_model(twin, "2:4T", "magnitude", data)
    assert _same(net, twin.state_dict())


# ---- every method ----


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
@pytest.mark.parametrize("pattern", ["2:4T", "4:8", "50%"])
@pytest.mark.parametrize(
    "method", [SparseGPT(), ALPS(), PublishedAdaPrune(steps=100, rate=1e-2), AdaPrune(scores="obs")]
)
def test_every_method_improves_on_its_mask(
    net: Net, data: list[torch.Tensor], method: Method, pattern: str, mode: Any
) -> None:
    dense = copy.deepcopy(net)
    report = prune_model(net, pattern, method, data, mode=mode, batchnorm="keep")
    assert [layer.name for layer in report.layers] == LAYERS
    assert report.error is not None
    assert report.error < (report.error_masked or 0)
    by_magnitude = copy.deepcopy(dense)
    prune_model(by_magnitude, pattern, "magnitude", data, batchnorm="keep")
    assert _loss(net, dense, data) < _loss(by_magnitude, dense, data)


def test_the_error_of_a_chosen_bias(net: Net, data: list[torch.Tensor]) -> None:
    """PublishedAdaPrune learns the bias: the error reported is of the weight and this bias."""
    pruned = copy.deepcopy(net)
    method = PublishedAdaPrune(steps=20)
    report = prune_model(pruned, "2:4T", method, data, batchnorm="keep", include="head")
    with torch.no_grad():
        found = torch.cat([pruned(x) for x in data]).double()
        wanted = torch.cat([net(x) for x in data]).double()
    by_hand = (found - wanted).square().sum() / (wanted - net.head.bias.detach()).square().sum()
    assert report.error == pytest.approx(float(by_hand), rel=1e-3)
    assert not torch.equal(pruned.head.bias, net.head.bias)
