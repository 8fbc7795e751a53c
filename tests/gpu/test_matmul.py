"""Sparse tensor cores as they are: products of every shape, layers, graphs, one process of FSDP."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F

from tests.gpu.support import GPU, as_users_run, error, why_skipped
from transposable import MaskController, Pattern, compress, find_mask, sparsify
from transposable.nn import DENSE_MASKED, NMCuda, SparseLinear, sparse_layers, use_backend
from transposable.sparse import SemiWeight, nm_linear, plan
from transposable.sparse.semi import FORMATS, Algorithm, Tuner, estimate, probe
from transposable.sparse.semi.proof import reproduces, why_unsound
from transposable.sparse.semi.tuner import Case, GpuBench
from transposable.train import SRSTE, Every

__all__ = ["as_users_run"]
pytestmark = [
    pytest.mark.skipif(why_skipped() is not None, reason=str(why_skipped())),
    # Libraries have more to say on a GPU; what is wrong there is in the numbers.
    pytest.mark.filterwarnings("default"),
]
HERE = [f for f in FORMATS.values() if f.name != "reference" and f.why_not(GPU) is None]
HALVES = [torch.bfloat16, torch.float16]
SHAPES = [(16, 16), (64, 128), (16, 4096), (4096, 16), (1024, 4096), (4096, 1024), (272, 48)]
PATTERN = Pattern.parse("2:4T")


class Few(GpuBench):
    """Some of the algorithms, so that many shapes take seconds; test_a_tuning tries them all."""

    def algorithms(self) -> Iterable[Algorithm]:
        return itertools.islice(super().algorithms(), 3)


FEW = Tuner(None, Few)


def inputs(
    out: int, into: int, tokens: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, weight with NaN where it is pruned, mask, bias."""
    weight = torch.randn(out, into)
    mask = find_mask(weight, "2:4T").tensor
    weight = weight.masked_fill(~mask, float("nan"))
    x, bias = torch.randn(tokens, into), torch.randn(out)
    return x.to(GPU, dtype), weight.to(GPU, dtype), mask.to(GPU), bias.to(GPU, dtype)


@pytest.mark.parametrize("format", HERE, ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", HALVES)
def test_the_library_is_sound(format: Any, dtype: torch.dtype) -> None:
    assert why_unsound(format, GPU, dtype) is None


@pytest.mark.parametrize("format", HERE, ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_packing_reproduces_the_masked_weight(
    format: Any, dtype: torch.dtype, shape: tuple[int, int], transposed: bool
) -> None:
    if any(side % format.multiple for side in shape):
        pytest.skip(f"{format.name} takes multiples of {format.multiple}")
    _, weight, mask, _ = inputs(*shape, 8, dtype)
    weight[:, 1] = torch.where(mask[:, 1], 0.0, weight[:, 1])  # kept, and 0
    assert reproduces(format, weight, mask, dtype, transposed=transposed)


@pytest.mark.parametrize("format", HERE, ids=lambda f: f.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 13, 1000])
@pytest.mark.parametrize("bias", [False, True])
def test_forward_and_backward(format: Any, shape: tuple[int, int], tokens: int, bias: bool) -> None:
    if any(side % format.multiple for side in shape):
        pytest.skip(f"{format.name} takes multiples of {format.multiple}")
    x, weight, mask, b = inputs(*shape, tokens, torch.bfloat16)
    packed = SemiWeight(PATTERN, format=format.name, tuner=FEW)
    given = [t.clone().requires_grad_() for t in (x, weight, b)]
    y = nm_linear(given[0], given[1], mask, given[2] if bias else None, packed.tag)
    assert packed.packings == 1, "it ran dense: no algorithm was right"
    dy = torch.randn_like(y)
    y.backward(dy)
    assert packed.packings == 2
    kept = torch.where(mask, weight, 0.0).float()
    assert y.is_contiguous()
    assert error(y, F.linear(x.float(), kept, b.float() if bias else None)) < 1e-2
    assert error(given[0].grad, dy.float() @ kept) < 1e-2
    assert error(given[1].grad, torch.where(mask, dy.float().t() @ x.float(), 0.0)) < 1e-2
    if bias:
        assert error(given[2].grad, dy.float().sum(0)) < 1e-2


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_a_tuning(left: bool, bias: bool) -> None:
    """The winner is right on operands of seeds that no one has seen."""
    case = Case(HERE[0], 256, 512, 1000, torch.bfloat16, bias and not left, GPU, left)
    tuner = Tuner(None)
    algorithm = tuner.algorithm(case)
    assert algorithm is not None, tuner.reports
    for seed in (10, 11, 12):
        assert GpuBench(case.exact()).problem(algorithm, seed) is None
    assert tuner.reports[0].ranking


def test_no_wait_for_the_gpu_once_it_is_tuned() -> None:
    x, weight, mask, bias = inputs(256, 512, 64, torch.bfloat16)
    weight.requires_grad_()
    x.requires_grad_()
    dy = torch.ones(64, 256, device=GPU).bfloat16()
    packed = SemiWeight(PATTERN)
    other = find_mask(torch.randn(256, 512), "2:4T").tensor.to(GPU)

    def step() -> None:
        nm_linear(x, weight, mask, bias, packed.tag).backward(dy)

    step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
        with torch.no_grad():
            weight.mul_(1.5)
            mask.copy_(other)
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert packed.packings == 4


def test_a_mask_that_keeps_three_of_four() -> None:
    x, weight, mask, _ = inputs(64, 64, 16, torch.bfloat16)
    bad = mask.clone()
    bad[0, :4] = True
    weight = torch.where(bad, weight.nan_to_num(1.0), weight)
    packed = SemiWeight(PATTERN)
    y = nm_linear(x, weight, bad, None, packed.tag)
    assert packed.packings == 0
    assert error(y, F.linear(x.float(), torch.where(bad, weight, 0.0).float())) < 1e-2
    # Later ones are not waited for: NaN, and then an error.
    packed.forget()
    nm_linear(x, weight, mask, None, packed.tag)
    mask.copy_(bad)
    assert nm_linear(x, weight, mask, None, packed.tag).isnan().any()
    torch.cuda.synchronize()
    with pytest.raises(ValueError, match="more than two of four"):
        nm_linear(x, weight, mask, None, packed.tag)


def test_the_estimated_weight_gradient() -> None:
    x, _, mask, _ = inputs(64, 128, 90, torch.bfloat16)
    dy = torch.randn(90, 64, device=GPU).bfloat16()
    packed = SemiWeight(weight_gradient="mvue")
    found = [packed.weight_gradient(x, dy, mask) for _ in range(300)]
    assert found[0] is not None, "it ran dense"
    draws = torch.stack(found).float()  # type: ignore[arg-type]
    wanted = torch.where(mask, dy.float().t() @ x.float(), 0.0)
    spread = draws.std(0) / 300**0.5
    assert ((draws.mean(0) - wanted).abs() <= 6 * spread + 0.1).all()
    assert ((estimate(dy[:88]) != 0).reshape(22, 4, 64).sum(1) == 2).all()


def model(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.Linear(512, 256)).to(GPU, dtype)
    sparsify(net, "2:4T")
    return net


def batch() -> torch.Tensor:
    """The same numbers at every call."""
    random = torch.Generator(GPU).manual_seed(1)
    return torch.randn(64, 256, device=GPU, generator=random).bfloat16()


def pair(dtype: torch.dtype, **how: Any) -> tuple[nn.Module, nn.Module]:
    """The same model on sparse tensor cores and dense-masked."""
    net = model(dtype)
    twin = copy.deepcopy(net)
    assert use_backend(sparse_layers(net), NMCuda("always", **how)) == {}
    use_backend(sparse_layers(twin), DENSE_MASKED)
    return net, twin


def compare(net: nn.Module, twin: nn.Module, x: torch.Tensor, allowed: float = 2e-2) -> None:
    found = []
    for each in (net, twin):
        each.zero_grad()
        given = x.clone().requires_grad_()
        y = each(given)
        y.float().square().mean().backward()
        found.append([y, given.grad, *(p.grad for p in each.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype
        assert error(one, other) < allowed


@pytest.mark.parametrize("dtype", HALVES)
def test_layers(dtype: torch.dtype) -> None:
    net, twin = pair(dtype)
    for shape in ((40, 256), (2, 5, 256), (256,)):
        compare(net, twin, torch.randn(*shape, device=GPU, dtype=dtype))
    assert sparse_layers(net)["0"].backend.packed.packings > 0  # type: ignore[attr-defined]


def test_autocast() -> None:
    net, twin = pair(torch.float32)
    x = torch.randn(40, 256, device=GPU)
    with torch.autocast("cuda", torch.bfloat16):
        compare(net, twin, x)
    assert sparse_layers(net)["0"].backend.packed.packings == 2  # type: ignore[attr-defined]


def test_the_default_follows_the_plan() -> None:
    net = model(torch.bfloat16)
    twin = copy.deepcopy(net)
    use_backend(sparse_layers(twin), DENSE_MASKED)
    compare(net, twin, torch.randn(2048, 256, device=GPU).bfloat16())
    text = str(plan(net[0], tokens=2048))
    assert "cuda" in text
    assert "measured" in text


@pytest.mark.parametrize("backward", [False, True])
def test_compiled(backward: bool) -> None:
    net, twin = pair(torch.bfloat16)
    compiled = torch.compile(net, fullgraph=True)
    x = torch.randn(40, 256, device=GPU).bfloat16()
    if backward:
        compare(compiled, twin, x)
    else:
        with torch.no_grad():
            assert error(compiled(x), twin(x)) < 2e-2


def test_training_with_refreshes() -> None:
    """The masks of both runs are found in the same way, and so are the losses."""
    losses = []
    for how in ("sparse", "dense"):
        net, twin = pair(torch.bfloat16)
        run = net if how == "sparse" else twin
        optimizer = torch.optim.AdamW(run.parameters(), 1e-3, fused=True)
        controller = MaskController(run, SRSTE(), Every(2))
        x = batch()
        for _ in range(6):
            loss = (run(x) - x).float().square().mean()
            loss.backward()
            optimizer.step()
            controller.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_a_cuda_graph_of_whole_steps() -> None:
    """Replays pack what the weight is then: the losses are those of eager steps."""
    losses = []
    for graphed in (False, True):
        net, _ = pair(torch.bfloat16)
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        x = batch()

        def step(net: Any = net, optimizer: Any = optimizer, x: Any = x) -> torch.Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = (net(x) - x).float().square().mean()
            loss.backward()
            optimizer.step()
            return loss

        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        if graphed:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                held = step()
            for _ in range(4):
                graph.replay()
            losses.append(held.item())
            eager = net(x)  # after replays: what was packed before is not used
            twin = copy.deepcopy(net)
            use_backend(sparse_layers(twin), DENSE_MASKED)
            assert error(eager, twin(x)) < 2e-2
        else:
            losses.append([step() for _ in range(4)][-1].item())
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


def test_compressed_for_inference() -> None:
    net, twin = pair(torch.bfloat16)
    done = compress(net.eval())
    assert [layer.name for layer in done.layers] == ["0", "2"]
    with torch.inference_mode():
        for tokens in (1, 8, 100):
            x = torch.randn(tokens, 256, device=GPU).bfloat16()
            assert error(net(x), twin(x)) < 1e-2


def test_a_checkpoint_moves_between_devices() -> None:
    net, _ = pair(torch.bfloat16)
    other = SparseLinear(256, 512, pattern="2:4T", dtype=torch.bfloat16)
    state = {key[2:]: value for key, value in net.state_dict().items() if key.startswith("0.")}
    other.load_state_dict(state)
    assert torch.equal(other.weight, net[0].weight.cpu())


def test_versions_are_known() -> None:
    identity = probe.gpu_identity(GPU)
    assert identity["gpu"] == torch.cuda.get_device_name(GPU)
    assert identity["cusparselt"] != "None" or HERE[0].name == "cutlass"


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    dist.init_process_group("nccl", f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_distributed(one_process: None, how: str) -> None:
    from torch.distributed.fsdp import fully_shard

    net, twin = pair(torch.bfloat16)
    if how == "ddp":
        wrapped: Any = nn.parallel.DistributedDataParallel(net, device_ids=[0])
    else:
        wrapped = fully_shard(net)
    optimizers = [torch.optim.SGD(m.parameters(), 0.1) for m in (wrapped, twin)]
    x = torch.randn(64, 256, device=GPU).bfloat16()
    for _ in range(4):
        losses = []
        for each, optimizer in zip((wrapped, twin), optimizers, strict=True):
            loss = (each(x) - x).float().square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
