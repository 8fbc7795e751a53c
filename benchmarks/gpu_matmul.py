"""A 2:4-transposable linear layer on sparse tensor cores: ``python -m benchmarks.gpu_matmul``.

Forward, backward and packing at every step, against cuBLAS, torch's own semi-structured tensors and
the dense-masked layer, interleaved; correctness first.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import gpu_harness
from benchmarks.gate import GateError
from benchmarks.gpu_harness import Budget, check, interleave, peak_memory, show, summary
from transposable import sparsify
from transposable.nn import DENSE_MASKED, NMCuda, SparseLinear, use_backend
from transposable.sparse import plan
from transposable.sparse.semi import FORMATS, Format
from transposable.sparse.semi.formats import best_format
from transposable.sparse.semi.operand import masked
from transposable.sparse.semi.proof import reproduces, why_unsound
from transposable.sparse.semi.tuner import tuner_of

SHAPES: Final = ((13008, 1024, 4096), (13008, 4096, 1024), (16384, 4096, 14336))
"""(tokens, in, out): the MLP of a ViT-L, and one matrix of that of a Llama of 8 billion."""

QUICK_SHAPES: Final = ((64, 128, 256),)
LEAST: Final = 0.98
TARGET: Final = 1.15
ALLOWED: Final = 1e-2
"""Relative error against float32 sums: a result in bfloat16 is rounded by about 2e-3."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see :func:`benchmarks.gpu_harness.run`."""
    return gpu_harness.run("gpu_matmul", __doc__, arguments, measure)


def measure(options: argparse.Namespace, budget: Budget) -> dict[str, Any]:
    """All shapes; the results as they go into the JSON file.

    Raises:
        GateError: before anything is timed with a wrong result.
    """
    torch.manual_seed(options.seed)
    device = options.device
    format = FORMATS["reference"] if device.type == "cpu" else best_format(device)
    if not isinstance(format, Format):
        raise GateError(f"gate: no format runs here: {format}")
    for dtype in (torch.bfloat16, torch.float16):
        if (reason := why_unsound(format, device, dtype)) is not None:
            raise GateError(f"gate: {dtype}: {reason}")
    found = []
    for shape in QUICK_SHAPES if options.quick else SHAPES:
        for bias in (True, False):
            name = f"{shape}, {'bias' if bias else 'no bias'}"
            if not budget.has_time(name):
                continue
            found.append(_shape(shape, bias, format, options))
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return {
        "format": format.name,
        "shapes": found,
        "algorithms": [
            {
                "case": report.case.key(),
                "ranking": [[str(a), seconds] for a, seconds in report.ranking],
                "rejected": {str(a): why for a, why in report.rejected.items()},
            }
            for report in tuner_of(device).reports
        ],
        "targets": _targets(found),
    }


def _targets(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for one in found:
        where = f"{one['shape']}, {'bias' if one['bias'] else 'no bias'}"
        step = one["step"]
        pairs = [
            (f"step with packing, always sparse / dense, {where}", "sparse, always", TARGET),
            (f"step with packing, by the plan / dense-masked, {where}", "sparse, plan", LEAST),
        ]
        for target, name, limit in pairs:
            base = "ratio" if limit == TARGET else "ratio_to_masked"
            value = step[name][base]
            rows.append({"target": target, "value": value, "limit": limit, "met": value >= limit})
    return rows


class Step:
    """Forward and backward pass of a layer whose weight has changed since the last one."""

    def __init__(self, layer: nn.Module, x: torch.Tensor, dy: torch.Tensor) -> None:
        self.layer, self.dy = layer, dy
        self.x = x.detach().clone().requires_grad_()

    def __call__(self) -> None:
        # What an optimizer's step does to the weight, at no cost of its own.
        torch.autograd.graph.increment_version(self.layer.weight)
        self.layer(self.x).backward(self.dy)
        self.x.grad = None
        for parameter in self.layer.parameters():
            parameter.grad = None

    def results(self) -> dict[str, torch.Tensor]:
        """y and the gradients of one step."""
        y = self.layer(self.x)
        y.backward(self.dy)
        grads = {name: p.grad for name, p in self.layer.named_parameters()}
        found = {"y": y.detach(), "dx": self.x.grad, **grads}
        self.x.grad = None
        for parameter in self.layer.parameters():
            parameter.grad = None
        return {name: value for name, value in found.items() if value is not None}


def _shape(
    shape: tuple[int, int, int], bias: bool, format: Format, options: argparse.Namespace
) -> dict[str, Any]:
    tokens, into, out = shape
    device, dtype = options.device, torch.bfloat16
    x = torch.randn(tokens, into, device=device).to(dtype)
    dy = torch.randn(tokens, out, device=device).to(dtype)
    dense = nn.Linear(into, out, bias=bias, device=device, dtype=dtype)
    layers: dict[str, nn.Module] = {"dense (cuBLAS)": dense}
    first = copy.deepcopy(dense)
    sparsify(first, "2:4T")
    assert isinstance(first, SparseLinear)
    mask = first.mask
    for name, backend in {
        "dense-masked": DENSE_MASKED,
        "sparse, always": NMCuda("always", format=format.name),
        "sparse, plan": NMCuda(format=format.name),
        "sparse, always, mvue gradient": NMCuda(
            "always", format=format.name, weight_gradient="mvue"
        ),
    }.items():
        layer = copy.deepcopy(first)
        if refused := use_backend({"layer": layer}, backend):
            raise GateError(f"gate: {name}, {shape}: {refused}")
        layers[name] = layer
    weight = dense.weight.detach()
    steps = {name: Step(layer, x, dy) for name, layer in layers.items()}
    gate = _gate(shape, steps, weight, mask, dense.bias, x, dy, format)
    peers, peer_notes = _peers(x, dy, weight, mask, dense.bias, gate["wanted"])
    del gate["wanted"]
    calls: dict[str, Callable[[], object]] = {**steps, **peers}
    step = summary(interleave(calls, device, options.rounds), "dense (cuBLAS)")
    masked_ms = step["dense-masked"]["ms"]
    for row in step.values():
        row["ratio_to_masked"] = masked_ms / row["ms"]
    show(f"one step of {shape} (tokens, in, out), bias {bias}: forward, backward, packing", step)
    parts = _parts(x, dy, weight, mask, dense.bias, format, options)
    for title, rows in parts.items():
        show(f"{title}, {shape}", rows)
    sparse = layers["sparse, always"]
    return {
        "shape": list(shape),
        "bias": bias,
        "gate": gate,
        "step": step,
        "parts": parts,
        "peers": peer_notes,
        "plan": str(plan(layers["sparse, plan"], tokens=tokens)),
        "memory": {
            "dense_weight_bytes": weight.nbytes,
            "packed_bytes": sparse.backend.packed.nbytes,  # type: ignore[union-attr]
            "mask_bytes": mask.nbytes,
            "step_bytes": {name: peak_memory(call, device) for name, call in steps.items()},
        },
    }


def _gate(
    shape: tuple[int, int, int],
    steps: dict[str, Step],
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    x: torch.Tensor,
    dy: torch.Tensor,
    format: Format,
) -> dict[str, Any]:
    """Packing to the bit, and y, dx, dW, db of every layer against sums in float32."""
    for transposed in (False, True):
        if not reproduces(format, weight, mask, weight.dtype, transposed=transposed):
            raise GateError(f"gate: {shape}: packing (transposed {transposed}) is not S * W")
    kept = masked(weight, mask, torch.float32)
    wanted = {
        "y": F.linear(x.float(), kept, None if bias is None else bias.float()),
        "dx": dy.float() @ kept,
        "weight": torch.where(mask, dy.float().t() @ x.float(), 0.0),
    }
    if bias is not None:
        wanted["bias"] = dy.float().sum(0)
    errors = {}
    for name, step in steps.items():
        if name == "dense (cuBLAS)":
            continue  # it has no mask
        for key, value in step.results().items():
            where = f"{name}, {key}, {shape}"
            if "mvue" in name and key == "weight":
                # An estimate: right in the mean, and never where the weight is pruned.
                if value[~mask].any() or not value.isfinite().all():
                    raise GateError(f"gate: {where}: a gradient of a pruned weight, or no number")
                errors[where] = gpu_harness.relative_error(value, wanted[key])
            else:
                errors[where] = check(where, value, wanted[key], ALLOWED)
    return {"errors": errors, "wanted": wanted}


def _peers(
    x: torch.Tensor,
    dy: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    wanted: dict[str, torch.Tensor],
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """torch's own semi-structured tensors in training: packed both ways by its tile pruner."""
    calls: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {}
    if not x.is_cuda:
        return calls, {"torch": "not on the CPU"}
    kinds = {
        "torch semi-structured, cuSPARSELt": torch.sparse.SparseSemiStructuredTensorCUSPARSELT,
        "torch semi-structured, CUTLASS": torch.sparse.SparseSemiStructuredTensorCUTLASS,
    }
    for name, kind in kinds.items():

        def step(kind: Any = kind) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            kept = torch.where(mask, weight, 0.0)
            packed = kind.prune_dense_static_sort(kept, algorithm="largest_abs_values_greedy")
            y = F.linear(x, packed, bias)
            return y, dy @ packed, torch.where(mask, dy.t() @ x, 0.0)

        try:
            with torch.no_grad():
                for key, value in zip(("y", "dx", "weight"), step(), strict=True):
                    check(f"{name}, {key}", value, wanted[key], ALLOWED)
        except (GateError, RuntimeError, NotImplementedError, AssertionError) as error:
            notes[name] = f"not timed: {str(error).strip().splitlines()[0][:300]}"
            print(f"peer {name}: {notes[name]}", file=sys.stderr)
            continue
        calls[name] = torch.no_grad()(step)
    return calls, notes


def _parts(
    x: torch.Tensor,
    dy: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    bias: torch.Tensor | None,
    format: Format,
    options: argparse.Namespace,
) -> dict[str, dict[str, dict[str, float]]]:
    """The three products and the packing by themselves."""
    from transposable import Pattern
    from transposable.sparse import SemiWeight

    packed = SemiWeight(Pattern.parse("2:4T"), format=format.name)
    estimating = SemiWeight(Pattern.parse("2:4T"), format=format.name, weight_gradient="mvue")
    ops, dtype = torch.ops.transposable, weight.dtype
    kept = masked(weight, mask, dtype)
    sets: dict[str, dict[str, Callable[[], object]]] = {
        "forward": {
            "dense": lambda: F.linear(x, kept, bias),
            "sparse": lambda: ops.nm_linear(x, weight, mask, bias, packed.tag, False),
        },
        "input gradient": {
            "dense": lambda: dy @ kept,
            "sparse": lambda: ops.nm_input_gradient(dy, weight, mask, packed.tag),
        },
        "weight gradient": {
            "dense": lambda: torch.where(mask, dy.t() @ x, 0.0),
            "mvue": lambda: ops.nm_weight_gradient(x, dy, mask, estimating.tag),
        },
        "packing": {
            "S * W": lambda: masked(weight, mask, dtype),
            "pack W": lambda: format.pack(weight, mask, dtype, transposed=False),
            "pack W^T": lambda: format.pack(weight, mask, dtype, transposed=True),
        },
    }
    if x.is_cuda:
        try:
            semi = torch.sparse.to_sparse_semi_structured(kept)
            found, wanted = F.linear(x, semi, bias), F.linear(x, kept, bias)
            check("torch semi-structured", found, wanted, ALLOWED)
            name = "torch semi-structured, packed before"
            sets["forward"][name] = lambda: F.linear(x, semi, bias)
        except (GateError, RuntimeError, NotImplementedError) as error:
            print(f"peer to_sparse_semi_structured: not timed: {error}", file=sys.stderr)
    parts = {}
    with torch.no_grad():
        for title, calls in sets.items():
            base = next(iter(calls))
            parts[title] = summary(interleave(calls, x.device, options.rounds), base)
    return parts


if __name__ == "__main__":
    sys.exit(main())
