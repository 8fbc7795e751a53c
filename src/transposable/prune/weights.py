"""The dense and the pruned weights of the layers, of which the model has one or the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn


class Weights:
    """Weights and biases of some layers before and after; swapping them moves no data.

    Args:
        layers: dense modules with a weight and perhaps a bias; a weight may be shared.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._dense: dict[nn.Parameter, torch.Tensor] = {}
        for layer in layers.values():
            for parameter in parameters(layer):
                self._dense.setdefault(parameter, parameter.data)

    def dense(self, parameter: nn.Parameter) -> torch.Tensor:
        """What a parameter was."""
        return self._dense[parameter]

    def set(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Give a parameter new values in memory of its own, in its dtype and strides."""
        before = self._dense[parameter]
        parameter.data = torch.empty_like(before).copy_(value)

    def changed(self, parameter: nn.Parameter) -> bool:
        """Whether it has other memory than it had: it was given new values."""
        return parameter.data_ptr() != self._dense[parameter].data_ptr()

    @contextmanager
    def all_dense(self) -> Iterator[None]:
        """The model as it was, for the time being."""
        now = {parameter: parameter.data for parameter in self._dense}
        self.restore()
        try:
            yield
        finally:
            for parameter, data in now.items():
                parameter.data = data

    def restore(self) -> None:
        """The model as it was."""
        for parameter, data in self._dense.items():
            parameter.data = data

    def commit(self) -> None:
        """Write the new values into the memory of the old ones, which others may refer to.

        An interrupt comes through when all of them are written, or none is.
        """
        done: list[tuple[torch.Tensor, torch.Tensor]] = []
        try:
            for parameter, data in self._dense.items():
                if self.changed(parameter):
                    value = parameter.data
                    before = data.clone()
                    done.append((data, before))
                    data.copy_(value)
                    value.copy_(before)  # so that one copy of one weight is enough for undoing
                    done[-1] = (data, value)
            self.restore()
        except BaseException:
            for data, before in done:
                data.copy_(before)
            raise


def parameters(layer: nn.Module) -> Iterable[nn.Parameter]:
    """The weight and the bias of a layer."""
    return [p for p in (layer.weight, layer.bias) if isinstance(p, nn.Parameter)]
