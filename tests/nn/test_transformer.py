"""torch's transformer layers read weights past the modules: sparse ones must not be passed by."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from transposable import densify, sparsify
from transposable.nn import SparseLinear

FUSED = "_transformer_encoder_layer_fwd"


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of the operator that reads the weights of a whole encoder layer."""
    calls: list[str] = []
    operator = getattr(torch, FUSED)

    def counted(*args: object) -> torch.Tensor:
        calls.append(FUSED)
        result: torch.Tensor = operator(*args)
        return result

    monkeypatch.setattr(torch, FUSED, counted)
    return calls


def encoder_layer(**options: object) -> nn.TransformerEncoderLayer:
    torch.manual_seed(0)
    return nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0, **options).eval()


X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [False] * 4 + [True]])


@pytest.mark.parametrize("padding", [None, PADDED], ids=["whole", "padded"])
@pytest.mark.parametrize("norm_first", [False, True])
@torch.no_grad()
def test_an_encoder_layer_in_eval_mode(
    fused: list[str], padding: torch.Tensor | None, norm_first: bool
) -> None:
    layer = encoder_layer(norm_first=norm_first)
    before = layer(X, src_key_padding_mask=padding)
    assert fused  # or this test would show nothing
    sparsify(layer, "2:4T")
    dense = copy.deepcopy(layer)
    densify(dense)
    fused.clear()
    sparse = layer(X, src_key_padding_mask=padding)
    assert not fused
    expected = dense(X, src_key_padding_mask=padding)
    assert fused  # densify gives the fast path back
    torch.testing.assert_close(sparse, expected)
    assert (sparse - before).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("include", ["*", "layers.0.linear2", "layers.1.linear1"])
@torch.no_grad()
def test_an_encoder_that_packs_its_input(fused: list[str], nested: bool, include: str) -> None:
    encoder = nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=nested).eval()
    encoder(X, src_key_padding_mask=PADDED)
    assert fused
    sparsify(encoder, "2:4T", include=include)
    dense = copy.deepcopy(encoder)
    densify(dense)
    fused.clear()
    sparse = encoder(X, src_key_padding_mask=PADDED)
    assert len(fused) == (0 if include == "*" else 1)
    expected = dense(X, src_key_padding_mask=PADDED)
    keep = ~PADDED if sparse.shape == X.shape else ~PADDED[:, : sparse.shape[1]]
    torch.testing.assert_close(sparse[keep], expected[keep])


@torch.no_grad()
def test_a_sparse_layer_put_in_by_hand(fused: list[str]) -> None:
    layer = encoder_layer()
    layer.linear1 = SparseLinear(16, 32, pattern="2:4T")
    sparse = layer(X)
    assert not fused
    layer.linear1 = layer.linear1.to_dense()
    torch.testing.assert_close(sparse, layer(X))
    assert fused


@torch.no_grad()
def test_copies_keep_off_the_fast_path(fused: list[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    layer = encoder_layer()
    sparsify(layer, "2:4T", include="linear1")
    expected = layer(X)
    torch.save(layer, tmp_path / "layer.pt")
    for twin in (copy.deepcopy(layer), torch.load(tmp_path / "layer.pt", weights_only=False)):
        torch.testing.assert_close(twin(X), expected, rtol=0, atol=0)
    assert not fused


@torch.no_grad()
def test_the_other_layers_call_their_modules() -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Transformer(16, 2, 1, 1, 32, dropout=0.0, batch_first=True).eval()
    changes = sparsify(model, "2:4T")
    assert {change.name.split(".")[-1] for change in changes} == {"linear1", "linear2"}
    dense = copy.deepcopy(model)
    densify(dense)
    torch.testing.assert_close(model(X, X), dense(X, X))
