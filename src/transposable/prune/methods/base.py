"""What every pruning method is: one layer's problem in, its weights and mask out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from transposable.prune.problem import LayerProblem


@dataclass(frozen=True, slots=True)
class Pruned:
    """New weights [groups, rows, cols], zero outside the mask, and the mask.

    ``info`` holds what the method has to say: a ridge, a number of iterations. A method that
    chooses the bias itself gives in ``bias_change`` what to add to it, [groups * rows].
    """

    weight: torch.Tensor
    mask: torch.Tensor
    info: dict[str, Any] = field(default_factory=dict)
    bias_change: torch.Tensor | None = None


class Method(ABC):
    """A pruning method, an immutable configuration.

    Attributes:
        name: in reports and on the command line.
        needs_data: whether the method looks at calibration data.
        needs_halves: whether it wants sums of two halves of the data, to judge one by the other.
        needs_samples: whether it wants to see inputs and wanted outputs, besides their sums.
        refits_bias: whether the bias is chosen anew so that the mean output is the dense layer's.

    Example:
        >>> class Inverted(Method):
        ...     name = "inverted"
        ...     needs_data = False
        ...     def prune(self, problem):
        ...         mask = problem.find_mask(-problem.weight.abs())  # the smallest are kept
        ...         return Pruned(problem.weight * mask, mask)
        >>> from torch import nn
        >>> from transposable.prune import prune_model
        >>> report = prune_model(nn.Sequential(nn.Linear(16, 8)), "2:4T", Inverted())
        >>> report.method, report.layers[0].magnitude < 0.5
        ('inverted', True)
    """

    name: ClassVar[str]
    needs_data: ClassVar[bool] = True
    needs_samples: ClassVar[bool] = False
    refits_bias: ClassVar[bool] = False

    @property
    def needs_halves(self) -> bool:
        return False

    @abstractmethod
    def prune(self, problem: LayerProblem) -> Pruned:
        """The weights of one layer."""
