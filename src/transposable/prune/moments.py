"""What a layer's inputs and wanted outputs say about its weights: sums over the calibration."""

from __future__ import annotations

import torch
from torch import nn

from transposable.prune.reading import Reading


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

    def add(self, module: nn.Module, x: torch.Tensor, y: torch.Tensor | None) -> None:
        """Add one call of the layer; ``y`` without bias, None to take it from :meth:`close`."""
        start = 0
        wanted = None if y is None else _precise(self.reading.outputs(y))
        for raw in self.reading.inputs(module, x):
            part = _precise(raw)
            stop = start + part.shape[1]
            self.gram += part.mT @ part
            self.inputs += part.sum(1)  # of one part: single precision does, at a sixth of the time
            if wanted is not None:
                target = wanted[:, start:stop]
                self.cross += target.mT @ part
                self.power += target.square().sum(1)
                self.outputs += target.sum(1)
            start = stop
        self.count += start

    def close(self, weight: torch.Tensor) -> None:
        """The sums over y, for y = W x of the same inputs."""
        wide = weight.to(self.gram.dtype)
        torch.matmul(wide, self.gram, out=self.cross)
        self.power = (self.cross * wide).sum(2)
        self.outputs = (wide @ self.inputs.unsqueeze(2)).squeeze(2)

    def tensors(self) -> list[torch.Tensor]:
        """All sums but the count, to be added up over processes."""
        return [self.gram, self.cross, self.power, self.inputs, self.outputs]


def _precise(tensor: torch.Tensor) -> torch.Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()
