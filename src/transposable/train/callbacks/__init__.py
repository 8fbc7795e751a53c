"""Callbacks that run a MaskController inside the training loops of other packages.

One module for each, which imports that package: ``transposable.train.callbacks.transformers`` and
``transposable.train.callbacks.lightning``. Nothing is imported here.
"""

from __future__ import annotations
