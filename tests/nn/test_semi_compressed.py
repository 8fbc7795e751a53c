"""compress on a GPU: which layers, and what they say; torch's packed weights are stood in for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from transposable import compress, sparsify
from transposable.errors import CheckpointError, CompressionError, NoEffectWarning
from transposable.nn import CompressedLinear, SemiLinear, compression, save_compressed
from transposable.nn import semi_compressed as semi
from transposable.sparse.ask_semi import why_not_packed
from transposable.sparse.semi import CUSPARSELT, probe


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The CPU passes for a GPU; what torch would pack is kept dense, and listed."""
    packed: list[torch.Tensor] = []

    def stand_in(weight: torch.Tensor) -> torch.Tensor:
        packed.append(weight.contiguous())
        return packed[-1]

    def why(shape: Any, pattern: Any, dtype: Any, device: Any, format: Any = None) -> str | None:
        return why_not_packed(CUSPARSELT, shape, pattern, dtype)

    monkeypatch.setattr(compression, "_on_gpu", lambda weight: True)
    monkeypatch.setattr(compression, "semi_structured", stand_in)
    monkeypatch.setattr(semi, "why_dense_semi", why)
    monkeypatch.setattr(probe, "has_cusparselt", lambda: True)
    return packed


def model(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 96),
        nn.GELU(),
        Conv1D(64, 96),
        nn.Linear(64, 48, bias=False),
        nn.Linear(48, 24),
    ).to(dtype)
    sparsify(net, "2:4T")
    return net.eval()


def test_layers_become_semi_structured(on_gpu: list[torch.Tensor]) -> None:
    net = model()
    x = torch.randn(2, 5, 64).bfloat16()
    with torch.inference_mode():
        wanted = net(x)
        done = compress(net)
        assert [layer.name for layer in done.layers] == ["0", "2", "3"]
        assert [type(net[i]) for i in (0, 2, 3)] == [SemiLinear] * 3
        assert done.left == {
            "4": "24 x 48: the sides of a weight must be multiples of 16 for cusparselt"
        }
        error = (net(x).float() - wanted.float()).norm() / wanted.float().norm()
        assert error < 0.01
        assert net(x[:0]).shape == (0, 5, 24)
        assert net(x[0, 0]).shape == (24,)
    assert [tuple(w.shape) for w in on_gpu] == [(96, 64), (64, 96), (48, 64)]
    assert all((w == 0).sum() * 2 == w.numel() for w in on_gpu)
    assert "pattern=2:4T, dtype=torch.bfloat16"[:13] in repr(net[0])
    assert not [p for i in (0, 2, 3) for p in net[i].parameters()]
    again = pytest.warns(NoEffectWarning, match="24 x 48")
    with again:
        assert compress(net).left["0"] == "compressed already"


def test_dtypes_and_patterns(on_gpu: list[torch.Tensor]) -> None:
    with pytest.warns(NoEffectWarning, match="float32: sparse tensor cores take bfloat16"):
        compress(model(torch.float32))
    net = model(torch.float32)
    assert len(compress(net, dtype=torch.float16).layers) == 3
    assert on_gpu[-1].dtype == torch.float16
    other = nn.Sequential(nn.Linear(64, 64)).bfloat16()
    sparsify(other, "4:8T")
    with pytest.warns(NoEffectWarning, match="two of every four"):
        compress(other)
    rows = nn.Sequential(nn.Linear(64, 64)).bfloat16().eval()
    sparsify(rows, "2:4")
    assert len(compress(rows).layers) == 1


def test_what_it_is_not_for(on_gpu: list[torch.Tensor], tmp_path: Path) -> None:
    net = model()
    compress(net)
    x = torch.randn(4, 64).bfloat16()
    with pytest.raises(CompressionError, match="gradient"):
        net(x.clone().requires_grad_())
    with pytest.raises(CheckpointError, match="layer '0' is packed for a GPU"):
        save_compressed(net, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CompressionError, match="training mode"):
        net.train()(x)


def test_the_limits_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(semi, "why_dense_semi", lambda *_: None)
    half, cpu = torch.bfloat16, torch.device("cpu")
    monkeypatch.setattr(probe, "has_cusparselt", lambda: False)
    assert "multiples of (32, 64)" in str(semi.why_not_semi((48, 64), None, half, cpu))  # type: ignore[arg-type]
    monkeypatch.setattr(probe, "has_cusparselt", lambda: True)
    assert semi.why_not_semi((48, 64), None, half, cpu) is None  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="Only CUDA tensors"):
        semi.semi_structured(torch.zeros(64, 64).bfloat16())


def test_on_the_cpu_nothing_has_changed() -> None:
    net = nn.Sequential(nn.Linear(64, 64)).eval()
    sparsify(net, "2:4T")
    with pytest.raises(CompressionError, match="float16"):
        compress(net, dtype=torch.float16)
    compress(net)
    assert isinstance(net[0], CompressedLinear)
