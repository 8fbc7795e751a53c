"""Whether packing keeps exactly what a mask keeps: asked of the library, bit for bit."""

from __future__ import annotations

import torch

from transposable.sparse.semi.formats import Format
from transposable.sparse.semi.operand import GROUP, Algorithm, Operand, masked

SIDE = 128
"""Of the matrix that is packed: a multiple of what every format asks for."""

FIRST = Algorithm()

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def dense_of(
    format: Format, operand: Operand, dtype: torch.dtype, algorithm: Algorithm = FIRST
) -> torch.Tensor:
    """The matrix [rows, cols] that an operand multiplies by: its product with the identity.

    Every entry is one value times 1, so that it is exact; but for the sign of a zero.
    """
    device = operand.values.device
    one = torch.eye(operand.cols, dtype=dtype, device=device)
    return format.matmul(operand, one, None, algorithm).t()


def reproduces(
    format: Format,
    weight: torch.Tensor,
    mask: torch.Tensor,
    dtype: torch.dtype,
    *,
    transposed: bool = False,
    algorithm: Algorithm = FIRST,
) -> bool:
    """Whether a packed weight is S * W, or its transpose, bit for bit. Waits for the device.

    Args:
        format: what packs and multiplies.
        weight: [out, in]; finite where it is kept.
        mask: bool, the same shape, at most two of every four along what is packed.
        dtype: of the products.
        transposed: whether W^T is packed.
        algorithm: of the product.

    Complexity: one product with the identity.

    Example:
        >>> from transposable.sparse.semi.formats import REFERENCE
        >>> mask = torch.eye(8, dtype=torch.bool)
        >>> reproduces(REFERENCE, torch.randn(8, 8), mask, torch.bfloat16)
        True
    """
    operand = format.pack(weight, mask, dtype, transposed=transposed)
    found = dense_of(format, operand, dtype, algorithm)
    return same_bits(found, masked(weight, mask, dtype, transposed=transposed))


def same_bits(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit, with -0 as 0."""
    bits = _BITS[wanted.element_size()]
    # x + 0 is x but for -0, and keeps the bits of everything finite.
    one, other = (tensor.contiguous().add(0.0).view(bits) for tensor in (found, wanted))
    return torch.equal(one, other)


def why_unsound(format: Format, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a format cannot be used on a device, or None: it was tried on a hard small matrix.

    Packed both ways under a 2:4-transposable mask, it must be reproduced to the bit by one of the
    algorithms: weights of many sizes, kept weights that are 0, pruned weights that are NaN. A NaN
    or an infinity that is kept must leave no finite number in the outputs that it belongs to.

    Complexity: some products of 128 x 128; it waits for the device.

    Example:
        >>> from transposable.sparse.semi.formats import REFERENCE
        >>> why_unsound(REFERENCE, torch.device("cpu"), torch.bfloat16) is None
        True
    """
    mask, weight = _hard_matrix(device)
    try:
        operand = format.pack(weight, mask, dtype, transposed=False)
        one = torch.eye(SIDE, dtype=dtype, device=device)
        algorithms = list(format.algorithms(operand, one, None))
    except RuntimeError as error:
        return f"{format.name} fails here: {_first_line(error)}"
    reasons = []
    for algorithm in algorithms:
        reason = _why_wrong(format, weight, mask, dtype, algorithm)
        if reason is None:
            return None
        reasons.append(reason)
    return reasons[0] if reasons else f"{format.name} has no algorithm here"


def _why_wrong(
    format: Format,
    weight: torch.Tensor,
    mask: torch.Tensor,
    dtype: torch.dtype,
    algorithm: Algorithm,
) -> str | None:
    try:
        for flipped in (False, True):
            if not reproduces(format, weight, mask, dtype, transposed=flipped, algorithm=algorithm):
                return f"{format.name} does not reproduce a packed matrix bit for bit here"
            if not _keeps_what_is_not_finite(format, mask, dtype, flipped, algorithm):
                return f"{format.name} loses a NaN or an infinity of a packed matrix here"
    except RuntimeError as error:
        return f"{format.name} fails here: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _hard_matrix(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A 2:4-transposable mask of many kinds of tiles, and weights, none subnormal in float16."""
    base = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]]).bool()
    orders = [torch.tensor(o) for o in ((0, 1, 2, 3), (2, 0, 3, 1), (3, 1, 0, 2), (1, 2, 0, 3))]
    tiles = [base[rows][:, cols] for rows in orders for cols in orders]
    count = SIDE // GROUP
    strips = [
        torch.cat([tiles[(3 * down + 5 * across) % len(tiles)] for across in range(count)], 1)
        for down in range(count)
    ]
    mask = torch.cat(strips)
    random = torch.Generator().manual_seed(0)
    mantissa = 1 + torch.rand((SIDE, SIDE), generator=random)
    power = torch.randint(-8, 9, (SIDE, SIDE), generator=random)
    sign = 1 - 2 * torch.randint(0, 2, (SIDE, SIDE), generator=random)
    weight = torch.ldexp(mantissa, power) * sign
    weight[torch.rand((SIDE, SIDE), generator=random) < 0.1] = 0.0
    weight[~mask] = torch.nan
    return mask.to(device), weight.to(device)


def _keeps_what_is_not_finite(
    format: Format,
    mask: torch.Tensor,
    dtype: torch.dtype,
    transposed: bool,
    algorithm: Algorithm,
) -> bool:
    oriented = mask.t() if transposed else mask
    good = True
    for row, value in ((5, torch.nan), (6, torch.inf)):
        weight = torch.ones(mask.shape, device=mask.device)
        # The second kept entry of a row, which a sort may take for the smallest.
        place = int(oriented[row].nonzero()[1])
        weight[(place, row) if transposed else (row, place)] = value
        operand = format.pack(weight, mask, dtype, transposed=transposed)
        x = torch.ones((8, SIDE), dtype=dtype, device=mask.device)
        y = format.matmul(operand, x, None, algorithm)
        good = good and not bool(y[:, row].isfinite().any())
        others = torch.arange(SIDE, device=mask.device) != row
        good = good and bool((y[:, others] == SIDE // 2).all())
    return good
