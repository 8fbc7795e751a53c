"""What a layer's inputs and wanted outputs say about its weights: sums over the calibration."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch
from torch import nn

from transposable.prune.reading import Reading

NOISE: Final = 1e-6
"""Of the inputs' power: less variance is what rounding leaves of sums in single precision."""


class Moments:
    """Sums over samples, added batch by batch; products in the inputs' precision, sums in double.

        H = sum x x^T,  G = sum y x^T,  P = sum y^2,  and the sums of x and y

    x are the inputs of the layer that is pruned, y what the dense layer gives for them without its
    bias: of the same inputs, or of those that the dense model has.

    Attributes:
        gram: H [groups, cols, cols], float64.
        cross: G [groups, rows, cols], float64.
        power: P [groups, rows], float64.
        inputs, outputs: the sums of x [groups, cols] and y [groups, rows], float64.
        count: number of samples.

    Complexity: 2 samples cols (cols + rows) operations; memory cols^2 doubles.
    """

    def __init__(self, reading: Reading, device: torch.device) -> None:
        groups, rows, cols = reading.shape
        self.reading = reading
        # That device has no doubles.
        wide = torch.float32 if device.type == "mps" else torch.float64
        self.gram = torch.zeros(groups, cols, cols, dtype=wide, device=device)
        self.cross = torch.zeros(groups, rows, cols, dtype=wide, device=device)
        self.power = torch.zeros(groups, rows, dtype=wide, device=device)
        self.inputs = torch.zeros(groups, cols, dtype=wide, device=device)
        self.outputs = torch.zeros(groups, rows, dtype=wide, device=device)
        self.count = 0

    @classmethod
    def none(cls, reading: Reading, device: torch.device) -> Moments:
        """The sums of no sample, in hardly any memory, for a method that looks at none."""
        nothing = cls(replace(reading, rows=0, channels=0), device)
        groups, rows, cols = reading.shape
        nothing.reading = reading
        zero = torch.zeros((), dtype=nothing.gram.dtype, device=device)
        nothing.gram = zero.expand(groups, cols, cols)
        nothing.cross = zero.expand(groups, rows, cols)
        nothing.power = nothing.outputs = zero.expand(groups, rows)
        nothing.inputs = zero.expand(groups, cols)
        return nothing

    @staticmethod
    def memory(reading: Reading) -> int:
        """Bytes that the sums of a layer take."""
        groups, rows, cols = reading.shape
        return 8 * groups * cols * (cols + rows)

    def add(
        self,
        module: nn.Module,
        x: torch.Tensor,
        y: torch.Tensor | None,
        products: dict[tuple[int, ...], torch.Tensor] | None = None,
    ) -> None:
        """Add one call of the layer.

        Args:
            module: the layer.
            x: what it was given.
            y: what is wanted, without bias; None to take it from :meth:`close` in the end.
            products: x x^T by the shape it was made for, where another layer was given the same x.
        """
        start = 0
        wanted = None if y is None else _precise(self.reading.outputs(y))
        for raw in self.reading.inputs(module, x):
            part = _precise(raw)
            stop = start + part.shape[1]
            self.gram += self._product(part, products)
            self.inputs += part.sum(1)  # of one part: single precision does, at a sixth of the time
            if wanted is not None:
                target = wanted[:, start:stop]
                self.cross += target.mT @ part
                self.power += target.square().sum(1)
                self.outputs += target.sum(1)
            start = stop
        self.count += start

    def _product(
        self, part: torch.Tensor, products: dict[tuple[int, ...], torch.Tensor] | None
    ) -> torch.Tensor:
        if self.reading.conv or products is None:
            return part.mT @ part
        key = tuple(part.shape)
        if key not in products:
            products[key] = part.mT @ part
        return products[key]

    def __add__(self, other: Moments) -> Moments:
        """The sums over the samples of both."""
        both = Moments.none(self.reading, self.gram.device)
        both.gram = self.gram + other.gram
        both.cross = self.cross + other.cross
        both.power = self.power + other.power
        both.inputs = self.inputs + other.inputs
        both.outputs = self.outputs + other.outputs
        both.count = self.count + other.count
        return both

    def close(self, weight: torch.Tensor) -> None:
        """The sums over y, for y = W x of the same inputs."""
        wide = weight.to(self.gram.dtype)
        torch.matmul(wide, self.gram, out=self.cross)
        self.power = (self.cross * wide).sum(2)
        self.outputs = (wide @ self.inputs.unsqueeze(2)).squeeze(2)

    @property
    def varies(self) -> bool:
        """Whether inputs differ from their mean; a single sample does not.

        sum_j H_jj - (sum x_j)^2 / count  >  1e-6 sum_j H_jj
        """
        power = self.gram.diagonal(dim1=1, dim2=2).sum()
        constant = self.inputs.square().sum() / max(self.count, 1)
        return self.count > 1 and bool(power - constant > NOISE * power)

    def tensors(self) -> list[torch.Tensor]:
        """All sums but the count, to be added up over processes."""
        return [self.gram, self.cross, self.power, self.inputs, self.outputs]


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
