"""The layers of small models as they meet them, each under the plan, dense-masked and dense."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.autograd.graph import increment_version

from benchmarks.block_inference import load
from benchmarks.gate import GateError
from experiments.models.resnet import ResNet
from transposable import Pattern, sparsify
from transposable.nn import DENSE_MASKED, NMCpu, sparse_layers, use_backend
from transposable.sparse import plan

PLAN, MASKED, DENSE = "plan", "dense-masked", "dense"
TWIN: Final = "dense-masked again"
SEQUENCES: Final = 8
Pass = Literal["forward", "step"]
PASSES: Final[tuple[Pass, ...]] = ("forward", "step")
TOLERANCE: Final = 1e-5
"""Of an entry, relative to the largest of its tensor: float32 sums in another order."""


@dataclass(frozen=True, slots=True)
class Case:
    """A layer of a model and what it was given in a forward pass.

    Attributes:
        model: title of the model.
        name: the first of its layers with this shape and input; ``times`` have it.
    """

    model: str
    name: str
    layer: nn.Module
    x: torch.Tensor
    times: int

    def __str__(self) -> str:
        shape, given = ("x".join(map(str, t.shape)) for t in (self.layer.weight, self.x))
        return f"{self.name}: {shape} on {given}"


def cases(quick: bool, seed: int) -> Iterator[Case]:
    """Every kind of layer that ``sparsify`` takes of an encoder, a CNN and an MLP of odd sizes."""
    torch.manual_seed(seed)
    encoder = load(quick, seed)
    tokens = {name: ids[:SEQUENCES] for name, ids in next(iter(encoder.batches.values())).items()}
    yield from _of_model(encoder.title, encoder.net, "encoder.*", lambda net: net(**tokens))
    depth, batch = (8, 2) if quick else (20, 64)
    images = torch.randn(batch, 3, 32, 32)
    yield from _of_model(f"ResNet-{depth}", ResNet(depth), "layer*", lambda net: net(images))
    odd = nn.Sequential(
        *(nn.Linear(301, 517), nn.ReLU(), nn.Linear(517, 1030), nn.ReLU(), nn.Linear(1030, 77))
    )
    rows = torch.randn(17 if quick else 203, 301)
    yield from _of_model("MLP of odd sizes", odd, "*", lambda net: net(rows))


def _of_model(
    title: str, net: nn.Module, include: str, call: Callable[[nn.Module], object]
) -> list[Case]:
    net.eval()
    probe = copy.deepcopy(net)
    sparsify(probe, "2:4T", include=include)
    taken = set(sparse_layers(probe))
    inputs: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        hooks = [
            module.register_forward_pre_hook(_keep(inputs, name))
            for name, module in net.named_modules()
            if name in taken
        ]
        call(net)
    for hook in hooks:
        hook.remove()
    found: dict[Any, Case] = {}
    for name, x in inputs.items():
        layer = net.get_submodule(name)
        kind = type(layer), layer.weight.shape, x.shape, getattr(layer, "stride", None)
        times = found[kind].times + 1 if kind in found else 1
        first = found[kind].name if kind in found else name
        found[kind] = Case(title, first, layer, x, times)
    return list(found.values())


def _keep(inputs: dict[str, torch.Tensor], name: str) -> Callable[[nn.Module, Any], None]:
    def hook(module: nn.Module, given: Any) -> None:
        inputs[name] = given[0].detach()

    return hook


def calls(case: Case, which: Pass, pattern: Pattern) -> dict[str, Callable[[], Any]]:
    """The pass of the layer for each contender; every one has a copy of its own.

    A step is a forward pass and all three gradients under a weight that has changed, as after an
    optimizer step.
    """
    planned = nn.Sequential(copy.deepcopy(case.layer))
    sparsify(planned, pattern)
    masked = copy.deepcopy(planned)
    use_backend(sparse_layers(planned), NMCpu())
    use_backend(sparse_layers(masked), DENSE_MASKED)
    layers = {PLAN: planned[0], MASKED: masked[0], DENSE: copy.deepcopy(case.layer)}
    make = _forward if which == "forward" else _step
    return {name: make(layer, case.x) for name, layer in layers.items()}


def _forward(layer: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    layer.eval()

    def call() -> Any:
        with torch.no_grad():
            return (layer(x),)

    return call


def _step(layer: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    layer.train()
    own = x.clone().requires_grad_()
    with torch.no_grad():
        dy = torch.randn(layer(x).shape, generator=torch.Generator().manual_seed(1))
    weight: Any = layer.weight

    def call() -> Any:
        increment_version(weight)
        own.grad = weight.grad = None
        y = layer(own)
        y.backward(dy)
        return y.detach(), own.grad, weight.grad

    return call


def check(case: Case, which: Pass, made: dict[str, Callable[[], Any]]) -> float:
    """The largest difference between the plan's numbers and the dense-masked ones.

    Raises:
        GateError: if they are not equal up to rounding.
    """
    worst = 0.0
    for mine, theirs in zip(made[PLAN](), made[MASKED](), strict=True):
        error = float((mine - theirs).abs().max() / theirs.abs().max())
        worst = max(worst, error)
        if not error <= TOLERANCE:
            raise GateError(f"{which} of {case}: the plan's numbers are off by {error:.1e}")
    return worst


def decided(case: Case, which: Pass, pattern: Pattern) -> str:
    """What the plan runs sparse: y, dx, dW, or a dash."""
    net = nn.Sequential(copy.deepcopy(case.layer))
    sparsify(net, pattern)
    if isinstance(net[0], nn.Conv2d):
        height, width = case.x.shape[-2:]
        found = plan(net[0], batch=case.x.shape[0], image=(height, width))
    else:
        found = plan(net[0], tokens=case.x.shape[:-1].numel())
    verdicts = {"y": found.forward, "dx": found.input_gradient, "dW": found.weight_gradient}
    shown = ["y"] if which == "forward" else list(verdicts)
    return " ".join(name for name in shown if verdicts[name].sparse) or "-"
