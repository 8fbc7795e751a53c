"""Numpy in, numpy out, with scores other than the magnitude."""

from __future__ import annotations

import numpy as np

import transposable

random = np.random.default_rng(0)
weight = random.standard_normal((256, 1024), dtype=np.float32)
inputs = random.standard_normal((2000, 1024), dtype=np.float32)  # what the layer is fed
inputs *= random.lognormal(size=1024).astype(np.float32)  # some inputs matter more than others

# What a weight contributes to the layer's output: |w_ij| times the size of input j.
scores = np.abs(weight) * np.sqrt((inputs**2).mean(axis=0))
by_score = transposable.find_mask(weight, "4:8T", scores=scores).array
by_magnitude = transposable.find_mask(weight, "4:8T").array
assert isinstance(by_score, np.ndarray)

dense = inputs @ weight.T
errors = {}
for name, kept in (("magnitude", by_magnitude), ("score", by_score)):
    errors[name] = np.linalg.norm(dense - inputs @ (weight * kept).T) / np.linalg.norm(dense)
    print(f"mask by {name:<9} relative error of the layer's output {errors[name]:.3f}")
assert errors["score"] < errors["magnitude"]
