"""torch's sparse operators as they are on a GPU, on the CPU: they check what they are given.

Each fake compares its call with the schema that torch itself holds, refuses what the real kernel
refuses, and computes the right result, so that a swapped argument or a wrong transposition shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from transposable.sparse.semi import probe
from transposable.sparse.semi.formats import CUSPARSELT, CUTLASS

HALVES = (torch.bfloat16, torch.float16)


def bound(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments by the names of torch's schema, its defaults included.

    Raises:
        TypeError: for an argument that the schema has not.
    """
    schema = getattr(torch.ops.aten, name).default._schema
    names = [argument.name for argument in schema.arguments]
    positional = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    if len(args) > len(positional):
        raise TypeError(f"{name}: {len(args)} positional arguments for {schema}")
    found = dict(zip(positional, args, strict=False))
    for key, value in kwargs.items():
        if key not in names or key in found:
            raise TypeError(f"{name}: argument {key!r} for {schema}")
        found[key] = value
    for argument in schema.arguments:
        if argument.name not in found:
            if not argument.has_default_value():
                raise TypeError(f"{name}: no argument {argument.name!r} for {schema}")
            found[argument.name] = argument.default_value
        kind, value = str(argument.type), found[argument.name]
        wanted = {"Tensor": torch.Tensor, "int": int, "bool": bool, "str": str}.get(kind)
        if wanted is not None and type(value) is not wanted:
            raise TypeError(f"{name}: {argument.name} is a {type(value).__name__}, not a {kind}")
        if kind == "Optional[Tensor]" and not (value is None or isinstance(value, torch.Tensor)):
            raise TypeError(f"{name}: {argument.name} is a {type(value).__name__}")
    return found


@dataclass
class Calls:
    """What was called, in order, and what goes wrong on purpose.

    Attributes:
        log: (operator, its arguments by name).
        broken: what the product does instead, by alg_id.
        last_id: of the algorithms that there are.
        deaf_to_bias: whether the bias of the first call stays that of all later ones.
    """

    log: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    broken: dict[int, Callable[[torch.Tensor], torch.Tensor]] = field(default_factory=dict)
    last_id: int = 3
    first_bias: torch.Tensor | None = None
    deaf_to_bias: bool = False

    def names(self) -> list[str]:
        return [name for name, _ in self.log]

    def count(self, name: str) -> int:
        return self.names().count(name)


def two_of_four(dense: torch.Tensor) -> None:
    rows, cols = dense.shape
    kept = (dense != 0).reshape(rows, cols // 4, 4).sum(-1)
    assert int(kept.max()) <= 2, "compress: more than two of four are not 0"


def compress(calls: Calls) -> Callable[..., torch.Tensor]:
    def fake(*args: Any, **kwargs: Any) -> torch.Tensor:
        given = bound("_cslt_compress", args, kwargs)
        calls.log.append(("compress", given))
        dense = given["input"]
        assert dense.dim() == 2
        assert dense.is_contiguous(), "compress reads row after row, whatever the strides"
        assert dense.dtype in HALVES
        assert all(side > 0 and side % 16 == 0 for side in dense.shape)
        assert dense.data_ptr() % 16 == 0
        two_of_four(dense.nan_to_num(1.0))
        rows, cols = dense.shape
        packed = dense.new_full((rows, cols * 9 // 16), float("nan"))
        # The values in their order, then what stands for the metadata: the places.
        groups = dense.reshape(rows, cols // 4, 4)
        order = (groups != 0).to(torch.uint8).argsort(stable=True, dim=-1, descending=True)
        places = order[..., :2].sort(-1).values
        values = groups.gather(-1, places).reshape(rows, -1)
        packed[:, : cols // 2] = values
        codes = (places[..., 0] | places[..., 1] << 2).to(torch.uint8).reshape(rows, -1)
        if codes.shape[1] % 2:
            codes = torch.nn.functional.pad(codes, (0, 1))
        bits = (codes[:, 0::2] | codes[:, 1::2] << 4).contiguous()
        packed[:, cols // 2 :] = bits.view(dense.dtype).reshape(rows, -1)
        return packed

    return fake


def expanded(packed: torch.Tensor, cols: int) -> torch.Tensor:
    rows = packed.shape[0]
    assert packed.is_contiguous()
    values = packed[:, : cols // 2].reshape(rows, cols // 4, 2)
    bits = packed[:, cols // 2 :].contiguous().view(torch.uint8).reshape(rows, -1)
    codes = torch.stack([bits & 15, bits >> 4], -1).reshape(rows, -1)[:, : cols // 4]
    places = torch.stack([codes & 3, codes >> 2], -1).long()
    dense = packed.new_zeros(rows, cols // 4, 4)
    return dense.scatter_(-1, places, values).reshape(rows, cols)


def product(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A B + b in float32, rounded once."""
    y = a.float() @ b.float()
    if bias is not None:
        y = y + bias.float()[:, None]
    return y.to(a.dtype)


def sparse_mm(calls: Calls) -> Callable[..., torch.Tensor]:
    def fake(*args: Any, **kwargs: Any) -> torch.Tensor:
        given = bound("_cslt_sparse_mm", args, kwargs)
        calls.log.append(("mm", given))
        packed, b, bias = given["compressed_A"], given["dense_B"], given["bias"]
        assert packed.dim() == b.dim() == 2
        assert packed.dtype == b.dtype
        assert b.dtype in HALVES
        assert b.is_contiguous() or b.t().is_contiguous(), "B is a matrix or its transpose"
        k, n = b.shape
        m = packed.shape[0]
        assert packed.shape[1] == k * 9 // 16, "A and B do not fit"
        assert m % 16 == 0
        assert k % 16 == 0
        assert n > 0
        assert n % 8 == 0, "the dense side is a multiple of 8"
        assert b.data_ptr() % 16 == 0
        assert given["alpha"] is None, "alpha waits for the host"
        assert given["out_dtype"] is None, "out_dtype is for int8 and float8"
        if given["alg_id"] not in range(calls.last_id + 1):
            raise RuntimeError("CUDA error: invalid value when calling `cusparseLtMatmulPlanInit`")
        if bias is not None:
            assert bias.shape == (m,)
            assert bias.dtype == b.dtype
            assert bias.is_contiguous()
            assert bias.data_ptr() % 16 == 0
            if calls.deaf_to_bias:
                stale = calls.first_bias is not None and calls.first_bias.shape == bias.shape
                calls.first_bias = calls.first_bias if stale else bias.clone()
                bias = calls.first_bias
        y = product(expanded(packed, k), b, bias)
        if given["alg_id"] in calls.broken:
            y = calls.broken[given["alg_id"]](y)
        return y.t().contiguous() if given["transpose_result"] else y

    return fake


def tile(calls: Calls) -> Callable[..., tuple[torch.Tensor, ...]]:
    def fake(*args: Any, **kwargs: Any) -> tuple[torch.Tensor, ...]:
        from torch.sparse._semi_structured_conversions import (
            sparse_semi_structured_from_dense_cutlass as from_dense,
        )

        given = bound("_sparse_semi_structured_tile", args, kwargs)
        calls.log.append(("tile", given))
        dense = given["input"]
        assert given["use_cutlass"] is True
        assert given["algorithm"] == "largest_abs_values_greedy", "others rank signed values"
        assert dense.is_contiguous()
        assert dense.dtype in HALVES
        assert all(side % 64 == 0 for side in dense.shape)
        # A NaN has no rank: this one is as unlucky as can be.
        ranked = dense.nan_to_num(0.0, posinf=1.0, neginf=-1.0)
        two_of_four(ranked)
        rows, cols = dense.shape
        packed, meta = from_dense(ranked)
        packed_t, meta_t = from_dense(ranked.t().contiguous())
        masks = dense.new_zeros((rows // 8, cols // 8, 8), dtype=torch.uint8)
        return packed, meta, packed_t, meta_t, masks

    return fake


def cutlass_mm(calls: Calls, name: str) -> Callable[..., torch.Tensor]:
    def fake(*args: Any, **kwargs: Any) -> torch.Tensor:
        from torch.sparse._semi_structured_conversions import (
            sparse_semi_structured_to_dense_cutlass as to_dense,
        )

        given = bound(name, args, kwargs)
        calls.log.append((name, given))
        packed, meta, b = given["mat1"], given["mat1_meta"], given["mat2"]
        assert meta.dtype == torch.int16
        assert packed.dtype == b.dtype
        assert packed.shape[1] * 2 == b.shape[0]
        assert 1 in b.stride()
        assert b.shape[1] % 8 == 0
        bias = given.get("input")
        if bias is not None:
            assert bias.dim() == 1
            assert bias.dtype == b.dtype
            assert bias.shape[0] == packed.shape[0]
        return product(to_dense(packed.contiguous(), meta), b, bias)

    return fake


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The operators of torch replaced, and formats that take the CPU for a GPU."""
    calls = Calls()
    monkeypatch.setattr(torch, "_cslt_compress", compress(calls))
    monkeypatch.setattr(torch, "_cslt_sparse_mm", sparse_mm(calls))
    monkeypatch.setattr(torch, "_sparse_semi_structured_tile", tile(calls))
    for name in ("_sparse_semi_structured_mm", "_sparse_semi_structured_addmm"):
        monkeypatch.setattr(torch, name, cutlass_mm(calls, name))
    for each in (CUSPARSELT, CUTLASS):
        monkeypatch.setattr(type(each), "why_not", lambda self, device: None)
    # "auto" finds the first of them on any device, and the identity of a GPU is made up.
    monkeypatch.setattr(
        probe, "gpu_identity", lambda device: {"gpu": "fake", "device": str(device)}
    )
    return calls
