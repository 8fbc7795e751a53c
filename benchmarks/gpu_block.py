"""Training steps of whole blocks on a GPU, end to end: ``python -m benchmarks.gpu_block``.

The MLP block of a ViT-L and a Llama-like block: forward, backward, AdamW and whatever the masks
cost; dense, dense-masked and on sparse tensor cores, interleaved; gradients are checked first.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import gpu_harness
from benchmarks.gate import GateError
from benchmarks.gpu_harness import Budget, check, interleave, peak_memory, show, summary
from transposable import MaskController, sparsify
from transposable.nn import DENSE_MASKED, Backend, NMCuda, sparse_layers, use_backend
from transposable.sparse import plan
from transposable.train import SRSTE, Never, Recipe, Static

ALLOWED: Final = 2e-2
"""Relative error of a gradient against the dense-masked block in the same dtype."""

LEAST: Final = 0.98


@dataclass(frozen=True, slots=True)
class Size:
    """Of a block and its batch."""

    width: int
    inner: int
    heads: int
    batch: int
    length: int

    @property
    def tokens(self) -> int:
        """Of the batch."""
        return self.batch * self.length


class VitMlp(nn.Module):
    """x + fc2(gelu(fc1(norm(x))))."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size.width)
        self.fc1 = nn.Linear(size.width, size.inner)
        self.fc2 = nn.Linear(size.inner, size.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(F.gelu(self.fc1(self.norm(x))))


class LlamaBlock(nn.Module):
    """Attention and a gated MLP, each after an RMS norm, without biases."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.norm1, self.norm2 = nn.RMSNorm(size.width), nn.RMSNorm(size.width)
        self.qkv = nn.Linear(size.width, 3 * size.width, bias=False)
        self.out = nn.Linear(size.width, size.width, bias=False)
        self.gate = nn.Linear(size.width, size.inner, bias=False)
        self.up = nn.Linear(size.width, size.inner, bias=False)
        self.down = nn.Linear(size.inner, size.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        shape = batch, length, 3, self.heads, width // self.heads
        q, k, v = self.qkv(self.norm1(x)).reshape(shape).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


BLOCKS: Final[dict[str, tuple[Callable[[Size], nn.Module], Size]]] = {
    "ViT-L MLP block": (VitMlp, Size(1024, 4096, 16, 48, 271)),
    "Llama-like block": (LlamaBlock, Size(4096, 14336, 32, 4, 4096)),
}
QUICK: Final = Size(64, 128, 4, 2, 16)


class Trainer:
    """A block in bfloat16 with its optimizer, and one batch that wants its gradient."""

    def __init__(
        self, net: nn.Module, x: torch.Tensor, backend: Backend | None, recipe: Recipe | None
    ) -> None:
        self.net, self.x = net, x.detach().clone().requires_grad_()
        self.controller = None
        if backend is not None:
            self.refused = use_backend(sparse_layers(net), backend)
        fused = x.is_cuda or None
        self.optimizer = torch.optim.AdamW(net.parameters(), 1e-5, weight_decay=0.1, fused=fused)
        if recipe is not None:
            self.controller = MaskController(net, recipe, Never())

    def gradients(self) -> dict[str, torch.Tensor]:
        """The loss and all gradients of the batch; they are cleared."""
        loss = self.net(self.x).float().square().mean()
        loss.backward()
        found = {name: p.grad for name, p in self.net.named_parameters() if p.grad is not None}
        found |= {"loss": loss.detach(), "input": self.x.grad}
        found = {name: value.detach().clone() for name, value in found.items()}
        self.optimizer.zero_grad()
        self.x.grad = None
        return found

    def step(self) -> None:
        """Forward, backward, optimizer, controller."""
        self.net(self.x).float().square().mean().backward()
        self.optimizer.step()
        if self.controller is not None:
            self.controller.step()
        self.optimizer.zero_grad()
        self.x.grad = None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see :func:`benchmarks.gpu_harness.run`."""
    return gpu_harness.run("gpu_block", __doc__, arguments, measure)


def measure(options: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """All blocks and recipes; the results as they go into the JSON file.

    Raises:
        GateError: before anything of a block is timed.
    """
    torch.manual_seed(options.seed)
    found = []
    for name, (make, size) in BLOCKS.items():
        if budget.has_time(name):
            found.append(_block(name, make, QUICK if options.quick else size, options))
            if options.device.type == "cuda":
                torch.cuda.empty_cache()
    targets = [
        {
            "target": f"training step, {one['block']}, {row} / {base}",
            "value": one["step"][row][key],
            "limit": LEAST,
            "met": one["step"][row][key] >= LEAST,
        }
        for one in found
        for row, base, key in (
            ("sparse by the plan, static mask", "dense-masked, static mask", "ratio_to_masked"),
        )
    ]
    return {"blocks": found, "targets": targets}


def _block(
    name: str, make: Callable[[Size], nn.Module], size: Size, options: argparse.Namespace
) -> dict[str, Any]:
    device = options.device
    format: Any = "reference" if device.type == "cpu" else "auto"
    dense = make(size).to(device, torch.bfloat16)
    x = torch.randn(size.batch, size.length, size.width, device=device).to(torch.bfloat16)
    masked = copy.deepcopy(dense)
    sparsify(masked, "2:4T")
    kinds: dict[str, tuple[Backend, Callable[[], Recipe]]] = {
        "dense-masked, static mask": (DENSE_MASKED, Static),
        "sparse by the plan, static mask": (NMCuda(format=format), Static),
        "sparse always, static mask": (NMCuda("always", format=format), Static),
        "sparse always, SR-STE": (NMCuda("always", format=format), SRSTE),
        "sparse always, mvue gradient, static mask": (
            NMCuda("always", format=format, weight_gradient="mvue"),
            Static,
        ),
    }
    trainers = {"dense": Trainer(copy.deepcopy(dense), x, None, None)}
    for kind, (backend, recipe) in kinds.items():
        trainers[kind] = Trainer(copy.deepcopy(masked), x, backend, recipe())
        if trainers[kind].refused and "always" in kind:
            raise GateError(f"gate: {name}, {kind}: refused {trainers[kind].refused}")
    wanted = trainers["dense-masked, static mask"].gradients()
    errors = {}
    for kind in kinds:
        if "SR-STE" in kind:
            continue  # its gradients are those of all weights
        for key, value in trainers[kind].gradients().items():
            if "mvue" in kind and key not in ("loss", "input"):
                continue  # an estimate
            errors[f"{kind}, {key}"] = check(f"{name}, {kind}, {key}", value, wanted[key], ALLOWED)
    calls: dict[str, Callable[[], object]] = {
        kind: trainer.step for kind, trainer in trainers.items()
    }
    step = summary(interleave(calls, device, options.rounds), "dense")
    for row in step.values():
        row["ratio_to_masked"] = step["dense-masked, static mask"]["ms"] / row["ms"]
    show(f"{name}, {size}: a training step", step)
    planned = sparse_layers(trainers["sparse by the plan, static mask"].net)
    memory = {kind: peak_memory(trainer.step, device) for kind, trainer in trainers.items()}
    always = sparse_layers(trainers["sparse always, static mask"].net).values()
    return {
        "block": name,
        "size": {**{key: getattr(size, key) for key in size.__slots__}, "tokens": size.tokens},
        "gate": {"worst": max(errors.values()), "compared": len(errors)},
        "step": step,
        "plan": {key: str(plan(layer, tokens=size.tokens)) for key, layer in planned.items()},
        "memory": {
            "step_bytes": memory,
            "packed_bytes": sum(layer.backend.packed.nbytes for layer in always),  # type: ignore[attr-defined]
            "weight_bytes": sum(layer.weight.nbytes for layer in always),
        },
    }


if __name__ == "__main__":
    sys.exit(main())
