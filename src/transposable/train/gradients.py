"""Who has stepped since the last ctl.step(), and who got the recipe's gradient term, once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from transposable.errors import ControllerError
from transposable.nn import SparseLayer
from transposable.nn.sharding import local, local_part
from transposable.train.recipes import Recipe


class GradientTerms:
    """Adds a recipe's term to the gradients of the layers, exactly once per optimizer step.

    Weights are known by the first of their layers' names: an id would not outlive a copy.
    """

    def __init__(self, recipe: Recipe, layers: Mapping[str, SparseLayer]) -> None:
        self.recipe = recipe
        self.layers = layers
        self.stepped: set[str] = set()
        self.added: set[str] = set()
        self._by_torch: set[str] = set()
        self._versions: dict[str, int] | None = None

    def optimizer_steps(
        self, parameters: set[int], scale: torch.Tensor | None, again: bool, sparse: bool
    ) -> None:
        """A torch optimizer is about to step these parameters.

        Args:
            parameters: their ids.
            scale: what the gradients have to be divided by still, or None.
            again: another evaluation of the closure in the same step, with new gradients.
            sparse: whether the masks are active.

        Raises:
            ControllerError: if it is the second step since :meth:`step_done`.
        """
        stepping = {n: layer for n, layer in self._pending() if id(layer.weight) in parameters}
        if again:
            self.added -= set(stepping)
        else:
            twice = next((name for name in stepping if name in self.stepped), None)
            if twice is not None:
                raise ControllerError(
                    f"MaskController: a second optimizer step for layer {twice!r} without "
                    "ctl.step() in between; call ctl.step() after each opt.step(), or ctl.close() "
                    "when the training under masks has ended"
                )
        self.stepped |= set(stepping)
        self._by_torch |= set(stepping)
        self._add({n: stepping[n] for n in stepping if n not in self.added}, scale, sparse)

    def before_step(self, sparse: bool) -> None:
        """Add the term to all gradients that are there."""
        layers = dict(self._pending())
        twice = next((name for name in layers if name in self.added), None)
        if twice is not None:
            raise ControllerError(
                f"MaskController.before_step: the gradient of layer {twice!r} has its term; "
                "call before_step() once per optimizer step, and ctl.step() after it"
            )
        self._add(layers, None, sparse)

    def check(self, sparse: bool) -> None:
        """Raise ControllerError when a weight was stepped without the recipe's term."""
        if self._versions is None or not sparse:
            return
        for name, version in self._current().items():
            # A torch optimizer that does not step (a gradient scaler skips it) needs no term, so
            # weights that one has stepped before are beyond doubt.
            if name in self.added or name in self._by_torch or version == self._versions.get(name):
                continue
            raise ControllerError(
                f"MaskController.step: layer {name!r} changed, and its optimizer did not receive "
                f"the gradient term of {self.recipe!r}; call ctl.before_step() right before the "
                "step of an optimizer that is not a torch.optim.Optimizer"
            )

    def step_done(self) -> None:
        """The step is counted: the next one begins."""
        self.stepped.clear()
        self.added.clear()
        self._versions = self._current() if self.recipe.changes_gradient else None

    def restart(self, stepped: list[str], added: list[str]) -> None:
        """Go on in the middle of a step of which this much is done, with weights just loaded."""
        self.stepped, self.added = set(stepped), set(added)
        self._versions = None

    def _add(
        self, layers: Mapping[str, SparseLayer], scale: torch.Tensor | None, sparse: bool
    ) -> None:
        if not sparse or not self.recipe.changes_gradient:
            return
        with torch.no_grad():
            for name, layer in layers.items():
                weight = layer.weight
                assert weight.grad is not None
                gradient = local(weight.grad)
                if scale is not None:
                    gradient.div_(scale)
                self.recipe.before_step(local(weight), gradient, local_part(layer.mask, weight))
                if scale is not None:
                    gradient.mul_(scale)
                self.added.add(name)

    def _distinct(self) -> Iterator[tuple[str, SparseLayer]]:
        seen = set()
        for name, layer in self.layers.items():
            if id(layer.weight) not in seen:
                seen.add(id(layer.weight))
                yield name, layer

    def _pending(self) -> Iterator[tuple[str, SparseLayer]]:
        """An optimizer leaves weights without a gradient as they are."""
        return ((n, layer) for n, layer in self._distinct() if layer.weight.grad is not None)

    def _current(self) -> dict[str, int]:
        # Frozen weights change by other means, such as a moving average.
        return {n: ly.weight._version for n, ly in self._distinct() if ly.weight.requires_grad}

    def __getstate__(self) -> dict[str, Any]:
        # Versions count the changes of one tensor object, not of its copies.
        return {**self.__dict__, "_versions": None}
