"""What is tested with two processes; every case runs on both, and asserts."""

from __future__ import annotations

import copy
import functools
import io
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Shard
from torch.nn.parallel import DistributedDataParallel

from distributed.training import (
    RECIPES,
    STEPS,
    Net,
    Run,
    accumulate,
    data,
    masks_of,
    must_agree,
    net,
    optimizer_of,
    shard,
    share,
    train,
    whole,
)
from transposable import MaskController, ScoresError, ShardingError, densify, sparsify
from transposable.nn import refresh_masks, sparse_layers

CASES: dict[str, Callable[[], None]] = {}


def case(function: Callable[[], None]) -> Callable[[], None]:
    CASES[function.__name__] = function
    return function


@functools.cache
def alone(recipe: str, pattern: str, options: tuple[tuple[str, Any], ...]) -> Run:
    return train("single", recipe, pattern, **dict(options))


def curve(how: str, recipe: str, pattern: str, **options: Any) -> None:
    """Losses, masks, history and weights of one process with the same global batch."""
    run = train(how, recipe, pattern, **options)
    options = {key: value for key, value in options.items() if key not in ("ddp", "fsdp")}
    run.must_equal(alone(recipe, pattern, tuple(sorted(options.items()))))
    assert len(set(run.losses)) == STEPS


for number, recipe in enumerate(RECIPES):
    for pattern in ("2:4", "2:4T"):
        CASES[f"curve fsdp {recipe} {pattern}"] = partial(curve, "fsdp", recipe, pattern)
    pattern = ("2:4T", "2:4")[number % 2]
    CASES[f"curve ddp {recipe} {pattern}"] = partial(curve, "ddp", recipe, pattern)
for how, pattern in itertools.product(("ddp", "fsdp"), ("2:4", "4:8T")):
    CASES[f"adamw {how} {pattern}"] = partial(
        curve, how, "masked-decay", pattern, optimizer="adamw", refresh=2
    )
    CASES[f"accumulation {how} {pattern}"] = partial(
        curve, how, "sr-ste", pattern, micro=2, clip=0.1
    )
for how in ("ddp", "fsdp"):
    CASES[f"gap {how}"] = partial(curve, how, "ste", "4:8T", solver="two_approx")
CASES["ddp, then sparsify"] = partial(curve, "ddp, then sparsify", "sr-ste", "2:4T")
CASES["ddp without buffers"] = partial(
    curve,
    "ddp",
    "sr-ste",
    "2:4T",
    ddp={"broadcast_buffers": False, "gradient_as_bucket_view": True},
)
CASES["fsdp resharding always"] = partial(
    curve, "fsdp", "sr-ste", "2:4T", fsdp={"reshard_after_forward": True}
)
CASES["fsdp resharding never"] = partial(
    curve, "fsdp", "sr-ste", "2:4T", fsdp={"reshard_after_forward": False}
)


@case
def gap_is_positive() -> None:
    run = train("fsdp", "ste", "4:8T", solver="two_approx")
    assert all(record.gap > 0 for record in run.history)


@case
def single_precision() -> None:
    run = train("fsdp", "sr-ste", "2:4T", dtype=torch.float32)
    run.must_equal(train("single", "sr-ste", "2:4T", dtype=torch.float32), 1e-5)


@case
def shards_along_in() -> None:
    """Cut along the second dimension where that is divisible, along the first otherwise."""

    def placement(parameter: nn.Parameter) -> Shard | None:
        return Shard(1) if parameter.ndim > 1 else None

    curve("fsdp", "sr-ste", "2:4T", fsdp={"shard_placement_fn": placement})


@case
def two_dimensional_meshes() -> None:
    for shape in ((1, 2), (2, 1)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard"))
        curve("fsdp", "sr-ste", "2:4T", fsdp={"mesh": mesh})


@case
def bfloat16() -> None:
    """Masks of the float32 weights, a forward pass with weights rounded after."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for recipe in ("sr-ste", "s-ste", "static"):
        mixed = train("fsdp", recipe, "2:4T", dtype=torch.float32, fsdp={"mp_policy": policy})
        exact = train("single", recipe, "2:4T", dtype=torch.float32)
        torch.testing.assert_close(mixed.losses, exact.losses, rtol=0.03, atol=0.03)
        assert mixed.losses != exact.losses
        assert all(weight.dtype == torch.float32 for weight in mixed.weights.values())


@case
def buffers_of_ddp() -> None:
    """Masks are broadcast from rank 0 at every forward pass, as bool, and codes as int64."""
    model = net()
    sparsify(model, "2:4T", exclude="out")
    ddp = DistributedDataParallel(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    if dist.get_rank() == 1:
        model.fc.mask.logical_not_()
        model.fc.sparsity.zero_()
    ddp(share(data(0)[0]))
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])
        assert buffer.dtype == (torch.float32 if name.endswith("scale") else before[name].dtype)


@case
def two_forwards_before_a_backward() -> None:
    for recipe in ("static", "sr-ste"):
        model = net()
        sparsify(model, "2:4T", exclude="out")
        ddp = DistributedDataParallel(model)
        MaskController(model, recipe)
        x = share(data(0)[0])
        (ddp(x) - ddp(x * 2)).square().mean().backward()
        assert torch.isfinite(model.fc.weight.grad).all()


@case
def ranks_initialised_differently() -> None:
    """DDP takes the weights of rank 0 and its masks; FSDP puts together a part of each rank's."""
    for recipe in ("static", "s-ste"):
        model = net(seed=dist.get_rank())
        sparsify(model, "2:4T", exclude="out")
        for layer in sparse_layers(model).values():
            layer.weighting = "soft"
        shard(model)
        ctl = MaskController(model, recipe)
        must_agree(ctl)
        parts = [net(seed=seed) for seed in range(2)]
        for name, layer in ctl.layers.items():
            weights = [part.get_parameter(f"{name}.weight") for part in parts]
            half = len(weights[0]) // 2
            assembled = torch.cat([weights[0][:half], weights[1][half:]]).detach()
            twin = net()
            with torch.no_grad():
                twin.get_parameter(f"{name}.weight").copy_(assembled)
            sparsify(twin, "2:4T", include=name)
            assert torch.equal(layer.mask, twin.get_buffer(f"{name}.mask"))
            if recipe == "s-ste":
                twin.get_submodule(name).weighting = "soft"
                assert torch.equal(layer.scale, twin.get_buffer(f"{name}.scale"))


@case
def the_scale_is_that_of_the_whole_weight() -> None:
    single = net()
    sparsify(single, "2:4", exclude="out")
    for layer in sparse_layers(single).values():
        layer.weighting = "soft"
    for early in (True, False):
        model = net()
        sparsify(model, "2:4", exclude="out")
        if early:
            for layer in sparse_layers(model).values():
                layer.weighting = "soft"
        shard(model)
        for layer in sparse_layers(model).values():
            layer.weighting = "soft"
        for name, layer in MaskController(model, "s-ste").layers.items():
            assert torch.equal(layer.scale, single.get_submodule(name).scale)


@case
def effective_weights_outside_of_forward() -> None:
    for pattern, weighting in itertools.product(("2:4", "2:4T"), ("masked", "soft", "dense")):
        single, model = net(), net()
        for each in (single, model):
            sparsify(each, pattern, exclude="out")
            if each is model:
                shard(each)
            for layer in sparse_layers(each).values():
                layer.weighting = weighting
        for name, layer in sparse_layers(model).items():
            for layer.straight_through in (False, True):
                expected = single.get_submodule(name).effective_weight()
                assert torch.equal(whole(layer.effective_weight()), expected)


@case
def densify_keeps_shards() -> None:
    for weighting, gathered in itertools.product(("masked", "soft", "dense"), (False, True)):
        single, model = net(), net()
        for each in (single, model):
            sparsify(each, "2:4T", exclude="out")
            if each is model:
                fully_shard(each)
            for layer in sparse_layers(each).values():
                layer.weighting = weighting
        if gathered:  # the root module shows gathered copies of its weights after this
            with torch.no_grad():
                model(data(0)[0])
            assert not hasattr(model.conv.weight, "placements")
        expected = densify(single)
        assert densify(model) == expected
        assert type(model.conv) is nn.Conv2d
        for name, parameter in model.named_parameters():
            assert torch.equal(whole(parameter), single.get_parameter(name))
        for each in (single, model):
            opt = optimizer_of(each, "adamw")
            accumulate("fsdp" if each is model else "single", each, 0, 1)
            opt.step()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(whole(parameter), single.get_parameter(name))
    model = net()
    sparsify(model, "2:4T", exclude="out")
    shard(model)
    with pytest.raises(ShardingError, match="fully_shard was applied to layer 'fc' itself"):
        densify(model)
    assert len(sparse_layers(model)) == 3


@case
def a_cut_tile_is_an_error() -> None:
    cases: list[tuple[nn.Module, str, str]] = [
        (nn.Linear(16, 12), "2:4T", "shard of 6 is no multiple of M = 4"),
        (nn.Linear(16, 8), "4:8T", "shard of 4 is no multiple of M = 8"),
        (nn.Linear(16, 12), "2:4S", "shard of 6 is no multiple of M = 4"),
        (nn.Conv2d(8, 12, 1), "2:4T", "shard of 6 is no multiple of M = 4"),
        (nn.Conv2d(18, 18, 1, groups=3), "2:4", "6 of the convolution"),
        (nn.Conv1d(24, 12, 1, groups=1), "2:4T", "shard of 6 is no multiple"),
        (nn.Linear(16, 16), "50%", "compares all weights"),
        (type(net().hf)(16, 12), "2:4", "shard of 6 is no multiple of M = 4"),
    ]
    for layer, pattern, reason in cases:
        model = nn.Sequential(nn.Linear(8, 8), layer)
        sparsify(model, {"1": pattern})
        fully_shard(model)
        before = [whole(parameter) for parameter in model.parameters()]
        for attempt in (partial(MaskController, model, "ste"), partial(refresh_masks, model)):
            with pytest.raises(ShardingError, match="layer '1' with pattern") as error:
                attempt()
            assert reason in str(error.value), str(error.value)
            assert "exclude='1'" in str(error.value)
            assert "fully_shard" in str(error.value)
        assert not model[1].straight_through
        for parameter, saved in zip(model.parameters(), before, strict=True):
            assert torch.equal(whole(parameter), saved)


@case
def cuts_between_tiles() -> None:
    """Plain patterns cut anywhere along out, groups of convolutions, and a rank with nothing."""
    cases: list[tuple[nn.Module, str]] = [
        (nn.Linear(16, 10), "2:4"),
        (nn.Linear(16, 7), "2:4"),
        (nn.Linear(16, 1), "2:4"),
        (nn.Linear(18, 13), "2:4"),
        (nn.Linear(14, 15), "4:8T"),
        (nn.Linear(20, 16), "4:8S"),
        (nn.Conv2d(16, 16, 3, groups=2), "2:4T"),
        (nn.Conv2d(12, 12, 3, groups=2), "2:4T"),
        (nn.Conv2d(24, 3, 3, groups=3), "2:4T"),  # two groups on one rank, one on the other
        (nn.Conv1d(8, 24, 3), "2:4"),
        (nn.Conv2d(24, 16, 1), "4:8T"),
        (nn.Conv2d(5, 10, 3), "2:4"),
    ]
    for layer, pattern in cases:
        torch.manual_seed(1)
        layer.reset_parameters()
        single, model = nn.Sequential(layer), nn.Sequential(copy.deepcopy(layer))
        for each in (single, model):
            sparsify(each, pattern)
        fully_shard(model)
        ctl, other = MaskController(model, "ste"), MaskController(single, "ste")
        for each in (single, model):
            with torch.no_grad():
                each[0].weight.mul_(-2.0).add_(0.1)
        record, expected = ctl.refresh(), other.refresh()
        must_agree(ctl)
        assert torch.equal(model[0].mask, single[0].mask), (layer, pattern)
        assert record.flip_rate == expected.flip_rate > 0
        assert abs(record.kept - expected.kept) < 1e-12


@case
def order_of_calls() -> None:
    model = net()
    shard(model)
    with pytest.raises(ShardingError, match="sparsify the model before fully_shard"):
        sparsify(model, "2:4T")
    assert not sparse_layers(model)

    for recipe in ("sr-ste", "static"):
        model = net()
        sparsify(model, "2:4T", exclude="out")
        ctl = MaskController(model, recipe)
        shard(model)
        opt = optimizer_of(model, "sgd")
        accumulate("fsdp", model, 0, 1)
        weights = [whole(parameter) for parameter in model.parameters()]
        for attempt in (opt.step, ctl.step, ctl.refresh, ctl.before_step):
            with pytest.raises(ShardingError, match="was cut over ranks after"):
                attempt()
        for parameter, weight in zip(model.parameters(), weights, strict=True):
            assert torch.equal(whole(parameter), weight)
        assert ctl.steps == 0


@case
def nan_on_one_rank() -> None:
    """Both ranks raise, nothing changes, and both go on together after a repair."""
    for recipe, layer_name in itertools.product(("sr-ste", "static", "s-ste"), ("conv", "hf")):
        model = net()
        sparsify(model, "2:4T", exclude="out")
        shard(model)
        ctl = MaskController(model, recipe, refresh=1)
        opt = optimizer_of(model, "sgd")
        accumulate("fsdp", model, 0, 1)
        opt.step()
        ctl.step()
        opt.zero_grad()
        accumulate("fsdp", model, 1, 1)
        opt.step()
        weight = ctl.layers[layer_name].weight.to_local()
        place = ctl.layers[layer_name].mask.chunk(2)[dist.get_rank()].nonzero()[0].tolist()
        saved = weight[tuple(place)].item()
        if dist.get_rank() == 1:
            weight.data[tuple(place)] = float("nan")
        masks, weights = masks_of(ctl), [whole(each) for each in model.parameters()]
        for attempt in (ctl.step, ctl.refresh):
            with pytest.raises(ScoresError, match=f"layer '{layer_name}'") as error:
                attempt()
            assert ("rank 1" in str(error.value)) == (dist.get_rank() == 0)
            assert ctl.steps == len(ctl.history) == 1
            for name, mask in masks_of(ctl).items():
                assert torch.equal(mask, masks[name])
            for parameter, before in zip(model.parameters(), weights, strict=True):
                assert torch.equal(whole(parameter).nan_to_num(7), before.nan_to_num(7))
        if dist.get_rank() == 1:
            weight.data[tuple(place)] = saved
        ctl.step()
        assert ctl.steps == len(ctl.history) == 2
        must_agree(ctl)


@case
def evaluation_leaves_gathered_copies() -> None:
    """What the controller changes is the shards, whatever the root module shows at the moment."""
    runs = []
    for evaluate in (False, True):
        model = net()
        sparsify(model, "2:4T", exclude="out")
        shard(model)
        ctl = MaskController(model, "static", refresh=2)
        opt = optimizer_of(model, "adamw")
        for step in range(4):
            accumulate("fsdp", model, step, 1)
            opt.step()
            if evaluate:
                with torch.no_grad():
                    model(data(0)[0])
                assert not hasattr(model.conv.weight, "placements")
            ctl.step()
            opt.zero_grad()
            if evaluate:
                with torch.no_grad():
                    model(data(0)[0])
                state = ctl.state_dict()
                assert state["gradients"] == {}
        if evaluate:
            with torch.no_grad():
                model(data(0)[0])
        ctl.refresh()
        runs.append(({n: whole(p) for n, p in model.named_parameters()}, masks_of(ctl)))
    for first, second in zip(*runs, strict=True):
        for name in first:
            assert torch.equal(first[name], second[name])
    for name, mask in runs[0][1].items():
        assert not runs[0][0][f"{name}.weight"][~mask].any()


def through_a_file(state: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


FULL = StateDictOptions(full_state_dict=True)


def resume(recipe: str, optimizer: str, first: str, pending: bool) -> None:
    """Stop under FSDP in the middle, go on in new objects: the same to the bit.

    set_state_dict lets the optimizer make a step with zero gradients, which is none of training;
    where gradients are there already it does not, and cannot load: then the controller comes last.
    """

    def begin() -> tuple[Net, MaskController, torch.optim.Optimizer]:
        model = net()
        sparsify(model, "2:4T", exclude="out")
        shard(model)
        return model, MaskController(model, RECIPES[recipe], 2), optimizer_of(model, optimizer)

    def steps(model: Net, ctl: Any, opt: Any, start: int, stop: int, half: bool = False) -> None:
        for step in range(start, stop):
            if not (half and step == start):
                accumulate("fsdp", model, step, 1)
            accumulate("fsdp", model, step + 100, 1)
            opt.step()
            ctl.step()
            opt.zero_grad()

    for stop in (2, 5):
        model, ctl, opt = begin()
        steps(model, ctl, opt, 0, stop)
        if pending:
            accumulate("fsdp", model, stop, 1)
        state = through_a_file(ctl.state_dict())
        assert bool(state["gradients"]) == pending
        weights, moments = get_state_dict(model, opt, options=FULL)
        weights, moments = through_a_file(weights), through_a_file(moments)
        steps(model, ctl, opt, stop, STEPS, half=pending)

        other, ctl2, opt2 = begin()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        if first == "controller":
            ctl2.load_state_dict(state)
        set_state_dict(
            other, opt2, model_state_dict=weights, optim_state_dict=moments, options=FULL
        )
        if first == "model":
            ctl2.load_state_dict(state)
        steps(other, ctl2, opt2, stop, STEPS, half=pending)
        for name, parameter in other.named_parameters():
            assert torch.equal(whole(parameter), whole(model.get_parameter(name))), (stop, name)
        for name, buffer in other.named_buffers():
            assert torch.equal(buffer, model.get_buffer(name)), (stop, name)
        assert [r.step for r in ctl2.history] == [r.step for r in ctl.history]


for number, recipe in enumerate(RECIPES):
    CASES[f"resume {recipe}"] = partial(
        resume,
        recipe,
        ("sgd", "adamw")[number // 2 % 2],
        ("model", "controller")[number % 2],
        pending=number % 2 == 0,
    )


@case
def a_state_from_rank_0_only() -> None:
    for recipe in ("s-ste", "static"):
        model = net()
        sparsify(model, "2:4T", exclude="out")
        MaskController(shard(model), recipe)
        state = get_model_state_dict(
            model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
        )
        assert bool(state) == (dist.get_rank() == 0)
        other = net(seed=5)
        sparsify(other, "2:4T", exclude="out")
        ctl = MaskController(shard(other), recipe)
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
        set_model_state_dict(other, state, options=options)
        must_agree(ctl)
        for name, parameter in other.named_parameters():
            assert torch.equal(whole(parameter), whole(model.get_parameter(name)))
        for name, buffer in other.named_buffers():
            assert torch.equal(buffer, model.get_buffer(name)), name


@case
def unreduced_gradients_are_not_saved() -> None:
    for policy in (
        MixedPrecisionPolicy(),
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
    ):
        model = net(dtype=torch.float32)
        sparsify(model, "2:4T", exclude="out")
        ctl = MaskController(shard(model, mp_policy=policy), "sr-ste")
        model.set_requires_gradient_sync(False)
        x, y = (share(each) for each in data(0, torch.float32))
        (model(x) - y).square().mean().backward()
        with pytest.raises(ShardingError, match="has not reduced"):
            ctl.state_dict()
        assert ctl.state_dict(gradients=False)["gradients"] is None
        model.set_requires_gradient_sync(True)
        (model(x) - y).square().mean().backward()
        assert len(ctl.state_dict()["gradients"]) == 8


@case
def one_checkpoint_for_every_kind_of_run() -> None:
    """A controller's state names layers as the bare model does."""
    states = {}
    for how in ("single", "ddp", "fsdp"):
        model = net()
        sparsify(model, "2:4T", exclude="out")
        wrapped: Any = model
        if how == "ddp":
            wrapped = DistributedDataParallel(model)
        if how == "fsdp":
            shard(model)
        ctl = MaskController(wrapped, "sr-ste", refresh=2)
        x, y = data(0)
        (model(x) - y).square().mean().backward()
        states[how] = ctl.state_dict()
        for state in states.values():
            ctl.load_state_dict(state)
    for state in states.values():
        assert state["patterns"] == states["single"]["patterns"]
        assert state["gradients"].keys() == states["single"]["gradients"].keys()


@case
def an_optimizer_inside_an_optimizer() -> None:
    """ZeroRedundancyOptimizer steps another optimizer inside its own step: one term, no error."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when it is imported

    single = train("single", "sr-ste", "2:4T", optimizer="adamw")
    model = net()
    sparsify(model, "2:4T", exclude="out")
    ddp = DistributedDataParallel(model)
    ctl = MaskController(ddp, RECIPES["sr-ste"], refresh=1)
    opt = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    for step in range(STEPS):
        accumulate("ddp", ddp, step, 1)
        opt.step()
        ctl.step()
        opt.zero_grad()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), single.weights[name], rtol=1e-9, atol=1e-9)


@case
def identities_are_stable() -> None:
    """Parameters under FSDP are the same objects whenever the shards are shown."""
    model = net()
    sparsify(model, "2:4T", exclude="out")
    shard(model)
    shown = {name: id(parameter) for name, parameter in model.named_parameters()}
    ctl = MaskController(model, "sr-ste", refresh=1)
    opt = optimizer_of(model, "sgd")
    for step in range(2):
        accumulate("fsdp", model, step, 1)
        opt.step()
        ctl.step()
        opt.zero_grad()
        with torch.no_grad():
            model(data(0)[0])
        ctl.refresh()
        assert shown == {name: id(parameter) for name, parameter in model.named_parameters()}
