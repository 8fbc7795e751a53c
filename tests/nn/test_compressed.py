"""Compressed layers: the numbers of the masked ones, files that can be trusted, clear refusals."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from tests.nn.conftest import Frozen, Net
from transposable import compress, densify, load_compressed, save_compressed, sparsify
from transposable.errors import (
    CheckpointError,
    CompressionError,
    DeviceError,
    FileError,
    NoEffectWarning,
    OutputError,
    PlanError,
    SelectionError,
    SparseFormatError,
)
from transposable.nn import CompressedLinear, SparseLinear, sparse_layers
from transposable.pattern import Pattern
from transposable.sparse import Blocking, Stream
from transposable.sparse.planner import Verdict

DTYPES = [torch.float32, torch.bfloat16]


def mlp(*sides: int, bias: bool = True, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(sides):
        layers += [nn.Linear(into, out, bias=bias), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


def pair(pattern: str = "2:4T", *sides: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    """The same model, masked dense and compressed."""
    model = mlp(*(sides or (40, 24, 8)), **options)
    sparsify(model, pattern)
    dense = copy.deepcopy(model)
    densify(dense)
    compress(model)
    return dense, model


def close(model: nn.Module, dense: nn.Module, x: torch.Tensor, **tolerance: float) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(model(x), dense(x), **tolerance)


# ---- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", ["2:4T", "4:8T", "8:16T", "2:8T", "1:4T", "2:4", "2:4S", "30%"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("tokens", [(), (0,), (1,), (7,), (3, 5), (49,)])
def test_the_numbers_of_the_masked_model(pattern: str, bias: bool, tokens: Any) -> None:
    dense, model = pair(pattern, 40, 70, 24, bias=bias)
    close(model, dense, torch.randn(*tokens, 40))


@pytest.mark.parametrize("sides", [(1, 5), (5, 3), (17, 33), (129, 66)])
def test_ragged_sides(sides: Any) -> None:
    dense, model = pair("2:4T", *sides)
    close(model, dense, torch.randn(3, sides[0]))


def test_inputs_of_any_strides() -> None:
    dense, model = pair()
    wide = torch.randn(40, 6, 10)
    close(model, dense, wide.permute(2, 1, 0))
    close(model, dense, torch.randn(9, 80)[::2, ::2])
    close(model, dense, torch.randn(40).expand(4, 40))


def test_values_in_bfloat16() -> None:
    model = mlp(40, 24)
    sparsify(model, "2:4T")
    dense = copy.deepcopy(model)
    densify(dense)
    with torch.no_grad():
        dense[0].weight.copy_(dense[0].weight.bfloat16())
    (changed,) = compress(model, dtype=torch.bfloat16).layers
    assert changed.dtype == model[0].values.dtype == torch.bfloat16
    close(model, dense, torch.randn(9, 40))  # products and sums are of float32


@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_a_model_in_bfloat16(dtype: torch.dtype | None) -> None:
    model = mlp(40, 24).bfloat16()
    sparsify(model, "2:4T")
    dense = copy.deepcopy(model)
    densify(dense)
    compress(model, dtype=dtype)
    assert model[0].values.dtype == dtype or torch.bfloat16
    x = torch.randn(9, 40, dtype=torch.bfloat16)
    close(model, dense, x, rtol=0.02, atol=0.01)
    assert model(x.detach()).dtype == torch.bfloat16


def test_autocast_gives_the_dtype_of_dense() -> None:
    dense, model = pair()
    x = torch.randn(9, 40)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        found, expected = model(x), dense(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


def test_pruned_weights_may_be_anything() -> None:
    model = mlp(16, 8)
    sparsify(model, "2:4T")
    dense = copy.deepcopy(model)
    densify(dense)
    with torch.no_grad():
        model[0].weight[~model[0].mask] = float("nan")
    compress(model)
    close(model, dense, torch.randn(3, 16))


def test_soft_weights_are_stored_as_they_are_used() -> None:
    model = mlp(16, 8)
    sparsify(model, "2:4T")
    model[0].weighting = "soft"
    x = torch.randn(3, 16)
    with torch.inference_mode():
        expected = model(x)
    compress(model)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("row_block", [4, 8])
@pytest.mark.parametrize("col_block", [8, 24, 65536])
def test_any_blocking_is_right(row_block: int, col_block: int) -> None:
    layer = SparseLinear(40, 24, pattern="2:4T")
    stream = Stream.build(layer.mask, Blocking(row_block, col_block))
    stream.fill(layer.weight)
    compressed = CompressedLinear(stream, layer.pattern, layer.bias).eval()
    close(compressed, layer, torch.randn(9, 40))
    torch.testing.assert_close(compressed.dense_weight(), layer.effective_weight().detach())


def test_threads_change_no_bit() -> None:
    _, model = pair("4:8T", 256, 264)
    x = torch.randn(100, 256)
    with torch.inference_mode():
        expected = model(x)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(model(x), expected)


# ---- size --------------------------------------------------------------------------------------


# Bytes of dense float32 in blocks of 8 rows, and in those of 4 that suit AVX2.
SHARES = {"2:4T": (0.58, 0.59), "4:8T": (0.59, 0.6), "2:8T": (0.33, 0.34)}


@pytest.mark.parametrize("pattern", SHARES)
def test_bytes(pattern: str) -> None:
    model = nn.Linear(1024, 4096, bias=False)
    sparsify(model, pattern)
    rows = Blocking.best(Pattern.parse(pattern), 1024).row_block
    share = SHARES[pattern][rows == 4]
    done = compress(model)
    assert done.bytes_before == 4 * 1024 * 4096
    held = sum(buffer.nbytes for buffer in model.buffers())
    assert held == done.bytes_after + model.header.nbytes == model.nbytes
    assert held <= share * done.bytes_before
    assert not list(model.parameters())


def test_bfloat16_takes_half_of_the_values() -> None:
    single, half = nn.Linear(1024, 1024), nn.Linear(1024, 1024)
    for model in (single, half):
        sparsify(model, "4:8T")
    expected = compress(single).bytes_after - 2 * 1024 * 1024 // 2
    # Other masks: a few runs more or less.
    assert compress(half, dtype=torch.bfloat16).bytes_after == pytest.approx(expected, rel=0.01)


# ---- which layers ------------------------------------------------------------------------------


def test_what_cannot_be_compressed_is_left_with_the_reason(net: Net, x: torch.Tensor) -> None:
    sparsify(net, "2:4T", exclude="mlp.2")
    net.eval()
    with torch.no_grad():
        expected = net(x)
    done = compress(net)
    assert [layer.name for layer in done.layers] == ["mlp.0", "head"]
    assert [(layer.shape, str(layer.pattern)) for layer in done.layers] == [
        ((32, 16), "2:4T"),
        ((12, 16), "2:4T"),
    ]
    assert set(done.left) == {"stem", "conv", "mlp.2"}
    assert "only linear layers" in done.left["stem"]
    assert "sparsify it first" in done.left["mlp.2"]
    with torch.inference_mode():
        torch.testing.assert_close(net(x), expected)


def test_other_reasons() -> None:
    model = nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)), nn.Embedding(8, 16))
    sparsify(model, "2:4T")
    model[0].half()
    model[1].weighting = "dense"
    nn.utils.parametrizations.weight_norm(model[2])
    model[3].to("meta")
    done = compress(model)
    assert [layer.name for layer in done.layers] == ["4"]
    for name, words in {
        "0": "float16",
        "1": "rests",
        "3": "runs on CPUs",
        "5": "Embedding",
    }.items():
        assert words in done.left[name]
    assert isinstance(model[4], CompressedLinear)
    assert type(model[0]) is SparseLinear


def test_include_and_exclude() -> None:
    model = mlp(16, 16, 16, 16)
    sparsify(model, "2:4T")
    done = compress(model, include=["0", "2"], exclude="2")
    assert [layer.name for layer in done.layers] == ["0"]
    assert done.left == {}
    with pytest.raises(SelectionError, match="head"):
        compress(model, include="head")


def test_a_second_call_compresses_the_rest() -> None:
    model = mlp(16, 16, 16)
    sparsify(model, "2:4T")
    compress(model, include="0")
    done = compress(model)
    assert [layer.name for layer in done.layers] == ["2"]
    assert done.left == {"0": "compressed already"}
    with pytest.warns(NoEffectWarning, match="compressed already"):
        assert not compress(model).layers
    with pytest.warns(NoEffectWarning, match="no weight"):
        assert not compress(nn.ReLU()).layers


def test_nothing_to_compress_is_said(unchanged: Frozen) -> None:
    model = mlp(16, 8)
    with unchanged(model), pytest.warns(NoEffectWarning, match="sparsify it first"):
        done = compress(model)
    assert (done.layers, done.bytes_before, done.bytes_after) == ((), 0, 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"dtype": torch.float16}, CompressionError),
        ({"dtype": "bfloat16"}, CompressionError),
        ({"tokens": 0}, PlanError),
        ({"tokens": 1.5}, PlanError),
        ({"include": 3}, SelectionError),
    ],
)
def test_wrong_options_change_nothing(options: Any, error: Any, unchanged: Frozen) -> None:
    model = mlp(16, 8)
    sparsify(model, "2:4T")
    with unchanged(model), pytest.raises(error):
        compress(model, **options)


def test_only_where_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from transposable.nn import compression

    asked = []

    class Told:
        def forward(self, question: Any) -> Verdict:
            asked.append((question.rows, question.cols, question.tokens))
            return Verdict("nm_cpu" if question.rows == 24 else "dense_masked", 1.0, "it is told")

    monkeypatch.setattr(compression, "planner", Told)
    model = mlp(40, 24, 8)
    sparsify(model, "2:4T")
    done = compress(model, tokens=100)
    assert asked == [(24, 40, 100), (8, 24, 100)]
    assert [layer.name for layer in done.layers] == ["0"]
    assert done.left == {"2": "faster dense at 100 tokens: it is told"}


def test_modules_keep_their_identity() -> None:
    model = mlp(16, 8)
    sparsify(model, "2:4T")
    layer, calls = model[0], []
    layer.register_forward_hook(lambda *_: calls.append(1))
    compress(model)
    assert model[0] is layer
    model(torch.ones(1, 16))
    assert calls == [1]
    assert sparse_layers(model) == {}


def test_a_shared_layer_and_a_shared_weight() -> None:
    layer, other = nn.Linear(16, 16), nn.Linear(16, 16)
    other.weight = layer.weight
    model = nn.Sequential(layer, layer, other).eval()
    sparsify(model, "2:4T")
    dense = copy.deepcopy(model)
    densify(dense)
    done = compress(model)
    assert [(it.name, it.bytes_before) for it in done.layers] == [("0", 1024), ("2", 0)]
    assert model[0] is model[1]
    close(model, dense, torch.randn(3, 16))


def test_the_fused_encoder_layer_of_torch() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    sparsify(model, "2:4T", include="linear*")
    dense = copy.deepcopy(model)
    densify(dense)
    compress(model)
    close(model, dense, torch.randn(2, 5, 16))


def test_networks_of_transformers() -> None:
    torch.manual_seed(0)
    bert = BertModel(
        BertConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2))
    for model in (bert.eval(), gpt.eval()):
        sparsify(model, "2:4T", exclude="re:lm_head|pooler")
        dense = copy.deepcopy(model)
        densify(dense)
        assert compress(model).layers
        ids = torch.arange(6).reshape(1, 6)
        with torch.inference_mode():
            torch.testing.assert_close(model(ids)[0], dense(ids)[0], rtol=1e-4, atol=1e-5)


# ---- what a compressed layer does not do -------------------------------------------------------


def test_gradients_are_refused() -> None:
    _, model = pair()
    x = torch.randn(3, 40, requires_grad=True)
    with pytest.raises(CompressionError, match="inference_mode"):
        model(x)
    with torch.no_grad():
        model(x)
    stream = model[0].stream
    y = torch.ops.transposable.nm_packed_linear(
        x, stream.index, stream.starts, stream.values, None, 24, 40, *blocks(stream)
    )
    with pytest.raises(CompressionError, match="train the sparse model"):
        y.sum().backward()


def test_training_mode_is_refused() -> None:
    _, model = pair()
    model.train()
    with pytest.raises(CompressionError, match=r"model\.eval"):
        model(torch.ones(1, 40))


def test_there_is_no_dense_weight() -> None:
    _, model = pair()
    with pytest.raises(AttributeError, match="dense_weight"):
        _ = model[0].weight
    assert not hasattr(model[0], "weight")
    with pytest.raises(AttributeError, match="nosuch"):
        _ = model[0].nosuch


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(3, 39), SparseFormatError, "last dimension"),
        (torch.ones(()), SparseFormatError, "last dimension"),
        (torch.ones(3, 40, dtype=torch.float64), SparseFormatError, "float32"),
        (torch.ones(3, 40, dtype=torch.int64), SparseFormatError, "float32"),
    ],
)
def test_wrong_inputs(x: torch.Tensor, error: Any, message: str) -> None:
    _, model = pair()
    with pytest.raises(error, match=message):
        model(x)


def test_another_device_is_refused() -> None:
    _, model = pair()
    model.to("meta")
    with pytest.raises(DeviceError, match="both must be on the CPU"):
        model(torch.ones(3, 40))
    stream = model[0].stream
    with pytest.raises(DeviceError, match="both must be on the CPU"):
        torch.ops.transposable.nm_packed_linear(
            torch.ones(3, 40),
            stream.index,
            stream.starts,
            stream.values,
            None,
            24,
            40,
            *blocks(stream),
        )
    assert model(torch.ones(3, 40, device="meta")).shape == (3, 8)


def test_other_dtypes_of_the_values_are_refused() -> None:
    dense, model = pair()
    with pytest.raises(SparseFormatError, match="float16"):
        copy.deepcopy(model).half()(torch.ones(3, 40))
    model.bfloat16()
    x = torch.randn(3, 40)
    close(model, dense, x, rtol=0.03, atol=0.02)


# ---- the operator ------------------------------------------------------------------------------


def blocks(stream: Stream) -> tuple[int, int]:
    return stream.blocking.row_block, stream.blocking.col_block


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(dtype: torch.dtype, bias: bool) -> None:
    _, model = pair()
    stream, own = model[0].stream, model[0].bias if bias else None
    x = torch.randn(3, 5, 40, dtype=dtype)
    torch.library.opcheck(
        torch.ops.transposable.nm_packed_linear.default,
        (x, stream.index, stream.starts, stream.values, own, 24, 40, *blocks(stream)),
    )


def test_the_operator_sees_tensors_that_are_no_stream() -> None:
    _, model = pair()
    stream = model[0].stream
    parts: dict[str, Any] = {
        "x": torch.ones(3, 40),
        "index": stream.index,
        "starts": stream.starts,
        "values": stream.values,
        "bias": None,
        "rows": 24,
        "cols": 40,
        "row_block": blocks(stream)[0],
        "col_block": blocks(stream)[1],
    }
    operator = torch.ops.transposable.nm_packed_linear
    for wrong in (
        {"rows": 240},
        {"row_block": 5},
        {"col_block": 0},
        {"values": stream.values[:-1]},
        {"index": stream.index[:-1]},
        {"index": stream.index.long()},
        {"starts": stream.starts[:, :-1]},
        {"bias": torch.ones(7)},
    ):
        with pytest.raises(SparseFormatError):
            operator(**{**parts, **wrong})


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_whole_model_is_compiled_as_one_graph() -> None:
    dense, model = pair()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (3, 50):
        close(compiled, dense, torch.randn(tokens, 40))


# ---- files and copies --------------------------------------------------------------------------


def test_copies_and_pickles() -> None:
    dense, model = pair()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    twins = (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(file, weights_only=False),
    )
    for twin in twins:
        close(twin, dense, torch.randn(3, 40), rtol=1e-5, atol=1e-6)
        assert twin[0].blocking == model[0].blocking


@pytest.mark.parametrize("values", DTYPES)
def test_a_state_dict_goes_into_a_model_with_other_masks(
    tmp_path: Path, values: torch.dtype
) -> None:
    path = tmp_path / "model.safetensors"
    sources = [mlp(40, 24, 8, seed=seed) for seed in (0, 1)]
    for model in sources:
        sparsify(model, "2:4T")
        compress(model, dtype=values)
    assert not torch.equal(sources[0][0].values, sources[1][0].values)
    save_model(sources[0], str(path))
    assert load_model(sources[1], str(path)) == (set(), [])
    x = torch.randn(3, 40)
    with torch.inference_mode():
        assert torch.equal(sources[0](x), sources[1](x))
    held = load_file(path)
    assert held["0.index"].dtype == torch.uint16
    assert held["0.starts"].dtype == held["0.header"].dtype == torch.int64
    assert held["0.values"].dtype == values


@pytest.mark.parametrize("kind", ["dense", "sparse", "compressed", "meta"])
def test_a_file_goes_into_the_architecture(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    _, model = pair()
    save_compressed(model, path)
    if kind == "meta":
        with torch.device("meta"):
            other = mlp(40, 24, 8)
    else:
        other = mlp(40, 24, 8, seed=7)
        if kind != "dense":
            sparsify(other, "1:4T")
        if kind == "compressed":
            compress(other)
    done = load_compressed(other, path)
    assert [layer.name for layer in done.layers] == ["0", "2"]
    assert [str(layer.pattern) for layer in done.layers] == ["2:4T", "2:4T"]
    x = torch.randn(3, 40)
    with torch.inference_mode():
        assert torch.equal(other(x), model(x))
    assert [path.name] == [file.name for file in tmp_path.iterdir()]


def test_a_file_of_a_whole_network(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    config = GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=2, n_head=2)
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config).eval()
    sparsify(model, "2:4T", exclude="lm_head")  # shares its weight with the embedding
    compress(model)
    save_compressed(model, path)
    other = GPT2LMHeadModel(config).eval()
    load_compressed(other, path)
    ids = torch.arange(6).reshape(1, 6)
    with torch.inference_mode():
        assert torch.equal(other(ids)[0], model(ids)[0])


@pytest.mark.parametrize("reblock", [True, False])
def test_a_file_of_another_machine(tmp_path: Path, reblock: bool) -> None:
    path = tmp_path / "model.safetensors"
    source = SparseLinear(40, 24, pattern="2:4T")
    with torch.no_grad():
        source.weight[0, source.mask[0]] = 0.0  # kept zeros stay kept
    other = 4 if Blocking.best(source.pattern, 40).row_block == 8 else 8
    stream = Stream.build(source.mask, Blocking(other, 24))
    stream.fill(source.weight)
    save_compressed(nn.Sequential(CompressedLinear(stream, source.pattern, source.bias)), path)
    model = nn.Sequential(nn.Linear(40, 24)).eval()
    load_compressed(model, path, reblock=reblock)
    assert (model[0].blocking == Blocking.best(source.pattern, 40)) == reblock
    assert len(model[0].values) == int(source.mask.sum())
    close(model, nn.Sequential(source), torch.randn(9, 40))


def saved(tmp_path: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    path = tmp_path / "model.safetensors"
    _, model = pair()
    save_compressed(model, path)
    return path, load_file(path)


def spoil(state: dict[str, torch.Tensor], name: str, place: int, value: int) -> None:
    state[name] = state[name].clone()
    flat = state[name].view(torch.int16 if state[name].dtype == torch.uint16 else torch.int64)
    flat.view(-1)[place] = value


SPOILED: dict[str, Any] = {
    "a column outside": lambda state: spoil(state, "2.index", 2, 30000),
    "a run too long": lambda state: spoil(state, "2.index", 1, 30000),
    "a type of no row": lambda state: spoil(state, "2.index", 0, 0),
    "a start outside": lambda state: spoil(state, "2.starts", 1, 1 << 40),
    "a negative start": lambda state: spoil(state, "2.starts", 1, -5),
    "another format": lambda state: spoil(state, "2.header", 0, 1),
    "other rows": lambda state: spoil(state, "2.header", 1, 16),
    "no such block": lambda state: spoil(state, "2.header", 3, 16),
    "no such pattern": lambda state: spoil(state, "2.header", 5, 99),
    "no such structure": lambda state: spoil(state, "2.header", 7, -1),
    "a short header": lambda state: state.update({"2.header": state["2.header"][:5]}),
    "values too few": lambda state: state.update({"2.values": state["2.values"][:-3]}),
    "values of another dtype": lambda state: state.update({"2.values": state["2.values"].double()}),
    "an index of another dtype": lambda state: state.update({"2.index": state["2.index"].long()}),
    "a bias too short": lambda state: state.update({"2.bias": state["2.bias"][:3]}),
    "no bias": lambda state: state.pop("2.bias"),
    "no values": lambda state: state.pop("2.values"),
    "something more": lambda state: state.update({"3.weight": torch.ones(2)}),
    "an unknown layer": lambda state: state.update(
        {f"9.{key}": state[f"2.{key}"].clone() for key in ("index", "starts", "values", "header")}
    ),
}


@pytest.mark.parametrize("kind", SPOILED)
def test_a_spoiled_file_changes_nothing(tmp_path: Path, kind: str, unchanged: Frozen) -> None:
    path, state = saved(tmp_path)
    SPOILED[kind](state)
    save_file(state, path)
    model = mlp(40, 24, 8)
    with unchanged(model), pytest.raises(CheckpointError):
        load_compressed(model, path)


def test_a_spoiled_state_dict_is_refused(tmp_path: Path) -> None:
    _, state = saved(tmp_path)
    SPOILED["a column outside"](state)
    _, model = pair()
    with pytest.raises(CheckpointError, match=r"'2'.*corrupt"):
        model.load_state_dict(state)


def test_a_state_dict_that_lacks_something(tmp_path: Path) -> None:
    _, state = saved(tmp_path)
    del state["2.values"]
    _, model = pair()
    with pytest.raises(RuntimeError, match=r"Missing key.*2\.values"):
        model.load_state_dict(state)


@pytest.mark.parametrize(
    "build",
    [
        lambda: mlp(40, 24, 12),
        lambda: mlp(40, 24, 8, bias=False),
        lambda: mlp(40, 24),
        lambda: nn.Sequential(nn.Linear(40, 24), nn.ReLU(), nn.Conv1d(24, 8, 1)),
        lambda: nn.Sequential(nn.Linear(40, 24), nn.LayerNorm(24), nn.Linear(24, 8)),
    ],
)
def test_another_architecture_is_refused(tmp_path: Path, build: Any, unchanged: Frozen) -> None:
    path, _ = saved(tmp_path)
    model = build()
    with unchanged(model), pytest.raises(CheckpointError, match=r"architecture|lacks"):
        load_compressed(model, path)


def test_files_that_are_none(tmp_path: Path) -> None:
    model = mlp(40, 24, 8)
    with pytest.raises(FileError, match="cannot be read"):
        load_compressed(model, tmp_path / "missing.safetensors")
    (tmp_path / "text").write_text("no safetensors")
    with pytest.raises(FileError, match="cannot be read"):
        load_compressed(model, tmp_path / "text")
    save_model(model, str(tmp_path / "dense"))
    with pytest.raises(CheckpointError, match="no compressed layer"):
        load_compressed(model, tmp_path / "dense")
    with pytest.raises(CheckpointError, match="compress"):
        save_compressed(model, tmp_path / "dense")
    _, compressed = pair()
    save_file(compressed.state_dict(), tmp_path / "new", {"transposable.compressed.format": "2"})
    with pytest.raises(CheckpointError, match="format '2'"):
        load_compressed(model, tmp_path / "new")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    _, model = pair()
    with pytest.raises(OutputError, match="untouched"):
        save_compressed(model, tmp_path / "missing" / "model.safetensors")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="untouched"):
        save_compressed(model, tmp_path / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_plan_of_a_compressed_layer() -> None:
    from transposable.sparse import plan

    _, model = pair()
    answer = plan(model[0], tokens=64)
    assert (answer.shape, str(answer.pattern)) == ((24, 40), "2:4T")


def test_the_header_names_the_pattern() -> None:
    _, model = pair("4:8T")
    assert model[0].header.tolist()[5:] == [4, 8, 1]
    assert model[0].pattern == Pattern.parse("4:8T")
