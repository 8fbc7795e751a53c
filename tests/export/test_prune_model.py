"""Models on disk, pruned: the right tensors, everything else byte for byte, nothing lost."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import transposable
from transposable import FileError, ScoresError, SelectionError, find_mask, verify
from transposable.errors import OutputError
from transposable.export import Choice, Transaction, load_masks, open_source, prune_model
from transposable.export.check import inspect_model, verify_model
from transposable.export.reader import TensorFile

PRUNED = ["layers.0.q_proj.weight", "layers.0.up.weight", "layers.0.conv.weight"]


def prune(src: Path, out: Path | None, pattern: str = "2:4T", **options: Any) -> Any:
    with open_source(src) as source:
        return prune_model(source, pattern, out, **options)


def raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    with TensorFile(path) as file:
        return {
            e.name: (e.dtype, e.shape, b"".join(bytes(c) for c in file.chunks(e, bytearray(64))))
            for e in file.header.entries
        }


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def layout_of(name: str) -> Any:
    return "conv" if "conv" in name else "linear"


def test_a_file(model: Path, tensors: dict[str, torch.Tensor]) -> None:
    out = model.with_name("pruned.safetensors")
    before = raw(model)
    report = prune(model, out)
    after = raw(out)
    assert list(after) == list(before), "the order of the tensors"
    assert sorted(tensor.name for tensor in report.pruned) == sorted(PRUNED)
    for name, (dtype, shape, data) in before.items():
        assert after[name][:2] == (dtype, shape)
        if name not in PRUNED:
            assert after[name][2] == data
    pruned = load_file(out)
    for name in PRUNED:
        mask = find_mask(tensors[name], "2:4T", layout=layout_of(name))
        assert torch.equal(pruned[name], tensors[name].where(mask.array, 0))
        assert verify(pruned[name], "2:4T", layout=layout_of(name)).ok
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["note"] == "ü"
    assert metadata["transposable.pattern"] == "2:4T"
    assert metadata["transposable.version"] == transposable.__version__
    record = json.loads(metadata["transposable.tensors"])
    assert sorted(record) == sorted(PRUNED)
    assert record["layers.0.conv.weight"] == {
        "pattern": "2:4T",
        "layout": "conv",
        "groups": 1,
        "transposed": False,
    }


def test_figures(model: Path, tensors: dict[str, torch.Tensor]) -> None:
    report = prune(model, None, "2:4T")
    for tensor in report.pruned:
        weight = tensors[tensor.name].double().abs()
        mask = find_mask(tensors[tensor.name], "2:4T", layout=layout_of(tensor.name))
        best = weight.flatten().sort(descending=True).values[: weight.numel() // 2].sum()
        assert tensor.objective == pytest.approx(weight[mask.array].sum().item(), rel=1e-6)
        assert tensor.unstructured == pytest.approx(best.item(), rel=1e-6)
        assert tensor.retention == pytest.approx(tensor.objective / best.item(), rel=1e-6)
        assert tensor.kept == weight.numel() // 2
        assert tensor.gap < 1e-6
        assert tensor.status == "OPTIMAL"
        assert tensor.violations == {"in": 0, "out": 0}
    assert os.listdir(model.parent) == [model.name], "without out nothing is written"


@pytest.mark.parametrize("pattern", ["2:4", "4:8S", "50%", "1:4T"])
def test_other_patterns(model: Path, pattern: str) -> None:
    out = model.with_name("pruned.safetensors")
    report = prune(model, out, pattern)
    pruned = load_file(out)
    for tensor in report.pruned:
        assert verify(pruned[tensor.name], pattern, layout=layout_of(tensor.name)).ok
    with open_source(out) as source:
        assert all(checked.ok for checked in verify_model(source))


def test_in_place_and_again(model: Path) -> None:
    other = model.with_name("other.safetensors")
    prune(model, other)
    prune(model, model)
    assert model.read_bytes() == other.read_bytes()
    prune(model, model, "1:4T", choice=Choice(include=["*q_proj"]))
    with open_source(model) as source:
        patterns = {name: str(reading.pattern) for name, reading in source.record.items()}
    assert patterns == {PRUNED[0]: "1:4T", PRUNED[1]: "2:4T", PRUNED[2]: "2:4T"}
    assert sorted(os.listdir(model.parent)) == ["model.safetensors", "other.safetensors"]


def test_a_directory(
    make_directory: Callable[[str], Path], tensors: dict[str, torch.Tensor]
) -> None:
    src = make_directory("src")
    (src / "pytorch_model.bin").write_bytes(b"\x80\x02pickle")
    (src / "training_args.bin").write_bytes(b"PK\x03\x04")
    (src / "pytorch_model.bin.index.json").write_text("{}")
    out = src.with_name("out")
    report = prune(src, out)
    carried = {"config.json", "tokenizer.json", "1_Pooling/config.json"}
    carried |= {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    carried.add("model.safetensors.index.json")
    held = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert held == carried
    note = next(note for note in report.notes if "not carried over" in note)
    assert "pytorch_model.bin" in note
    assert "training_args.bin" in note
    for name in ("config.json", "model.safetensors.index.json"):
        assert (out / name).read_bytes() == (src / name).read_bytes()
    for i in (1, 2):
        for name, weight in load_file(out / f"model-0000{i}-of-00002.safetensors").items():
            if name in PRUNED:
                assert verify(weight, "2:4T", layout=layout_of(name)).ok
            else:
                assert bits(weight).equal(bits(tensors[name]))
    with open_source(out) as source:
        assert len(verify_model(source)) == 3
        assert len(list(inspect_model(source))) == len(tensors)
    prune(src, out)  # again, over what is there
    assert sorted(os.listdir(src.parent)) == ["out", "src"]


def test_a_directory_in_place(
    make_directory: Callable[[str], Path], snapshot: Callable[[Path], dict[str, bytes]]
) -> None:
    src, twin = make_directory("src"), make_directory("twin")
    (src / "pytorch_model.bin").write_bytes(b"\x80\x02pickle")
    (src / ".git").mkdir()
    (src / ".git" / "HEAD").write_bytes(b"ref")
    prune(twin, twin.with_name("out"))
    report = prune(src, src)
    expected = snapshot(twin.with_name("out"))
    expected["pytorch_model.bin"] = b"\x80\x02pickle"
    expected[os.path.join(".git", "HEAD")] = b"ref"
    assert snapshot(src) == expected
    assert any("still dense: pytorch_model.bin" in note for note in report.notes)
    assert sorted(os.listdir(src.parent)) == ["out", "src", "twin"]


def test_an_output_directory_keeps_what_is_the_users(make_directory: Callable[[str], Path]) -> None:
    src = make_directory("src")
    out = src.with_name("out")
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    prune(src, out)
    assert (out / "notes.txt").read_text() == "mine"
    save_file({"x": torch.ones(1)}, out / "other.safetensors")
    with pytest.raises(OutputError, match="another model"):
        prune(src, out)
    assert (out / "other.safetensors").exists()


def test_a_directory_of_links(make_directory: Callable[[str], Path]) -> None:
    """As in the hub's cache, whose snapshots link to blobs."""
    src = make_directory("src")
    links = src.with_name("links")
    links.mkdir()
    for path in src.iterdir():
        if path.is_file():
            (links / path.name).symlink_to(path)
    before = {path.name: path.read_bytes() for path in src.iterdir() if path.is_file()}
    prune(links, links)
    assert {path.name: path.read_bytes() for path in src.iterdir() if path.is_file()} == before
    with open_source(links) as source:
        assert all(checked.ok for checked in verify_model(source))


@pytest.mark.parametrize("place", ["inside", "above"])
def test_nested_directories_are_refused(make_directory: Callable[[str], Path], place: str) -> None:
    src = make_directory("a/src")
    out = src / "out" if place == "inside" else src.parent
    with pytest.raises(OutputError, match="lie in one another"):
        prune(src, out)


@pytest.mark.parametrize("what", ["file", "directory"])
@pytest.mark.parametrize("failure", ["disk full", "ctrl-c", "nan", "source shrinks"])
def test_nothing_is_lost(
    make_directory: Callable[[str], Path],
    snapshot: Callable[[Path], dict[str, bytes]],
    model: Path,
    tmp_path: Path,
    what: str,
    failure: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    src = model if what == "file" else make_directory("src")
    expected: type[BaseException] = OutputError
    masks = tmp_path / "masks.safetensors"
    progress = None
    if failure == "disk full":
        real = Transaction._create

        class Full:
            def __init__(self, file: Any) -> None:
                self.file, self.room = file, 1500

            def write(self, data: bytes) -> None:
                if len(data) > self.room:
                    self.file.write(bytes(data)[: self.room])
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.room -= len(data)
                self.file.write(data)

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

        def create(self: Transaction, path: Path) -> Any:
            return Full(real(self, path))

        monkeypatch.setattr(Transaction, "_create", create)
    elif failure == "ctrl-c":
        expected = KeyboardInterrupt

        def progress(share: float, _: str) -> None:
            if share > 0.5:
                raise KeyboardInterrupt

    else:
        expected = ScoresError if failure == "nan" else FileError
        path = src if what == "file" else src / "model-00002-of-00002.safetensors"
        weights = load_file(path)
        name = next(name for name in PRUNED if name in weights)
        if failure == "nan":
            weights[name].view(-1)[3] = float("nan")
        save_file(weights, path, metadata={"format": "pt"})
    before = snapshot(tmp_path)
    with open_source(src) as source:
        if failure == "source shrinks":
            real_fill = TensorFile._fill

            def shrink(self: TensorFile, view: memoryview, offset: int) -> None:
                real_fill(self, view, offset + 10**9)

            monkeypatch.setattr(TensorFile, "_fill", shrink)
        with pytest.raises(expected) as caught:
            prune_model(source, "2:4T", src, masks=masks, progress=progress)
    assert snapshot(tmp_path) == before
    if failure == "nan":
        assert name in str(caught.value)
        assert "NaN" in str(caught.value)
    if failure == "disk full":
        assert "free some space" in str(caught.value)


def test_masks_file(model: Path, tensors: dict[str, torch.Tensor]) -> None:
    masks = model.with_name("masks.safetensors")
    prune(model, model, masks=masks)
    held = load_masks(masks)
    assert sorted(held) == sorted(PRUNED)
    for name, mask in held.items():
        assert mask == find_mask(tensors[name], "2:4T", layout=layout_of(name))
    with open_source(model) as source:
        assert all(checked.outside_mask == 0 for checked in verify_model(source, masks=masks))
    with pytest.raises(FileError, match="holds masks, not weights"):
        open_source(masks)
    for place in (model, model.with_name("model.safetensors")):
        with pytest.raises(OutputError, match="another file"):
            prune(model, None, masks=place)


def test_masks_into_the_output_directory(make_directory: Callable[[str], Path]) -> None:
    src = make_directory("src")
    out = src.with_name("out")
    prune(src, out, masks=out / "masks.safetensors")
    assert len(load_masks(out / "masks.safetensors")) == 3
    prune(out, out, masks=out / "masks.safetensors")
    with open_source(out) as source:
        assert len(verify_model(source, masks=out / "masks.safetensors")) == 3


def test_masks_that_the_weights_contradict(model: Path) -> None:
    masks = model.with_name("masks.safetensors")
    prune(model, None, masks=masks)
    with open_source(model) as source:
        checked = verify_model(source, masks=masks)
    assert not any(tensor.ok for tensor in checked)
    assert all(tensor.outside_mask for tensor in checked)


def test_weights_stored_in_out(tmp_path: Path) -> None:
    """GPT-2's Conv1D under plain N:M: the groups lie along the input features, axis 0."""
    torch.manual_seed(0)
    path = tmp_path / "gpt2.safetensors"
    weight = torch.randn(16, 48)
    save_file({"h.0.attn.c_attn.weight": weight}, path)
    masks = tmp_path / "masks.safetensors"
    report = prune(path, path, "2:4", masks=masks)
    assert report.pruned[0].reading.transposed
    assert "[in, out]" in report.pruned[0].note
    pruned = load_file(path)["h.0.attn.c_attn.weight"]
    assert verify(pruned.T, "2:4").ok
    assert not verify(pruned, "2:4").ok
    assert torch.equal(pruned, weight.where(find_mask(weight.T.contiguous(), "2:4").array.T, 0))
    with open_source(path) as source:
        assert all(checked.ok for checked in verify_model(source, masks=masks))
    assert load_masks(masks)["h.0.attn.c_attn.weight"].shape == (48, 16)


def test_grouped_convolution(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"c.weight": torch.randn(24, 8, 3, 3)}, path)
    report = prune(path, path, "4:8T", choice=Choice(groups=["c=3"]))
    assert report.pruned[0].reading.layout.groups == 3
    assert verify(load_file(path)["c.weight"], "4:8T", layout="conv", groups=3).ok
    with open_source(path) as source:
        assert all(checked.ok for checked in verify_model(source))


def test_special_values(tmp_path: Path) -> None:
    weight = torch.zeros(8, 8)
    weight[0] = float("inf")
    weight[1] = -0.0
    weight[2, :4] = 1e-45
    path = tmp_path / "m.safetensors"
    save_file({"w": weight, "zeros": torch.zeros(8, 8)}, path)
    report = prune(path, path, "2:4T")
    after = load_file(path)
    assert after["w"][0].isinf().sum() == 4
    assert not after["w"].isnan().any()
    retention = {tensor.name: tensor.retention for tensor in report.pruned}
    assert retention == {"w": None, "zeros": 1.0}


def test_selection_errors_come_before_any_output(model: Path) -> None:
    with pytest.raises(SelectionError, match="matches none"):
        prune(model, model.with_name("out"), choice=Choice(exclude=["nosuch*"]))
    assert os.listdir(model.parent) == [model.name]
