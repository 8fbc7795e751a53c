"""CompressedLinear: a linear layer of which only the kept weights are stored, for inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import nn

from transposable.errors import CheckpointError, CompressionError, PatternError, SparseFormatError
from transposable.nn.checkpoint import STRUCTURES
from transposable.nn.modules import no_fast_path
from transposable.pattern import Pattern
from transposable.sparse import Blocking, Stream
from transposable.sparse.inference import nm_packed_linear, refuse_gradient

FORMAT: Final = 2
"""Version of the buffers of a compressed layer, in its header."""

STREAM_BUFFERS: Final = ("index", "starts", "values", "header")


class CompressedLinear(nn.Module):
    """A linear layer with a compressed weight: y = x (S * W)^T + b, without gradients.

    Made by :func:`compress` and :func:`load_compressed`. The bytes are those of
    docs/formats.md; there is no dense weight, and none is made in the forward pass.

    Args:
        stream: the weight [out, in], filled.
        pattern: of its mask.
        bias: [out] or None.

    Attributes:
        in_features, out_features: as of ``nn.Linear``.
        pattern: the :class:`~transposable.Pattern`.
        index, starts, values: persistent buffers, those of the
            :class:`~transposable.sparse.Stream`.
        header: persistent int64 buffer [format, out, in, row_block, col_block, n, m, structure].
        bias: persistent buffer [out], or None.

    Example:
        >>> mask = torch.eye(4, dtype=torch.bool)
        >>> stream = Stream.build(mask, Blocking(8, 512))
        >>> stream.fill(torch.eye(4) * 3)
        >>> layer = CompressedLinear(stream, Pattern.parse("1:4T")).eval()
        >>> layer(torch.ones(4)).tolist(), layer
        ([3.0, 3.0, 3.0, 3.0], CompressedLinear(in_features=4, out_features=4, bias=False, ...))
    """

    index: torch.Tensor
    starts: torch.Tensor
    values: torch.Tensor
    header: torch.Tensor
    bias: torch.Tensor | None
    in_features: int
    out_features: int
    pattern: Pattern
    blocking: Blocking

    def __init__(self, stream: Stream, pattern: Pattern, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self._become_compressed(stream, pattern, bias)

    def _become_compressed(
        self, stream: Stream, pattern: Pattern, bias: torch.Tensor | None
    ) -> None:
        self.out_features, self.in_features = stream.rows, stream.cols
        self.register_buffer("index", stream.index)
        self.register_buffer("starts", stream.starts)
        self.register_buffer("values", stream.values)
        self.register_buffer("header", encode_header(stream, pattern))
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.pattern, self.blocking = pattern, stream.blocking
        if no_fast_path not in self._forward_pre_hooks.values():
            self.register_forward_pre_hook(no_fast_path)

    @property
    def stream(self) -> Stream:
        """The weight, sharing this layer's memory."""
        return Stream(
            self.index,
            self.starts,
            self.values,
            self.out_features,
            self.in_features,
            self.blocking,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the weight as it is stored."""
        return self.stream.nbytes + self.header.nbytes

    def dense_weight(self) -> torch.Tensor:
        """The weight [out, in] with its zeros, a new tensor in the dtype of the values.

        Example:
            >>> from transposable import compress, sparsify
            >>> model = nn.Sequential(nn.Linear(16, 8))
            >>> _, _ = sparsify(model, "2:4T"), compress(model)
            >>> int((model[0].dense_weight() == 0).sum())
            64
        """
        return self.stream.dense()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise CompressionError(
                "CompressedLinear: received an input in training mode; compressed layers are for "
                "inference only: call model.eval(), or train the sparse model that was compressed"
            )
        if x.requires_grad and torch.is_grad_enabled():
            refuse_gradient()
        return nm_packed_linear(x, self.stream, self.bias)

    def extra_repr(self) -> str:
        dtype = str(self.values.dtype).removeprefix("torch.")
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, pattern={self.pattern}, dtype={dtype}"
        )

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "CompressedLinear has no attribute 'weight': only the kept weights are stored; "
                "dense_weight() makes a dense copy, and a layer whose weight is read by others is "
                "left dense with compress(model, exclude=...)"
            )
        return super().__getattr__(name)

    def __getstate__(self) -> dict[str, Any]:
        # torch cannot unpickle a tensor of uint16 that pickle itself has written.
        index = self.index.view(torch.int16)
        return {**self.__dict__, "_buffers": {**self._buffers, "index": index}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._buffers["index"] = self.index.view(torch.uint16)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stream = checked_stream(state_dict, prefix, (self.out_features, self.in_features))
        if stream is not None:
            # Another mask has other numbers of entries; torch would call that a size mismatch.
            self.index = torch.empty_like(stream.index)
            self.values = torch.empty_like(stream.values, dtype=self.values.dtype)
            self.starts = torch.empty_like(stream.starts)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if stream is not None:
            self.blocking = stream.blocking
            self.pattern = decode_header(self.header)[1]


def encode_header(stream: Stream, pattern: Pattern) -> torch.Tensor:
    """What the tensors of a stream do not say themselves, as int64.

    Example:
        >>> stream = Stream.build(torch.eye(4, dtype=torch.bool), Blocking(8, 512))
        >>> encode_header(stream, Pattern.parse("1:4T")).tolist()
        [2, 4, 4, 8, 512, 1, 4, 1]
    """
    blocking = stream.blocking
    return torch.tensor(
        [
            FORMAT,
            stream.rows,
            stream.cols,
            blocking.row_block,
            blocking.col_block,
            pattern.n,
            pattern.m,
            STRUCTURES.index(pattern.structure),
        ],
        dtype=torch.int64,
    )


def decode_header(header: torch.Tensor) -> tuple[tuple[int, int, Blocking], Pattern]:
    """((rows, cols, blocking), pattern) of a header.

    Raises:
        SparseFormatError: if it is none.

    Example:
        >>> decode_header(torch.tensor([2, 4, 4, 8, 512, 1, 4, 1]))
        ((4, 4, Blocking(row_block=8, col_block=512)), Pattern('1:4T'))
    """
    if header.shape != (8,) or header.dtype != torch.int64:
        raise SparseFormatError(
            f"compressed layer: received a header of {header.dtype} and shape "
            f"{tuple(header.shape)}; it is int64 with 8 entries"
        )
    version, rows, cols, row_block, col_block, n, m, structure = header.tolist()
    if version != FORMAT or not 0 <= structure < len(STRUCTURES):
        raise SparseFormatError(
            f"compressed layer: received the header {header.tolist()}; this release reads format "
            f"{FORMAT}, with the structure of the pattern from 0 to {len(STRUCTURES) - 1}"
        )
    try:
        pattern = Pattern(n, m, STRUCTURES[structure])
    except PatternError as error:
        raise SparseFormatError(
            f"compressed layer: received the header {header.tolist()}, which names no pattern: "
            f"{error}"
        ) from None
    return (rows, cols, Blocking(row_block, col_block)), pattern


def checked_stream(
    state: Mapping[str, torch.Tensor], prefix: str, sides: tuple[int, int]
) -> Stream | None:
    """The stream that a state dict holds for a layer, with every entry of it checked.

    Args:
        state: tensors by name.
        prefix: of the layer's names.
        sides: (out, in) of the layer.

    Returns:
        None if a tensor of it is missing, which ``load_state_dict`` reports.

    Raises:
        CheckpointError: if they are no stream, or one of another shape; names the layer.
    """
    tensors = [state.get(prefix + name) for name in STREAM_BUFFERS]
    index, starts, values, header = tensors
    if index is None or starts is None or values is None or header is None:
        return None
    where = f"load_state_dict: compressed layer {prefix.rstrip('.')!r}"
    try:
        (rows, cols, blocking), _ = decode_header(header)
        if (rows, cols) != sides:
            raise CheckpointError(
                f"{where} is {sides[0]} x {sides[1]} (out x in), and the "
                f"checkpoint holds {rows} x {cols}; load it into the architecture that it is of"
            )
        stream = Stream(index, starts, values, rows, cols, blocking)
        stream.check()
    except SparseFormatError as error:
        raise CheckpointError(f"{where} cannot be read from the checkpoint: {error}") from None
    return stream
