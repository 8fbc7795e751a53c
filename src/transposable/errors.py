"""Every exception and warning of the package.

Each message names the operation, what was received, the rule that was broken and the remedy.
"""

from __future__ import annotations


class TransposableError(Exception):
    """Base of every error raised on purpose by this package."""


class PatternError(TransposableError, ValueError):
    """A pattern string or a pair (n, m) that names no valid pattern."""


class ScoresError(TransposableError, ValueError):
    """Weights or scores that cannot be masked: wrong dtype, wrong shape, NaN."""


class LayoutError(TransposableError, ValueError):
    """A tensor whose dimensions do not fit the layout it was declared to have."""


class MaskError(TransposableError, ValueError):
    """A mask of the wrong shape or dtype, or one asked for something it does not have."""


class SolverError(TransposableError, RuntimeError):
    """A solver that does not fit the pattern, or that could not deliver what it promises."""


class DeviceError(TransposableError, RuntimeError):
    """A tensor on a device that the operation does not support."""


class FileError(TransposableError, OSError):
    """A file that is missing, truncated, corrupt, of the wrong kind or not writable."""


class OutputError(FileError):
    """A file or directory that could not be written; what was there before is untouched."""


class SelectionError(TransposableError, ValueError):
    """An include or exclude pattern that selects nothing."""


class LayerError(TransposableError, ValueError):
    """A module that cannot be made sparse as asked, or that is not sparse where it has to be."""


class SparseFormatError(TransposableError, ValueError):
    """A compressed matrix that is corrupt, or tensors that do not fit it."""


class CheckpointError(TransposableError, ValueError):
    """A checkpoint that does not belong to this model or this training run."""


class RecipeError(TransposableError, ValueError):
    """A training recipe or refresh schedule that is unknown, or set to what it cannot be."""


class ControllerError(TransposableError, RuntimeError):
    """Calls of a training loop that are missing or in the wrong order."""


class CalibrationError(TransposableError, ValueError):
    """Calibration data that is empty, has no form that is known, or that the model rejects."""


class MethodError(TransposableError, ValueError):
    """A pruning method that is unknown, or set to what it cannot be."""


class ShardingError(TransposableError, RuntimeError):
    """A weight cut over ranks elsewhere than between tiles."""


class DependencyError(TransposableError, ImportError):
    """An optional package that is needed for this operation and is not installed."""


class PlanError(TransposableError, ValueError):
    """A question about a matmul that names no shape, tokens, device or thread count."""


class CompressionError(TransposableError, RuntimeError):
    """A compressed layer asked for what it cannot do, or a model with none to compress."""


class NoEffectWarning(UserWarning):
    """An operation that changed nothing."""


class HostRouteWarning(UserWarning):
    """A tensor on a GPU that was solved on the CPU, since no kernel takes it."""


class PlanCacheWarning(UserWarning):
    """Measurements on disk that are damaged, or that cannot be kept there."""
