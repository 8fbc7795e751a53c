"""SemiWeight: a 2:4 weight that trains, packed for tensor cores and kept in step."""

from __future__ import annotations

import copy
import sys
import threading
from typing import Any, Literal, Self

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from transposable.errors import MaskError
from transposable.pattern import Pattern
from transposable.sparse.choice import Decide, always_sparse
from transposable.sparse.handles import Packing, register
from transposable.sparse.seen import Seen
from transposable.sparse.semi import probe
from transposable.sparse.semi.estimator import estimate
from transposable.sparse.semi.formats import REFERENCE, Format, format_on
from transposable.sparse.semi.operand import Operand, filled_up, fits
from transposable.sparse.semi.tuner import Case, Tuner, tuner_of

WeightGradient = Literal["dense", "mvue"]


class SemiWeight(Packing):
    """A weight with two of four kept, packed once for each optimizer step and direction.

    What runs is one given mask: a mask with more than two of four somewhere never runs sparse. The
    first mask of a layer is looked at before it runs, and the layer is dense with such a one; a
    later one gives NaN instead of a number, and an error at the next call, so that nothing has to
    wait for the GPU.

    A change is seen by the storage, address, shape, strides, dtype and version of weight and mask,
    and by the steps of torch's optimizers, since fused ones do not count versions. After another
    change (``weight.data``, a replayed CUDA graph) call :meth:`forget`. Where FSDP is at work,
    which gathers weights without counting, and while a CUDA graph is captured, a weight is packed
    for every call.

    Args:
        pattern: of the mask; one that is not transposable has no packed transpose.
        format: "auto", or one of ``FORMATS`` by name.
        decide: which matmuls run sparse.
        weight_gradient: "mvue" runs dy^T x with a 2:4 estimate of dy^T, see
            :func:`~transposable.sparse.semi.estimator.estimate`; "dense" does not.
        tuner: of algorithms; default that of the device.

    Attributes:
        pattern, format, decide, weight_gradient_kind: as given.
        packings: how often a direction was packed.

    Example:
        >>> packed = SemiWeight(Pattern.parse("2:4T"), format="reference")
        >>> x, weight, mask = torch.ones(1, 4), torch.eye(4), torch.eye(4, dtype=torch.bool)
        >>> packed.product(x, weight, mask).tolist(), packed.packings
        ([[1.0, 1.0, 1.0, 1.0]], 1)
    """

    __slots__ = (
        "__weakref__",
        "_captured",
        "_directions",
        "_doubt",
        "_lock",
        "_mask",
        "_mask_fits",
        "_tuner",
        "decide",
        "format",
        "handle",
        "packings",
        "pattern",
        "tag",
        "weight_gradient_kind",
    )

    def __init__(
        self,
        pattern: Pattern | None = None,
        *,
        format: str = "auto",
        decide: Decide = always_sparse,
        weight_gradient: WeightGradient = "dense",
        tuner: Tuner | None = None,
    ) -> None:
        self.pattern = pattern
        self.format = format
        self.decide = decide
        self.weight_gradient_kind = weight_gradient
        self.packings = 0
        self._tuner = tuner
        self._lock = threading.Lock()
        self.forget()
        self.handle, self.tag = register(self)

    def forget(self) -> None:
        self._directions: dict[bool, _Packed] = {}
        self._mask: Seen | None = None
        self._mask_fits = False
        self._doubt: _Doubt | None = None
        self._captured = False

    def product(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        mask: torch.Tensor,
        bias: torch.Tensor | None = None,
        *,
        transposed: bool = False,
    ) -> torch.Tensor | None:
        chosen = self.format_on(x.device)
        rows = x.reshape(-1, x.shape[-1])
        if not isinstance(chosen, Format) or not self._can(chosen, rows, weight, transposed):
            return None
        out, into = weight.shape[::-1] if transposed else weight.shape
        case = Case(chosen, out, into, rows.shape[0], x.dtype, bias is not None, x.device)
        algorithm = self._tuner_of(x.device).algorithm(case, may_measure=not probe.is_capturing(x))
        if algorithm is None:
            return None
        operand = self.operand(weight, mask, x.dtype, transposed=transposed, format=chosen)
        if operand is None:
            return None
        with torch.autocast(x.device.type, enabled=False):
            bias = None if bias is None else bias.detach().to(x.dtype)
            y = chosen.matmul(operand, rows, bias, algorithm)
        return y.reshape(*x.shape[:-1], out)

    def weight_gradient(
        self, x: torch.Tensor, dy: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        chosen = self.format_on(x.device)
        if self.weight_gradient_kind != "mvue" or not isinstance(chosen, Format):
            return None
        return estimated_weight_gradient(chosen, self._tuner_of(x.device), x, dy, mask)

    def operand(
        self,
        weight: torch.Tensor,
        mask: torch.Tensor,
        dtype: torch.dtype,
        *,
        transposed: bool = False,
        format: Format = REFERENCE,
    ) -> Operand | None:
        """The packed weight, of an earlier call if nothing has changed; None for a bad mask."""
        with self._lock, torch.no_grad():
            if probe.is_capturing(weight):
                # A replay must pack what the weight is then, and nothing outside may keep what a
                # replay overwrites. The weight may change in replays, which no version counts.
                self._captured = True
                return self._pack(weight, mask, dtype, transposed, format, doubted=True)
            if not self._look_at(mask):
                return None
            kept = self._directions.get(transposed)
            if (
                kept is None
                or not kept.is_still(weight, dtype, format)
                or self._always_anew(weight)
            ):
                seen = _WeightSeen(weight)  # before it is read: a change meanwhile is a change
                doubted = self._doubt is not None
                operand = self._pack(weight, mask, dtype, transposed, format, doubted=doubted)
                kept = self._directions[transposed] = _Packed(operand, seen, dtype, format)
            return kept.operand

    def format_on(self, device: torch.device) -> Format | str:
        """What packs on a device, or why nothing does."""
        return format_on(device, self.format)

    @property
    def nbytes(self) -> int:
        """Bytes of what is packed now."""
        return sum(kept.operand.nbytes for kept in self._directions.values())

    def _can(
        self, chosen: Format, rows: torch.Tensor, weight: torch.Tensor, transposed: bool
    ) -> bool:
        if transposed and (self.pattern is None or not self.pattern.transposable):
            return False
        good = all(side and side % chosen.multiple == 0 for side in weight.shape)
        return good and rows.shape[0] > 0 and rows.dtype in chosen.dtypes

    def _look_at(self, mask: torch.Tensor) -> bool:
        """Whether the mask has two of four at most; waits for the GPU at the first one only."""
        if self._doubt is not None and self._doubt.refuted():
            self.forget()
            raise MaskError(
                f"sparse tensor cores: a mask of pattern {self.pattern} was changed to one that "
                "keeps more than two of four consecutive weights somewhere, and what was computed "
                "with it is NaN; use masks of find_mask or of a MaskController, or run the layer "
                "dense-masked: use_backend(layers, DENSE_MASKED)"
            )
        if self._mask is not None and self._mask.is_still(mask):
            return self._mask_fits
        first = self._mask is None or not self._mask_fits
        self._mask = Seen(mask, sampled=False)
        self._directions.clear()
        good = self._good(mask)
        if first or not _on_gpu(mask):
            self._mask_fits, self._doubt = bool(good), None
        else:
            self._mask_fits, self._doubt = True, _Doubt(good)
        return self._mask_fits

    def _good(self, mask: torch.Tensor) -> torch.Tensor:
        good = fits(mask)
        both = self.pattern is not None and self.pattern.transposable
        return good & fits(mask.t()) if both else good

    def _pack(
        self,
        weight: torch.Tensor,
        mask: torch.Tensor,
        dtype: torch.dtype,
        transposed: bool,
        format: Format,
        *,
        doubted: bool,
    ) -> Operand:
        self.packings += 1
        good = self._good(mask) if doubted else None
        with torch.autocast(weight.device.type, enabled=False):
            return format.pack(weight, mask, dtype, transposed=transposed, good=good)

    def _always_anew(self, weight: torch.Tensor) -> bool:
        return self._captured or weight.is_inference() or fsdp_at_work()

    def _tuner_of(self, device: torch.device) -> Tuner:
        return self._tuner or tuner_of(device)

    def __repr__(self) -> str:
        return f"SemiWeight({self.pattern}, {self.format}, handle={self.handle})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)(
            self.pattern,
            format=self.format,
            decide=copy.deepcopy(self.decide, memo),
            weight_gradient=self.weight_gradient_kind,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        how = self.pattern, self.format, self.decide, self.weight_gradient_kind
        return _restored, (type(self), *how)


def estimated_weight_gradient(
    format: Format,
    tuner: Tuner,
    x: torch.Tensor,
    dy: torch.Tensor,
    mask: torch.Tensor | None,
    generator: torch.Generator | None = None,
) -> torch.Tensor | None:
    """S * (e(dy)^T x) with e(dy)^T the 2:4 estimate of dy^T; None where it cannot be packed.

    Args:
        format: what multiplies.
        tuner: of its algorithms.
        x, dy: [..., in] and [..., out].
        mask: [out, in], or None for the gradient of all weights.
        generator: of the random numbers.
    """
    out, into = dy.shape[-1], x.shape[-1]
    if out % format.multiple or into % format.multiple or not x.numel():
        return None
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        wide = max(format.multiple, 16)
        # The contraction is over tokens: both factors are filled up with the same zeros.
        tall = filled_up(x.reshape(-1, into), wide)
        drawn = estimate(filled_up(dy.reshape(-1, out), wide), generator)
        tokens = tall.shape[0]
        case = Case(format, out, tokens, into, x.dtype, False, x.device, left=True)
        algorithm = tuner.algorithm(case, may_measure=not probe.is_capturing(x))
        if algorithm is None:
            return None
        operand = format.pack(drawn, drawn != 0, x.dtype, transposed=True)
        dw = format.left_matmul(operand, tall, algorithm)
        dw = dw.to(torch.float32) if x.device.type == "cpu" else dw
        return dw if mask is None else torch.where(mask, dw, 0.0)


def fsdp_at_work() -> bool:
    """Whether weights may be gathered into the memory of other weights without being counted.

    FSDP keeps the version of a gathered weight on purpose. Once it is imported by a program of
    several processes, nothing tells its weights from others'.
    """
    if "torch.distributed.fsdp" not in sys.modules:
        return False
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _on_gpu(mask: torch.Tensor) -> bool:
    return mask.is_cuda


class _Packed:
    """An operand and what it was made from."""

    __slots__ = ("_dtype", "_format", "_seen", "operand")

    def __init__(
        self, operand: Operand, seen: _WeightSeen, dtype: torch.dtype, format: Format
    ) -> None:
        self.operand = operand
        self._seen, self._dtype, self._format = seen, dtype, format

    def is_still(self, weight: torch.Tensor, dtype: torch.dtype, format: Format) -> bool:
        same = self._dtype == dtype and self._format is format
        return same and self._seen.is_still(weight)


class _WeightSeen(Seen):
    """A weight as it was, and when: fused optimizers write without counting a version."""

    __slots__ = ("_steps",)

    def __init__(self, weight: torch.Tensor) -> None:
        _count_steps()
        super().__init__(weight, sampled=False)
        self._steps = _STEPS.number

    def is_still(self, tensor: torch.Tensor) -> bool:
        return self._steps == _STEPS.number and super().is_still(tensor)


class _Steps:
    """How many steps optimizers have made in this process since something was packed."""

    __slots__ = ("counting", "number")

    def __init__(self) -> None:
        self.number, self.counting = 0, False


_STEPS = _Steps()


def _count_steps() -> None:
    if not _STEPS.counting:
        _STEPS.counting = True
        register_optimizer_step_post_hook(_stepped)


def _stepped(*_: Any) -> None:
    _STEPS.number += 1


class _Doubt:
    """Whether a mask fits, known to the host some time later."""

    __slots__ = ("_arrived", "_fits")

    def __init__(self, good: torch.Tensor) -> None:
        self._fits = torch.empty((), dtype=torch.bool, pin_memory=True)
        self._fits.copy_(good, non_blocking=True)
        self._arrived: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record()

    def refuted(self) -> bool:
        return bool(self._arrived.query()) and not bool(self._fits)


def _restored(
    kind: type[SemiWeight],
    pattern: Pattern | None,
    format: str,
    decide: Decide,
    weight_gradient: WeightGradient,
) -> SemiWeight:
    return kind(pattern, format=format, decide=decide, weight_gradient=weight_gradient)
