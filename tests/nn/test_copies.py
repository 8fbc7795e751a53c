"""Copies, averages, dtypes and transformers' files of sparse models."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from tests.nn.conftest import Net
from transposable import densify, sparsify
from transposable.nn import SparseLinear, refresh_masks, sparse_layers
from transposable.nn.checkpoint import encode


@pytest.mark.parametrize("weighting", ["masked", "soft", "dense"])
def test_a_deep_copy_stands_alone(net: Net, x: torch.Tensor, weighting: str) -> None:
    sparsify(net, "2:4T")
    for layer in sparse_layers(net).values():
        layer.weighting = weighting
        layer.straight_through = True
    twin = copy.deepcopy(net)
    expected = net(x)
    assert torch.equal(twin(x), expected)
    assert all(layer.straight_through for layer in sparse_layers(twin).values())
    for layer in sparse_layers(twin).values():
        layer.mask.zero_()
        layer.weighting = "masked"
    assert torch.equal(net(x), expected)
    densify(twin)
    assert len(sparse_layers(net)) == 5


AVERAGES = {"swa": None, "ema": get_ema_multi_avg_fn(0.9)}


@pytest.mark.parametrize("average", AVERAGES)
@pytest.mark.parametrize("buffers", [False, True])
def test_averaged_models(net: Net, average: str, buffers: bool) -> None:
    sparsify(net, "2:4T")
    averaged = AveragedModel(net, multi_avg_fn=AVERAGES[average], use_buffers=buffers)
    averaged.update_parameters(net)
    for _ in range(3):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_()
        refresh_masks(net)
        if average == "swa" and buffers:
            # torch subtracts buffers, which bool masks do not allow: no silent nonsense.
            with pytest.raises(RuntimeError, match="bool"):
                averaged.update_parameters(net)
            return
        averaged.update_parameters(net)
    layers = sparse_layers(averaged.module)
    mixed = sum(layer.as_mask().violations() for layer in layers.values())
    assert (mixed > 0) == buffers
    assert refresh_masks(averaged.module).gap == 0
    for layer in layers.values():
        assert layer.as_mask().violations() == 0
        assert layer.sparsity.tolist() == [2, 4, 1, 0]
    expected = Net()
    expected.load_state_dict(
        {key: averaged.module.state_dict()[key] for key in expected.state_dict()}
    )
    sparsify(expected, "2:4T")
    assert all(
        torch.equal(layer.mask, sparse_layers(expected)[n].mask) for n, layer in layers.items()
    )


def test_an_average_follows_the_model_into_its_dense_tail(net: Net, x: torch.Tensor) -> None:
    sparsify(net, "2:4T")
    averaged = AveragedModel(net)
    for layer in sparse_layers(net).values():
        layer.weighting = "dense"
    averaged.update_parameters(net)
    refresh_masks(averaged.module)
    assert torch.equal(averaged(x), net(x))
    assert {layer.weighting for layer in sparse_layers(averaged.module).values()} == {"dense"}


def test_an_average_made_before_soft_weighting(net: Net, x: torch.Tensor) -> None:
    sparsify(net, "2:4")
    averaged = AveragedModel(net)
    for layer in sparse_layers(net).values():
        layer.weighting = "soft"
    averaged.update_parameters(net)
    refresh_masks(averaged.module)
    assert torch.equal(averaged(x), net(x))


@pytest.mark.parametrize("code", [[1, 4, 1, 0], [2, 4, 1, 7], [0, 0, 0, 0]])
def test_a_code_that_an_average_has_mixed_is_put_right(code: list[int]) -> None:
    layer = SparseLinear(16, 8, pattern="2:4T")
    layer.weighting = "dense"
    layer.sparsity.copy_(torch.tensor(code))
    refresh_masks(layer)
    assert torch.equal(layer.sparsity, encode(layer.pattern, "dense"))
    assert layer.weighting == "dense"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weighting", ["masked", "soft"])
def test_other_dtypes(net: Net, x: torch.Tensor, dtype: torch.dtype, weighting: str) -> None:
    sparsify(net, "2:4T")
    for layer in sparse_layers(net).values():
        layer.weighting = weighting
    expected = net(x)
    net.to(dtype)
    for layer in sparse_layers(net).values():
        assert (layer.mask.dtype, layer.sparsity.dtype) == (torch.bool, torch.int64)
        assert layer.effective_weight().dtype == layer.weight.dtype == dtype
    y = net(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)
    y.float().sum().backward()
    assert net.head.weight.grad.dtype == dtype
    refresh_masks(net)
    assert all(layer.as_mask().violations() == 0 for layer in sparse_layers(net).values())


@pytest.mark.parametrize("method", ["half", "bfloat16", "double", "float", "cpu"])
def test_conversions_keep_the_masks(net: Net, method: str) -> None:
    sparsify(net, "4:8T")
    before = {name: layer.mask.clone() for name, layer in sparse_layers(net).items()}
    getattr(net, method)()
    assert all(torch.equal(layer.mask, before[n]) for n, layer in sparse_layers(net).items())
    densify(net)


def test_channels_last(net: Net, x: torch.Tensor) -> None:
    sparsify(net, "2:4T")
    expected = net(x)
    net.to(memory_format=torch.channels_last)
    assert net.stem.mask.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), expected)
    refresh_masks(net)
    densify(net)
    assert net.stem.weight.is_contiguous(memory_format=torch.channels_last)


def test_frozen_layers(net: Net, x: torch.Tensor) -> None:
    net.mlp.requires_grad_(False)
    sparsify(net, "2:4T")
    assert not net.mlp[0].weight.requires_grad
    net(x).sum().backward()
    assert net.mlp[0].weight.grad is None
    assert net.stem.weight.grad is not None
    refresh_masks(net)
    densify(net)
    assert not net.mlp[0].weight.requires_grad
    assert net.stem.weight.requires_grad


def test_inference_mode(net: Net, x: torch.Tensor) -> None:
    sparsify(net, "2:4T")
    expected = net(x)
    with torch.inference_mode():
        assert torch.equal(net(x), expected)
        refresh_masks(net)
    net(x).sum().backward()


def test_save_pretrained(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=32, n_positions=8)
    model, other = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    dense = set(model.state_dict())
    changes = sparsify(model, "2:4T")
    names = [
        f"transformer.h.0.{n}" for n in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    ]
    assert [change.name for change in changes] == [*names, "lm_head"]
    assert [change.kind for change in changes] == ["Conv1D"] * 4 + ["Linear"]
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = set(file.keys())
        state = {key: file.get_tensor(key) for key in keys}
    buffers = {f"{n}.{b}" for n in [*names, "lm_head"] for b in ("mask", "sparsity", "scale")}
    assert keys == dense - {"lm_head.weight"} | buffers  # tied to the embedding
    sparsify(other, "2:4T")
    report = other.load_state_dict(state, strict=False)
    assert (report.missing_keys, report.unexpected_keys) == (["lm_head.weight"], [])
    tokens = torch.arange(6).reshape(1, 6)
    assert torch.equal(other(tokens).logits, model(tokens).logits)
    densify(model)
    assert set(model.state_dict()) == dense
    model.save_pretrained(tmp_path / "dense")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "dense")
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_an_encoder_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=32,
    )
    model = BertModel(config).eval()
    changes = sparsify(model, {"re:attention": "4:8T", "encoder.*": "2:4T"})
    assert len(changes) == 6
    dense = copy.deepcopy(model)
    densify(dense)
    tokens = torch.arange(6).reshape(1, 6)
    torch.testing.assert_close(
        model(tokens).last_hidden_state, dense(tokens).last_hidden_state, rtol=0, atol=0
    )
