"""Arrays of every kind come in as they are, and go out as the same kind."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from transposable import DeviceError, ScoresError, find_mask, solve, verify
from transposable.arrays import like, to_scores, to_tensor

VALUES = np.random.default_rng(0).standard_normal((8, 12))
EXPECTED = solve(VALUES.astype(np.float32), "2:4T").mask.tensor


class Exporter:
    """The least that DLPack asks of an array."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return self.array.__dlpack_device__()


class Standard(Exporter):
    """An array of the array API standard, whose namespace is numpy's."""

    def __array_namespace__(self) -> Any:
        return np


def same_values(array: Any, dtype: torch.dtype) -> None:
    tensor = to_scores(array, "op")
    assert tensor.dtype == dtype
    expected = torch.from_numpy(VALUES).float().to(dtype)
    assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ("numpy_dtype", "dtype"),
    [
        (np.float16, torch.float16),
        (np.float32, torch.float32),
        (np.float64, torch.float64),
        (ml_dtypes.bfloat16, torch.bfloat16),
    ],
)
def test_numpy(numpy_dtype: Any, dtype: torch.dtype) -> None:
    array = VALUES.astype(np.float32).astype(numpy_dtype)
    wide = np.zeros((16, 24), numpy_dtype)
    wide[::2, ::2] = array
    readonly = array.copy()
    readonly.flags.writeable = False
    for variant in (
        array,
        np.asfortranarray(array),
        wide[::2, ::2],
        np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1],
        readonly,
        readonly.T.copy().T,
    ):
        same_values(variant, dtype)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", ["f2", "f4", "f8"])
def test_either_byte_order(order: str, code: str) -> None:
    array = VALUES.astype(np.float32).astype(order + code)
    expected = to_scores(array.astype(code), "op")
    assert torch.equal(to_scores(array, "op"), expected)
    array.flags.writeable = False
    assert torch.equal(to_scores(array, "op"), expected)


def test_a_field_of_a_record_array() -> None:
    records = np.zeros(VALUES.shape, [("value", "f4"), ("flag", "i1")])
    records["value"] = VALUES
    assert records["value"].strides[1] == 5
    same_values(records["value"], torch.float32)


def test_memory_is_shared_where_it_can_be() -> None:
    array = VALUES.astype(np.float32)
    assert to_tensor(array, "op").data_ptr() == array.ctypes.data
    assert to_tensor(array.T, "op").data_ptr() == array.ctypes.data
    tensor = torch.from_numpy(array)
    assert to_tensor(tensor, "op").data_ptr() == array.ctypes.data


def test_an_input_is_never_written() -> None:
    array = VALUES.astype(np.float32)
    before = array.copy()
    for pattern in ("2:4T", "2:4", "2:4S", "50%"):
        find_mask(array, pattern)
        solve(array, pattern)
        verify(array, pattern)
    np.testing.assert_array_equal(array, before)


def test_torch_tensors() -> None:
    plain = torch.from_numpy(VALUES).float()
    wide = torch.zeros(16, 24)
    wide[::2, ::2] = plain
    for tensor in (
        plain,
        plain.T.contiguous().T,
        wide[::2, ::2],
        plain.clone().requires_grad_(),
        torch.nn.Parameter(plain.clone()),
    ):
        assert torch.equal(to_scores(tensor, "op"), plain)
        assert not to_scores(tensor, "op").requires_grad
        assert torch.equal(solve(tensor, "2:4T").mask.tensor, EXPECTED)


def test_a_lazily_negated_view_has_its_own_sign() -> None:
    plain = torch.from_numpy(VALUES).float()
    negated = torch.imag(torch.complex(torch.zeros_like(plain), plain).conj())
    assert negated.is_neg()
    assert torch.equal(solve(-negated, "2:4T").mask.tensor, EXPECTED)
    assert solve(negated, "2:4T").objective == solve(-plain, "2:4T").objective


def test_an_expanded_view() -> None:
    row = torch.rand(1, 8, generator=torch.Generator().manual_seed(0))
    mask = find_mask(row.expand(8, 8), "4:8T")
    assert mask.violations() == 0
    assert mask.density == 0.5


@pytest.mark.parametrize("kind", [Exporter, Standard])
def test_dlpack(kind: type[Exporter]) -> None:
    same_values(kind(VALUES.astype(np.float32)), torch.float32)
    same_values(kind(torch.from_numpy(VALUES).bfloat16()), torch.bfloat16)
    assert torch.equal(find_mask(kind(VALUES), "2:4T").tensor, find_mask(VALUES, "2:4T").tensor)


def test_the_mask_is_of_the_callers_kind() -> None:
    array = VALUES.astype(np.float32)
    for source, kind in (
        (torch.from_numpy(array), torch.Tensor),
        (array, np.ndarray),
        (array.astype(ml_dtypes.bfloat16), np.ndarray),
        (Standard(array), np.ndarray),
        (Exporter(array), torch.Tensor),  # nothing says how to make one of its kind
    ):
        mask = find_mask(source, "2:4T").array
        assert type(mask) is kind
        assert mask.dtype == (torch.bool if kind is torch.Tensor else np.dtype(bool))
        assert tuple(mask.shape) == array.shape
        assert type(solve(source, "2:4T").mask.array) is kind
    assert type(find_mask(torch.nn.Parameter(torch.ones(4, 4)), "2:4T").array) is torch.Tensor
    assert like(torch.ones(2), None) is not None


SPARSE = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")


@SPARSE
@pytest.mark.parametrize("convert", ["to_sparse", "to_sparse_csr"])
def test_sparse_tensors(convert: str) -> None:
    with pytest.raises(ScoresError, match=r"^op: received a tensor of layout .*call .to_dense"):
        to_tensor(getattr(torch.eye(4), convert)(), "op")


def test_another_device() -> None:
    for function in (find_mask, solve, verify):
        with pytest.raises(DeviceError, match=r"a tensor on meta; .* call .cpu\(\) first"):
            function(torch.empty(4, 4, device="meta"), "2:4T")


@pytest.mark.parametrize("operation", [find_mask, solve])
@pytest.mark.parametrize(
    "dtype",
    [
        torch.int8,
        torch.int32,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fn,
    ],
)
def test_other_dtypes(operation: Any, dtype: torch.dtype) -> None:
    with pytest.raises(ScoresError, match=rf"received dtype {dtype}; float32, .*convert first"):
        operation(torch.zeros(4, 4, dtype=dtype), "2:4T")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), np.int32),
        np.zeros((4, 4), bool),
        np.zeros((4, 4), np.complex128),
        np.zeros((4, 4), np.longdouble),
        np.zeros((4, 4), object),
        np.full((4, 4), "x"),
        np.zeros((4, 4), "datetime64[s]"),
        np.zeros((4, 4), ml_dtypes.float8_e4m3fn),
        np.zeros((4, 4), [("a", "f4")]),
    ],
    ids=lambda array: str(array.dtype),
)
def test_other_numpy_dtypes(array: Any) -> None:
    for writeable in (True, False):
        array.flags.writeable = writeable
        with pytest.raises(
            ScoresError, match=r"^find_mask: received .*dtype .* is needed; convert"
        ):
            find_mask(array, "2:4T")


@pytest.mark.parametrize("value", [None, 1.0, [[1.0, 2.0]], "weights", np.float32(1)])
def test_no_array(value: Any) -> None:
    with pytest.raises(ScoresError, match=rf"^op: received {type(value).__name__}; a torch tensor"):
        to_tensor(value, "op")


@pytest.mark.parametrize("scalar", [torch.tensor(1.0), np.array(1.0)])
def test_zero_dimensions(scalar: Any) -> None:
    with pytest.raises(ScoresError, match="received a 0-d tensor; a weight has at least two"):
        find_mask(scalar, "2:4T")


def test_a_dlpack_object_that_fails() -> None:
    class Broken:
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("strides of part of an element")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    with pytest.raises(ScoresError, match=r"Broken could not be read through DLPack \(strides"):
        find_mask(Broken(), "2:4T")
