"""Sparse layers: modules with a masked weight, their functions, and the surgery on models."""

from __future__ import annotations

from transposable.nn import functional
from transposable.nn.backends import DENSE_MASKED, Backend, DenseMasked, use_backend
from transposable.nn.checkpoint import Weighting
from transposable.nn.compressed import CompressedLinear
from transposable.nn.compressed_file import load_compressed, save_compressed
from transposable.nn.compression import CompressedLayer, Compression, compress
from transposable.nn.layer import SparseLayer
from transposable.nn.modules import SparseConv1d, SparseConv2d, SparseLinear
from transposable.nn.packed_backend import NMCpu
from transposable.nn.refresh import Refreshed, refresh_masks
from transposable.nn.semi_backend import NMCuda
from transposable.nn.semi_compressed import SemiLinear
from transposable.nn.surgery import Change, densify, sparse_layers, sparsify

__all__ = [
    "DENSE_MASKED",
    "Backend",
    "Change",
    "CompressedLayer",
    "CompressedLinear",
    "Compression",
    "DenseMasked",
    "NMCpu",
    "NMCuda",
    "Refreshed",
    "SemiLinear",
    "SparseConv1d",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "Weighting",
    "compress",
    "densify",
    "functional",
    "load_compressed",
    "refresh_masks",
    "save_compressed",
    "sparse_layers",
    "sparsify",
    "use_backend",
]
