"""The default choice of tensors, on the parameter lists of well-known models."""

from __future__ import annotations

import re
from typing import Any

import pytest

from transposable import LayoutError, Pattern, SelectionError
from transposable.export import Choice, select
from transposable.export.policy import Tensor

Shapes = dict[str, tuple[int, ...]]


def bert(layers: int = 2, d: int = 8, prefix: str = "") -> Shapes:
    names: Shapes = {
        "embeddings.position_ids": (1, 512),
        "embeddings.word_embeddings.weight": (30522, d),
        "embeddings.position_embeddings.weight": (512, d),
        "embeddings.token_type_embeddings.weight": (2, d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
        "pooler.dense.weight": (d, d),
        "pooler.dense.bias": (d,),
    }
    for i in range(layers):
        block = f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            names[f"{block}.attention.self.{part}.weight"] = (d, d)
            names[f"{block}.attention.self.{part}.bias"] = (d,)
        names[f"{block}.attention.output.dense.weight"] = (d, d)
        names[f"{block}.attention.output.LayerNorm.weight"] = (d,)
        names[f"{block}.intermediate.dense.weight"] = (4 * d, d)
        names[f"{block}.output.dense.weight"] = (d, 4 * d)
    return {prefix + name: shape for name, shape in names.items()}


RESNET50: Shapes = {
    "conv1.weight": (64, 3, 7, 7),
    "bn1.weight": (64,),
    "bn1.running_mean": (64,),
    "bn1.num_batches_tracked": (),
    "layer1.0.conv1.weight": (64, 64, 1, 1),
    "layer1.0.conv2.weight": (64, 64, 3, 3),
    "layer1.0.downsample.0.weight": (256, 64, 1, 1),
    "layer4.2.conv3.weight": (2048, 512, 1, 1),
    "fc.weight": (1000, 2048),
    "fc.bias": (1000,),
}

CASES: dict[str, tuple[Shapes, dict[str, Any], str]] = {
    # name: (shapes, config, regular expression of what is pruned)
    "resnet50": (RESNET50, {}, r"layer"),
    "cifar resnet": (
        {
            "conv1.weight": (16, 3, 3, 3),
            "layer1.0.conv1.weight": (16, 16, 3, 3),
            "linear.weight": (10, 64),
        },
        {},
        r"layer1",
    ),
    "resnext": (
        {
            "conv1.weight": (64, 3, 7, 7),
            "layer1.0.conv1.weight": (128, 64, 1, 1),
            "layer1.0.conv2.weight": (128, 4, 3, 3),
            "fc.weight": (1000, 2048),
        },
        {},
        r"layer1.0.conv1",
    ),
    "mobilenet v2": (
        {
            "features.0.0.weight": (32, 3, 3, 3),
            "features.1.conv.0.0.weight": (32, 1, 3, 3),
            "features.1.conv.1.weight": (16, 32, 1, 1),
            "classifier.1.weight": (1000, 1280),
        },
        {},
        r"conv\.1\.weight",
    ),
    "vgg16": (
        {
            "features.0.weight": (64, 3, 3, 3),
            "features.2.weight": (64, 64, 3, 3),
            "features.10.weight": (256, 128, 3, 3),
            "classifier.0.weight": (4096, 25088),
            "classifier.3.weight": (4096, 4096),
            "classifier.6.weight": (1000, 4096),
        },
        {},
        r"features\.(2|10)|classifier\.[03]",
    ),
    "bert": (bert(), {}, r"encoder"),
    "bert mlm": (
        {
            **bert(prefix="bert."),
            "cls.predictions.transform.dense.weight": (8, 8),
            "cls.predictions.decoder.weight": (30522, 8),
        },
        {"tie_word_embeddings": True},
        r"encoder",
    ),
    "roberta classifier": (
        {
            **bert(prefix="roberta."),
            "classifier.dense.weight": (8, 8),
            "classifier.out_proj.weight": (2, 8),
        },
        {},
        r"encoder|classifier\.dense",
    ),
    "llama": (
        {
            "model.embed_tokens.weight": (32000, 8),
            "model.layers.0.self_attn.q_proj.weight": (8, 8),
            "model.layers.0.mlp.gate_proj.weight": (16, 8),
            "model.layers.0.mlp.down_proj.weight": (8, 16),
            "model.layers.0.input_layernorm.weight": (8,),
            "model.norm.weight": (8,),
            "lm_head.weight": (32000, 8),
        },
        {"vocab_size": 32000},
        r"proj",
    ),
    "llama, original names": (
        {
            "tok_embeddings.weight": (32000, 8),
            "layers.0.attention.wq.weight": (8, 8),
            "layers.0.feed_forward.w1.weight": (16, 8),
            "output.weight": (32000, 8),
        },
        {},
        r"layers",
    ),
    "gpt2": (
        {
            "wte.weight": (50257, 8),
            "wpe.weight": (1024, 8),
            "h.0.ln_1.weight": (8,),
            "h.0.attn.bias": (1, 1, 1024, 1024),
            "h.0.attn.c_attn.weight": (8, 24),
            "h.0.attn.c_attn.bias": (24,),
            "h.0.attn.c_proj.weight": (8, 8),
            "h.0.mlp.c_fc.weight": (8, 32),
            "h.0.mlp.c_proj.weight": (32, 8),
        },
        {"model_type": "gpt2"},
        r"h\.0\.\w+\.c_\w+\.weight",
    ),
    "vit": (
        {
            "vit.embeddings.cls_token": (1, 1, 8),
            "vit.embeddings.position_embeddings": (1, 197, 8),
            "vit.embeddings.patch_embeddings.projection.weight": (8, 3, 16, 16),
            "vit.encoder.layer.0.attention.attention.query.weight": (8, 8),
            "vit.encoder.layer.0.layernorm_before.weight": (8,),
            "classifier.weight": (1000, 8),
        },
        {},
        r"query",
    ),
    "vit, timm": (
        {
            "cls_token": (1, 1, 8),
            "pos_embed": (1, 197, 8),
            "patch_embed.proj.weight": (8, 3, 16, 16),
            "blocks.0.attn.qkv.weight": (24, 8),
            "head.weight": (1000, 8),
        },
        {},
        r"qkv",
    ),
    "mixtral": (
        {
            "model.embed_tokens.weight": (32000, 8),
            "model.layers.0.block_sparse_moe.gate.weight": (8, 16),
            "model.layers.0.block_sparse_moe.experts.0.w1.weight": (16, 8),
            "model.layers.0.block_sparse_moe.experts.1.w1.weight": (16, 8),
            "lm_head.weight": (32000, 8),
        },
        {},
        r"experts",
    ),
    "stacked experts": (
        {
            "model.layers.0.mlp.router.weight": (4, 8),
            "model.layers.0.mlp.experts.gate_up_proj": (4, 8, 32),
            "model.layers.0.mlp.experts.gate_up_proj_bias": (4, 32),
            "model.layers.0.mlp.experts.down_proj": (4, 16, 8),
        },
        {"model_type": "gpt_oss"},
        r"experts\.\w+proj$",
    ),
    "t5": (
        {
            "shared.weight": (32128, 8),
            "encoder.embed_tokens.weight": (32128, 8),
            "encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8),
            "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, 8),
            "encoder.block.0.layer.1.DenseReluDense.wi_0.weight": (16, 8),
            "decoder.block.0.layer.1.EncDecAttention.o.weight": (8, 8),
            "lm_head.weight": (32128, 8),
        },
        {},
        r"\.(q|wi_0|o)\.weight",
    ),
    "mamba": (
        {
            "backbone.embeddings.weight": (50280, 8),
            "backbone.layers.0.mixer.A_log": (16, 8),
            "backbone.layers.0.mixer.conv1d.weight": (16, 1, 4),
            "backbone.layers.0.mixer.in_proj.weight": (32, 8),
        },
        {},
        r"in_proj",
    ),
    "multihead attention": (
        {"layers.0.self_attn.in_proj_weight": (24, 8), "layers.0.linear1.weight": (16, 8)},
        {},
        r".",
    ),
    "bare names": ({"w": (8, 8), "linear.weight": (8, 8), "fc.weight": (8, 8)}, {}, r"."),
    "sequential": ({"0.weight": (8, 8), "2.weight": (8, 8)}, {}, r"."),
    "unknown names of a vocabulary": (
        {"a.weight": (50000, 8), "b.weight": (8, 8)},
        {"vocab_size": 50000},
        r"b",
    ),
}


def tensors_of(shapes: Shapes, dtype: str = "F32") -> list[Tensor]:
    integer = ("num_batches_tracked", "position_ids")
    return [
        Tensor(name, "I64" if name.endswith(integer) else dtype, shape)
        for name, shape in shapes.items()
    ]


@pytest.mark.parametrize("case", CASES)
def test_known_models(case: str) -> None:
    shapes, config, expected = CASES[case]
    decisions = select(tensors_of(shapes), config, Pattern.parse("2:4T"))
    assert [d.tensor.name for d in decisions] == list(shapes)
    pruned = {d.tensor.name for d in decisions if d.pruned}
    should = {n for n in shapes if re.search(expected, n) and len(shapes[n]) > 1}
    if case == "stacked experts":
        should.discard("model.layers.0.mlp.experts.gate_up_proj_bias")
    assert pruned == should
    assert all(d.reason for d in decisions if not d.pruned), "a reason for everything left dense"


def test_reasons() -> None:
    def reasons(case: str) -> dict[str, str]:
        shapes, config, _ = CASES[case]
        return {
            d.tensor.name: d.reason
            for d in select(tensors_of(shapes), config, Pattern.parse("2:4T"))
        }

    resnet = reasons("resnet50")
    assert resnet["conv1.weight"] == "first convolution"
    assert resnet["bn1.weight"] == "norm"
    assert resnet["fc.weight"] == "head or pooler"
    assert resnet["fc.bias"] == "bias"
    assert resnet["bn1.num_batches_tracked"].startswith("dtype I64")
    assert "--groups" in reasons("resnext")["layer1.0.conv2.weight"]
    assert reasons("mobilenet v2")["features.1.conv.0.0.weight"] == "depthwise convolution"
    assert "tied" in reasons("bert mlm")["bert.embeddings.word_embeddings.weight"]
    assert "tied" in reasons("bert mlm")["cls.predictions.decoder.weight"]
    assert reasons("mixtral")["model.layers.0.block_sparse_moe.gate.weight"].startswith("router")
    assert "A_log" in reasons("mamba")["backbone.layers.0.mixer.A_log"]
    assert "vocabulary" in reasons("unknown names of a vocabulary")["a.weight"]


def test_layouts() -> None:
    shapes: Shapes = {
        "a": (8, 8),
        "conv": (8, 8, 3),
        "wide.conv": (8, 8, 128),
        "video": (8, 8, 3, 3, 3),
        "experts.up": (4, 8, 8),
        "stack": (4, 32, 32),
        "deep": (2, 2, 2, 2, 8, 8),
    }
    found = select(tensors_of(shapes), {}, Pattern.parse("2:4T"))
    layouts = {d.tensor.name: d.reading.layout.name for d in found if d.reading}
    assert layouts == {
        "a": "linear",
        "conv": "conv",
        "wide.conv": "conv",
        "video": "conv",
        "experts.up": "stacked",
        "stack": "stacked",
        "deep": "stacked",
    }
    with pytest.raises(LayoutError, match="only convolutions have groups"):
        select(
            tensors_of(shapes),
            {},
            Pattern.parse("2:4T"),
            Choice(layouts=["conv=stacked"], groups=["conv=2"]),
        )


def test_bare_layout_is_for_what_fits() -> None:
    tensors = tensors_of({"a": (8, 8), "b": (8, 8, 3)})
    found = select(tensors, {}, Pattern.parse("2:4T"), Choice(layouts=["stacked"]))
    assert [d.reading.layout.name for d in found if d.reading] == ["linear", "stacked"]


def test_weights_stored_in_out() -> None:
    shapes, config, _ = CASES["gpt2"]
    for given in (config, {}):
        plain = select(tensors_of(shapes), given, Pattern.parse("2:4"))
        swapped = [d.tensor.name for d in plain if d.reading and d.reading.transposed]
        assert swapped == [n for n in shapes if ".c_" in n and n.endswith("weight")]
    both = select(tensors_of(shapes), config, Pattern.parse("2:4T"))
    assert not any(d.reading and d.reading.transposed for d in both)
    linear = {"h.0.c_attn.weight": (24, 8), "h.0.c_fc.weight": (32, 8)}  # nn.Linear: [out, in]
    plain = select(tensors_of(linear), {}, Pattern.parse("2:4"))
    assert not any(d.reading and d.reading.transposed for d in plain)
    shapes, config, _ = CASES["stacked experts"]
    plain = select(tensors_of(shapes), config, Pattern.parse("2:4"))
    assert all(d.reading.transposed for d in plain if d.reading)


def names(**choice: Any) -> list[str]:
    found = select(tensors_of(RESNET50), {}, Pattern.parse("2:4T"), Choice(**choice))
    return [d.tensor.name for d in found if d.pruned]


def test_include_and_exclude() -> None:
    assert names(include=["layer1.*"]) == [n for n in RESNET50 if n.startswith("layer1")]
    assert names(include=["fc"]) == ["fc.weight"], "against the policy, because named"
    assert names(include=["re:conv[13]"], exclude=["re:^conv"]) == [
        "layer1.0.conv1.weight",
        "layer4.2.conv3.weight",
    ]
    assert "layer4.2.conv3.weight" not in names(exclude=["layer4.*"])
    found = select(tensors_of(RESNET50), {}, Pattern.parse("2:4T"), Choice(include=["fc*"]))
    notes = {d.tensor.name: (d.reason, d.note) for d in found}
    assert notes["fc.weight"] == ("", "head or pooler; pruned because of --include fc*")
    assert notes["conv1.weight"] == ("not in --include", "")


def test_a_wide_include_prunes_no_buffers() -> None:
    shapes, config, _ = CASES["gpt2"]
    for include, expected in (("h.*", False), ("h.0.attn.bias", True)):
        found = select(
            tensors_of(shapes), config, Pattern.parse("2:4T"), Choice(include=[include, "wte"])
        )
        assert {d.tensor.name: d.pruned for d in found}["h.0.attn.bias"] is expected


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ({"include": ["nosuch"]}, "matches none"),
        ({"include": ["layer1.*", "re:^nosuch"]}, "re:.nosuch' matches none"),
        ({"exclude": ["Layer1.*"]}, "matches none"),
        ({"groups": ["nosuch=2"]}, "matches none"),
        ({"layouts": ["nosuch=conv"]}, "matches none"),
        ({"include": ["re:("]}, "no regular expression"),
        ({"include": ["*bias"]}, "none of which can be pruned"),
        ({"exclude": ["*"]}, "none is left to prune"),
        ({"groups": ["4"]}, "write GLOB=4"),
    ],
)
def test_selection_errors(choice: dict[str, list[str]], match: str) -> None:
    with pytest.raises(SelectionError, match=match):
        names(**choice)


@pytest.mark.parametrize(
    ("choice", "match"),
    [
        ({"layouts": ["linear3d"]}, "the layouts are"),
        ({"layouts": ["layer1.0.conv1=linear"]}, "layer1.0.conv1"),
        ({"groups": ["layer1.0.conv1=x"]}, "integer"),
        ({"groups": ["layer1.0.conv1=0"]}, "groups"),
        ({"groups": ["layer1.0.conv1=7"]}, "divide"),
    ],
)
def test_layout_errors(choice: dict[str, list[str]], match: str) -> None:
    with pytest.raises(LayoutError, match=match):
        names(**choice)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "BOOL", "C64", "F4", "U32"])
def test_other_dtypes_stay_dense(dtype: str) -> None:
    tensors = [Tensor("a.weight", dtype, (8, 8)), Tensor("b.weight", "BF16", (8, 8))]
    found = select(tensors, {}, Pattern.parse("2:4T"))
    assert [d.pruned for d in found] == [False, True]
    assert dtype in found[0].reason
    with pytest.raises(SelectionError, match=dtype):
        select(tensors, {}, Pattern.parse("2:4T"), Choice(include=["a"]))
