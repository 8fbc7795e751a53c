"""transposable prune --calibration on small random models of transformers."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

import transposable
from transposable.cli.show import left_text
from transposable.export import load_masks
from transposable.nn.layer import SparseLayer
from transposable.prune import METHODS, SCORES

Run = Callable[..., Result]

WORDS = ["a", "the", "cat", "dog", "sees", "finds", "river", "house", "old", "new", "and", "runs"]


def sentences(count: int, seed: int = 0) -> list[str]:
    words = random.Random(seed)
    return [" ".join(words.choices(WORDS, k=words.randint(4, 12))) for _ in range(count)]


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text("\n\n".join(sentences(60)) + "\n", encoding="utf-8")
    return path


def save_tokenizer(directory: Path, kind: str) -> int:
    """A tokenizer of these words: of an encoder [CLS] x [SEP], of a Llama <s> x; its size."""
    special = {"encoder": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"], "llama": ["<unk>", "<s>"]}
    tokenizer: Any
    if kind == "gpt2":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        )
        tokenizer.train_from_iterator(sentences(40), trainer)
        names = {}
    else:
        tokenizer = Tokenizer(
            models.WordLevel(unk_token=special[kind][-3 if kind == "encoder" else 0])
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=special[kind])
        tokenizer.train_from_iterator(sentences(40), trainer)
        if kind == "encoder":
            pair = [("[CLS]", 2), ("[SEP]", 3)]
            tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, pair)
            names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
        else:
            tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 1)])
            names = {"unk_token": "<unk>", "bos_token": "<s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(directory)
    return int(tokenizer.get_vocab_size())


def bert_config(vocabulary: int, **more: Any) -> BertConfig:
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=40,
        **more,
    )


def make(directory: Path, kind: str, network: type | None = None) -> Path:
    """A small random model of this kind with its tokenizer."""
    torch.manual_seed(0)
    directory.mkdir()
    vocabulary = save_tokenizer(directory, "encoder" if kind == "bert" else kind)
    model: Any
    if kind == "bert":
        model = (network or BertForSequenceClassification)(bert_config(vocabulary, num_labels=3))
    elif kind == "gpt2":
        model = GPT2LMHeadModel(
            GPT2Config(vocab_size=vocabulary, n_positions=64, n_embd=32, n_layer=2, n_head=2)
        )
    else:
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=32,
                intermediate_size=44,  # ragged under 4:8T
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=64,
                tie_word_embeddings=True,
            )
        )
    for parameter in model.parameters():  # biases of zero would hide what happens to them
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return make(tmp_path / "bert", "bert")


def convert(directory: Path, dtype: torch.dtype) -> None:
    """The weights of a directory in another dtype."""
    path = directory / "model.safetensors"
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})


def same_bytes(one: Path, other: Path, names: set[str]) -> bool:
    with safe_open(one, "pt") as a, safe_open(other, "pt") as b:
        return all(a.get_tensor(name).equal(b.get_tensor(name)) for name in names)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("pattern", ["4:8T", "2:4"])
def test_models(run: Run, text: Path, tmp_path: Path, kind: str, pattern: str) -> None:
    src, out, masks = make(tmp_path / "m", kind), tmp_path / "out", tmp_path / "masks.safetensors"
    options = ("-p", pattern, "--calibration", text, "--seq-len", 16, "--samples", 30, "--json")
    by = ("--method", "adaprune", "--scores", "magnitude")
    result = run("prune", src, *options, *by, "-o", out, "--masks", masks)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    magnitude = json.loads(run("prune", src, "-p", pattern, "--dry-run", "--json").stdout)
    pruned = [tensor["name"] for tensor in document["tensors"]]
    assert pruned == [tensor["name"] for tensor in magnitude["tensors"]], "one policy"
    assert document["dense"] == magnitude["dense"]
    for one, other in zip(document["tensors"], magnitude["tensors"], strict=True):
        same = ("shape", "dtype", "layout", "groups", "transposed", "kept")
        assert {key: one[key] for key in same} == {key: other[key] for key in same}
        # The masks are by magnitude, of the same weights.
        assert one["retention"] == pytest.approx(other["retention"], rel=1e-6)
        assert one["error"] < one["error_masked"]
        assert one["method"] == "adaprune"
    assert document["calibration"]["samples"] == 30
    assert document["totals"]["error"] < document["totals"]["error_masked"]

    assert run("verify", out, "--masks", masks).exit_code == 0
    assert f"{pattern} " in run("inspect", out).stdout
    biases = {name.removesuffix("weight") + "bias" for name in pruned}
    old, new = load_file(src / "model.safetensors"), load_file(out / "model.safetensors")
    assert list(old) == list(new)
    assert same_bytes(
        src / "model.safetensors", out / "model.safetensors", set(old) - {*pruned, *biases}
    )
    assert any(not old[name].equal(new[name]) for name in biases & set(old)) or kind == "llama"
    kept = load_masks(masks)
    for name in pruned:
        mask = (
            kept[name].tensor.mT if document_of(document, name)["transposed"] else kept[name].tensor
        )
        assert bool((new[name][~mask] == 0).all())
    for name in ("tokenizer.json", "config.json"):
        assert (out / name).read_bytes() == (src / name).read_bytes()
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata()["transposable.pattern"] == pattern
        assert file.metadata()["format"] == "pt"

    auto: Any = AutoModel if kind == "bert" else AutoModelForCausalLM
    model = auto.from_pretrained(out)
    changed = transposable.sparsify(model, pattern, include="re:\\.(0|1)\\.")
    assert len(changed) == len(pruned)
    for module in model.modules():
        if isinstance(module, SparseLayer):  # fine-tuning starts from these masks
            effective = module.effective_weight()
            assert effective.equal(module.weight)


def document_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(t for t in document["tensors"] if t["name"] == name)
    return found


def test_the_output_runs_closer_to_dense_than_magnitude(
    run: Run, text: Path, bert: Path, tmp_path: Path
) -> None:
    by = {}
    for method, more in (("magnitude", ()), ("adaprune", ("--calibration", text))):
        out = tmp_path / method
        assert run("prune", bert, "-p", "4:8T", "--method", method, *more, "-o", out).exit_code == 0
        by[method] = BertModel.from_pretrained(out, attn_implementation="eager").eval()
    dense = BertModel.from_pretrained(bert).eval()
    tokens = torch.randint(4, 16, (32, 9), generator=torch.manual_seed(1))
    with torch.inference_mode():
        want = dense(tokens).last_hidden_state
        error = {m: float((net(tokens).last_hidden_state - want).norm()) for m, net in by.items()}
    assert error["adaprune"] < 0.9 * error["magnitude"]


def test_text_output(run: Run, text: Path, bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        "prune", bert, "-p", "2:4T", "--method", "adaprune", "--calibration", text, "-o", out,
        "--mode", "parallel", "--scores", "wanda", "--samples", 100,
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    shown = result.stdout
    assert "pruned: 12 of" in shown
    assert "head or pooler" in shown
    assert "method: adaprune with scores wanda, parallel, on 60 lines (" in shown
    assert "error, masked  error, after" in shown
    assert "holds 60 of the 100 samples asked for" in shown
    assert "fewer inputs" not in shown
    assert "axis in 0 groups violated, axis out 0 groups violated" in shown
    assert f"wrote: {out}" in shown
    assert "pruning: 50 % (bert.encoder.layer.0" in result.stderr
    assert " left)" in result.stderr
    row = next(
        line for line in shown.splitlines() if line.startswith("bert.encoder.layer.1.output")
    )
    _, shape, kept, masked, after, _ = row.split()
    assert shape == "32x64"
    assert 0.7 < float(kept) < 1
    assert 0 < float(after) < float(masked) < 1


def test_dry_run_writes_nothing(run: Run, text: Path, bert: Path) -> None:
    before = sorted(os.listdir(bert))
    result = run("prune", bert, "-p", "2:4T", "--calibration", text, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "method: magnitude, sequential" in result.stdout
    assert "dry run: nothing written" in result.stdout
    assert sorted(os.listdir(bert)) == before


def test_magnitude_with_calibration_writes_what_it_writes_without(
    run: Run, text: Path, bert: Path, tmp_path: Path
) -> None:
    assert run("prune", bert, "-p", "4:8T", "-o", tmp_path / "plain").exit_code == 0
    run("prune", bert, "-p", "4:8T", "-o", tmp_path / "text", "--calibration", text)
    files = [tmp_path / name / "model.safetensors" for name in ("plain", "text")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_every_method(run: Run, text: Path, bert: Path, tmp_path: Path, method: str) -> None:
    out = tmp_path / "out"
    result = run(
        "prune", bert, "-p", "2:4T", "--method", method, "--calibration", text, "-o", out,
        "-i", "*layer.1.output.dense", "--samples", 10, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout, parse_constant=lambda name: pytest.fail(name))
    assert [tensor["method"] for tensor in document["tensors"]] == [method]
    assert run("verify", out).exit_code == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_of_the_file_is_kept(
    run: Run, text: Path, bert: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    convert(bert, dtype)
    out = tmp_path / "out"
    options = ("--method", "adaprune", "--calibration", text, "-i", "*layer.0.output.dense")
    result = run("prune", bert, "-p", "4:8T", *options, "-o", out)
    assert result.exit_code == 0, result.stderr
    old, new = load_file(bert / "model.safetensors"), load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in new.values()} == {dtype}
    changed = {name for name in old if not old[name].equal(new[name])}
    layer = "bert.encoder.layer.0.output.dense"
    assert changed == {f"{layer}.weight", f"{layer}.bias"}
    assert transposable.verify(new[f"{layer}.weight"], "4:8T").ok
    assert run("verify", out).exit_code == 0


def test_device(run: Run, text: Path, bert: Path, tmp_path: Path) -> None:
    """On a GPU, where there is one, the result is close to that of the CPU."""
    options = ("--method", "adaprune", "--scores", "magnitude", "--calibration", text, "--json")
    errors = []
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        out = tmp_path / device
        result = run("prune", bert, "-p", "2:4T", *options, "--device", device, "-o", out)
        assert result.exit_code == 0, result.stderr
        assert run("verify", out).exit_code == 0
        document = json.loads(result.stdout)
        assert document["device"] == device
        errors.append(document["totals"]["error"])
    assert errors == pytest.approx(errors[:1] * len(errors), rel=1e-3)


def test_a_gpu_that_is_not_there(
    run: Run, text: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("-p", "2:4T", "--calibration", text, "--dry-run", "--device")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = run("prune", bert, *options, "cuda")
    assert result.exit_code == 2
    assert "cannot use 'cuda', it sees none" in result.stderr
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    result = run("prune", bert, *options, "cuda:2")
    assert result.exit_code == 2
    assert "cannot use 'cuda:2', it sees 2 of them, from cuda:0 on" in result.stderr


def test_a_gpu_with_too_little_memory(
    run: Run, text: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore text.")

    # In a sum over the calibration: what fails there is no fault of a batch.
    monkeypatch.setattr("transposable.prune.moments.Moments.add", full)
    out = tmp_path / "out"
    options = ("--method", "adaprune", "--calibration", text, "-o", out)
    result = run("prune", bert, "-p", "2:4T", *options)
    assert result.exit_code == 3
    assert "too little memory" in result.stderr
    assert "Tried to allocate 2 GiB.); nothing is written" in result.stderr
    assert not out.exists()


def test_a_finished_run_resumes(run: Run, text: Path, bert: Path, tmp_path: Path) -> None:
    options = ("--method", "adaprune", "--calibration", text, "--resume", tmp_path / "layers")
    only = ("-i", "*layer.1.*.dense")
    first = run("prune", bert, "-p", "2:4T", *options, *only, "-o", tmp_path / "a")
    assert first.exit_code == 0, first.stderr
    again = run("prune", bert, "-p", "2:4T", *options, *only, "-o", tmp_path / "b")
    assert "3 of 3 layers were pruned by an earlier run and resumed" in again.stdout
    files = [tmp_path / name / "model.safetensors" for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()
    other = run("prune", bert, "-p", "4:8T", *options, *only, "-o", tmp_path / "c")
    assert other.exit_code != 0
    assert "pattern" in other.stderr


def test_in_place_and_again(run: Run, text: Path, bert: Path) -> None:
    options = ("--method", "adaprune", "--calibration", text, "-o", bert)
    for layer in (0, 1):
        include = f"*layer.{layer}.output.dense"
        assert run("prune", bert, "-p", "2:4T", "-i", include, *options).exit_code == 0
    result = run("verify", bert)
    assert result.exit_code == 0
    assert "the pattern holds in all 2 tensors" in result.stdout, "the first stays recorded"


def test_include_and_exclude(run: Run, text: Path, bert: Path) -> None:
    options = ("-p", "2:4T", "--calibration", text, "--dry-run", "--json")
    for names in (
        ("-x", "*attention*"),
        ("-i", "bert.encoder.layer.1.*"),
        ("-i", "re:intermediate", "-x", "*.0.*"),
    ):
        with_text = json.loads(run("prune", bert, *options, *names).stdout)
        without = json.loads(run("prune", bert, "-p", "2:4T", "--dry-run", "--json", *names).stdout)
        assert [t["name"] for t in with_text["tensors"]] == [t["name"] for t in without["tensors"]]
        assert with_text["dense"] == without["dense"]


@pytest.mark.parametrize("saved", [BertModel, BertForMaskedLM])
def test_names_with_and_without_the_prefix_of_the_base_model(
    run: Run, text: Path, tmp_path: Path, saved: type
) -> None:
    """A base model's file under a class with a head, and the other way round."""
    src = make(tmp_path / "m", "bert", saved)
    config = json.loads((src / "config.json").read_text())
    other = "BertForSequenceClassification" if saved is BertModel else "BertModel"
    config["architectures"] = [other]
    (src / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    options = ("--method", "adaprune", "--calibration", text, "-o", out, "--json")
    result = run("prune", src, "-p", "2:4T", *options)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    assert len(document["tensors"]) == 12
    assert all(tensor["error"] < tensor["error_masked"] for tensor in document["tensors"])
    if saved is BertModel:
        assert all(t["layer"] == "bert." + t["layer_tensor"] for t in named(document))
        assert any("head of BertForSequenceClassification" in note for note in document["notes"])
    assert run("verify", out).exit_code == 0


def named(document: dict[str, Any]) -> list[dict[str, str]]:
    return [
        {"layer": t["layer"], "layer_tensor": t["name"].removesuffix(".weight")}
        for t in document["tensors"]
    ]


def test_tied_head_stays_dense(run: Run, text: Path, tmp_path: Path) -> None:
    src = make(tmp_path / "m", "llama")
    result = run("prune", src, "-p", "2:4T", "--calibration", text, "--dry-run", "--json")
    dense = {t["name"]: t["reason"] for t in json.loads(result.stdout)["dense"]}
    assert dense["model.embed_tokens.weight"] == "embedding, tied with its counterpart"
    options = ("--calibration", text, "--dry-run", "-i", "model.embed_tokens")
    result = run("prune", src, "-p", "2:4T", *options)
    assert result.exit_code == 2
    assert "the weight of a layer of class Embedding" in result.stderr


def test_sharded_source(run: Run, text: Path, bert: Path, tmp_path: Path) -> None:
    model = BertForSequenceClassification.from_pretrained(bert)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert / name, tmp_path / "sharded")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    out = tmp_path / "out"
    options = ("--method", "adaprune", "--calibration", text, "-o", out)
    result = run("prune", tmp_path / "sharded", "-p", "4:8T", *options)
    assert result.exit_code == 0, result.stderr
    assert run("verify", out).exit_code == 0
    BertForSequenceClassification.from_pretrained(out)


def test_windows_start_as_the_tokenizer_starts_a_text(text: Path, tmp_path: Path) -> None:
    from transposable.export import open_source
    from transposable.pretrained import load_tokenizer, text_samples

    src = make(tmp_path / "m", "llama")
    with open_source(src) as source:
        tokenizer = load_tokenizer(source)
        found = text_samples(text, tokenizer, source.config, "causal", seq_len=16)
    ids = torch.cat([row for batch in found.batches[:-1] for row in batch["input_ids"]])
    assert ids.view(-1, 16)[:, 0].eq(1).all()
    whole = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    body = ids.view(-1, 16)[:, 1:].flatten().tolist()
    assert body == whole[: len(body)]
    assert found.tokens - found.samples == len(whole)
    for batch in found.batches:
        assert batch["attention_mask"].all()


def test_lines_are_cut_and_grouped_by_length(text: Path, bert: Path) -> None:
    from transposable.export import open_source
    from transposable.pretrained import load_tokenizer, text_samples

    with open_source(bert) as source:
        found = text_samples(text, load_tokenizer(source), source.config, "encoder", seq_len=8)
    assert found.samples == 60
    assert {batch["input_ids"].shape[1] for batch in found.batches} == {6, 7, 8}
    for batch in found.batches:
        assert batch["input_ids"][:, 0].eq(2).all(), "[CLS]"
        assert batch["input_ids"][:, -1].eq(3).all(), "[SEP], also of a line that was cut"


def no_tokenizer(src: Path, text: Path) -> tuple[object, ...]:
    (src / "tokenizer.json").unlink()
    return ()


def empty(src: Path, text: Path) -> tuple[object, ...]:
    text.write_text(" \n\n")
    return ()


def latin(src: Path, text: Path) -> tuple[object, ...]:
    text.write_bytes("caf\xe9".encode("latin-1"))
    return ()


def missing(src: Path, text: Path) -> tuple[object, ...]:
    text.unlink()
    return ()


def other_words(src: Path, text: Path) -> tuple[object, ...]:
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps({**config, "vocab_size": 10}))
    return ()


def architecture(value: object) -> Callable[[Path, Path], tuple[object, ...]]:
    def spoil(src: Path, text: Path) -> tuple[object, ...]:
        config = json.loads((src / "config.json").read_text())
        (src / "config.json").write_text(json.dumps({**config, "architectures": value}))
        return ()

    return spoil


def quantised(src: Path, text: Path) -> tuple[object, ...]:
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps({**config, "quantization_config": {}}))
    return ()


def lacks_a_layer(src: Path, text: Path) -> tuple[object, ...]:
    path = src / "model.safetensors"
    tensors = load_file(path)
    del tensors["bert.encoder.layer.0.attention.self.key.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    return ()


def holds_nan(src: Path, text: Path) -> tuple[object, ...]:
    path = src / "model.safetensors"
    tensors = load_file(path)
    tensors["bert.encoder.layer.0.attention.self.key.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    return ()


def options(*given: object) -> Callable[[Path, Path], tuple[object, ...]]:
    return lambda src, text: given


@pytest.mark.parametrize(
    ("spoil", "code", "words"),
    [
        (no_tokenizer, 3, "there is no tokenizer"),
        (empty, 3, "holds no text"),
        (latin, 3, "not UTF-8"),
        (missing, 3, "No such file"),
        (other_words, 3, "belongs to another model"),
        (architecture(None), 3, "names no architecture"),
        (architecture(["NoSuchModel"]), 3, "has no model 'NoSuchModel'"),
        (architecture(["ViTModel"]), 3, "reads pixel_values"),
        (quantised, 3, "quantised"),
        (lacks_a_layer, 3, "1 weights that BertForSequenceClassification has"),
        (holds_nan, 3, "NaN"),
        (options("--seq-len", 41), 3, "at most 40"),
        (options("--method", "nosuch"), 2, "choose from magnitude"),
        (options("--method", "adaprune", "--scores", "nosuch"), 2, "choose from magnitude"),
        (options("--method", "wanda", "--scores", "obs"), 2, "scores of its own"),
        (options("--layout", "linear"), 2, "--layout"),
        (options("--samples", 0), 2, "--samples"),
        (options("--device", "tpu"), 2, "there is no 'tpu'; give cpu, cuda, or cuda:N"),
        (options("--device", "cpu:1"), 2, "there is no 'cpu:1'"),
        (options("--device", "cuda:x"), 2, "there is no 'cuda:x'"),
        (options("--device", "cuda:99"), 2, "leave --device out to run on the CPU"),
        (options("-i", "*word_embeddings*"), 2, "the weight of a layer of class Embedding"),
        (options("-i", "*nosuch*"), 2, "matches none"),
        (options("-o", "/proc/nosuch/out"), 4, "write"),
    ],
)
def test_errors(
    run: Run,
    text: Path,
    bert: Path,
    tmp_path: Path,
    spoil: Callable[[Path, Path], tuple[object, ...]],
    code: int,
    words: str,
) -> None:
    own = tmp_path / "own.txt"
    shutil.copy(text, own)
    more = spoil(bert, own)
    target = () if "-o" in more else ("-o", tmp_path / "out")
    result = run("prune", bert, "-p", "2:4T", "--calibration", own, *target, *more)
    assert result.exit_code == code, result.stderr
    assert words in result.stderr
    assert sorted(os.listdir(tmp_path)) in (["bert", "own.txt"], ["bert"]), "nothing is left behind"


def test_encoder_decoder(run: Run, text: Path, tmp_path: Path) -> None:
    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    result = run("prune", tmp_path / "t5", "-p", "2:4T", "--calibration", text, "--dry-run")
    assert result.exit_code == 3
    assert "encoder-decoder" in result.stderr
    assert "text encoders and causal language models" in result.stderr


def test_a_file_instead_of_a_directory(run: Run, text: Path, bert: Path) -> None:
    path = bert / "model.safetensors"
    result = run("prune", path, "-p", "2:4T", "--calibration", text, "--dry-run")
    assert result.exit_code == 3
    assert "a directory with config.json" in result.stderr


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--method", "adaprune"), "needs --calibration FILE"),
        (("--method", "nosuch"), f"choose from {', '.join(METHODS)}"),
        (("--samples", 10, "--seq-len", 16), "--samples, --seq-len: only with --calibration"),
        (("--mode", "parallel"), "--mode: only with --calibration"),
        (("--resume", "here"), "--resume: only with --calibration"),
        (("--device", "cpu"), "--device: only with --calibration"),
    ],
)
def test_options_without_calibration(
    run: Run, model: Path, given: tuple[object, ...], words: str
) -> None:
    result = run("prune", model, "-p", "2:4T", "--dry-run", *given)
    assert result.exit_code == 2
    assert words in result.stderr


def test_without_transformers(
    run: Run, text: Path, bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transposable.pretrained import loading

    find = loading.importlib.util.find_spec
    monkeypatch.setattr(
        loading.importlib.util,
        "find_spec",
        lambda name, *more: None if name == "transformers" else find(name, *more),
    )
    result = run("prune", bert, "-p", "2:4T", "--calibration", text, "--dry-run")
    assert result.exit_code == 3
    assert "pip install 'transposable[hf]'" in result.stderr


def test_a_value_that_the_dtype_does_not_hold(
    run: Run, text: Path, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half precision ends at 65504; the output must not hold an infinity."""
    from transposable.pretrained import prune

    convert(bert, torch.float16)
    honest = prune._weight
    monkeypatch.setattr(prune, "_weight", lambda model, layer: 1e7 * honest(model, layer))
    out = tmp_path / "out"
    monkeypatch.setattr(prune, "_layers", lambda model, binding: list(binding.layers.values()))
    result = run("prune", bert, "-p", "2:4T", "--calibration", text, "-o", out)
    assert result.exit_code == 3
    assert "more than F16 holds" in result.stderr
    assert not out.exists()


def test_too_little_text_for_the_features_is_said(run: Run, bert: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("the cat sees a dog\nthe river\nold house")
    given = ("-p", "2:4T", "--calibration", text, "--dry-run", "-i", "*.1.output.dense")
    result = run("prune", bert, *given, "--method", "adaprune")
    assert result.exit_code == 0, result.stderr
    assert "1 layers were fitted to fewer inputs than they have features" in result.stdout
    assert "(bert.encoder.layer.1.output.dense: 15 tokens, 64 features)" in result.stdout
    assert "fewer inputs" not in run("prune", bert, *given).stdout, "magnitude fits nothing"


def test_score_names_are_offered(run: Run, text: Path, bert: Path) -> None:
    for scores in SCORES:
        result = run(
            "prune", bert, "-p", "2:4T", "--method", "adaprune", "--scores", scores,
            "--calibration", text, "--dry-run", "-i", "*.1.output.dense", "--samples", 8,
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr


def test_time_left() -> None:
    assert [left_text(s) for s in (0.2, 59.4, 60, 3599, 3600)] == [
        "0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min",
    ]  # fmt: skip


def test_help_does_not_wait_for_torch(run: Run) -> None:
    result = run("prune", "--help")
    assert result.exit_code == 0
    assert "--calibration" in result.stdout
