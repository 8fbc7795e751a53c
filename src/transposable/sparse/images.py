"""Convolutions as products of a stream: the matrix of a kernel, its window, images as samples."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from transposable import _core
from transposable.errors import DeviceError, SparseFormatError
from transposable.sparse.checks import VALUE_DTYPES
from transposable.sparse.choice import Choice
from transposable.sparse.packed import PackedWeight
from transposable.sparse.stream import Stream

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Window:
    """Where a convolution looks: tap (i, j) of output pixel (r, c) is the input pixel

        (r stride_0 - padding_0 + i dilation_0, c stride_1 - padding_1 + j dilation_1)

    and zero outside of the image.

    Attributes:
        kernel, stride, padding, dilation: down and across.

    Example:
        >>> window = Window((3, 3), (1, 1), (1, 1), (1, 1))
        >>> window.output(56, 57), window.backwards().padding
        ((56, 57), (-1, -1))
    """

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    @property
    def taps(self) -> int:
        """Of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def output(self, height: int, width: int) -> Pair:
        """Height and width of what comes out for an image; not positive where nothing does."""
        down, across = (
            (size + 2 * p - d * (k - 1) - 1) // s + 1
            for size, k, s, p, d in zip(
                (height, width), self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        )
        return down, across

    def backwards(self) -> Window:
        """The window through which the input gradient looks at that of the output, for stride 1.

        x_i meets y_o at tap k where i = o - p + k d: so o = i + p - k d.
        """
        return Window(
            self.kernel,
            (1, 1),
            (-self.padding[0], -self.padding[1]),
            (-self.dilation[0], -self.dilation[1]),
        )


class DecidesConvolutions(ABC):
    """A decision that depends on the images, not on the number of output pixels alone."""

    @abstractmethod
    def of_images(
        self, batch: int, height: int, width: int, channels_last: bool, dtype: torch.dtype
    ) -> Choice:
        """What runs sparse for so many images of a size, format and dtype."""


def choice_of(
    packed: PackedWeight,
    shape: tuple[int, ...],
    pixels: int,
    channels_last: bool,
    dtype: torch.dtype,
) -> Choice:
    """What the decision of a packed weight says of images of a shape.

    Args:
        packed: whose decision is asked.
        shape: [batch, channels, height, width] of the images.
        pixels: of the output, of all images.
        channels_last: how they lie in memory.
        dtype: of the images.
    """
    decide = packed.decide
    if isinstance(decide, DecidesConvolutions):
        return decide.of_images(shape[0], shape[2], shape[3], channels_last, dtype)
    return decide(pixels, dtype)


def is_channels_last(tensor: torch.Tensor) -> bool:
    """Whether the channels of a pixel are neighbours in memory, and need not be.

    Example:
        >>> images = torch.zeros(1, 2, 3, 4)
        >>> is_channels_last(images), is_channels_last(images.to(memory_format=torch.channels_last))
        (False, True)
    """
    return tensor.shape[1] > 1 and tensor.stride(1) == 1 and not tensor.is_contiguous()


def empty_images(
    shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, device: torch.device
) -> torch.Tensor:
    """Images in one of the two formats, not initialised."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=device, memory_format=memory_format)


def convolve(
    stream: Stream,
    x: torch.Tensor,
    bias: torch.Tensor | None,
    window: Window,
    size: Pair,
    channels_last: bool,
) -> torch.Tensor:
    """The images under a window, times the transposed matrix of a stream.

        y_nrp = sum over taps k and channels c of A_r,(k,c) x_nc,(p at k) + b_r

    Args:
        stream: of a matrix [rows, taps * channels], see :func:`transposable.sparse.packed.matrix`.
        x: [batch, channels, height, width], float32 or bfloat16, any strides.
        bias: [rows] or None.
        window: which pixels an output pixel sees.
        size: height and width of the output.
        channels_last: format of the output.

    Returns:
        [batch, rows, *size] in the dtype of x; sums are of float32.

    Raises:
        SparseFormatError: if a shape or dtype does not fit.
        DeviceError: if a tensor is not on the CPU.
    """
    _check("convolve", stream, window, x=x)
    if bias is not None:
        bias = bias.detach().float().contiguous()
    shape = (x.shape[0], stream.rows, *size)
    out = empty_images(shape, x.dtype, channels_last, x.device)
    _core.sparse_conv2d(
        *stream.where,
        stream.values,
        _readable(x),
        bias,
        out,
        window.kernel,
        window.stride,
        window.padding,
        window.dilation,
        torch.get_num_threads(),
    )
    return out


def convolve_weight_gradient(
    stream: Stream, x: torch.Tensor, dy: torch.Tensor, window: Window
) -> torch.Tensor:
    """The gradient of the kept weights of :func:`convolve`, zero for the others.

        dA_r,(k,c) = sum over images n and pixels p of dy_nrp x_nc,(p at k)   where kept

    Args:
        stream: as for :func:`convolve`; its values do not matter.
        x: its input.
        dy: [batch, rows, height, width], the gradient of its output.
        window: as for :func:`convolve`.

    Returns:
        float32 [rows, taps * channels].

    Raises:
        As :func:`convolve`.
    """
    _check("convolve_weight_gradient", stream, window, x=x, dy=dy)
    if dy.shape[:2] != (x.shape[0], stream.rows) or x.dtype != dy.dtype:
        raise SparseFormatError(
            f"convolve_weight_gradient: received x {tuple(x.shape)} of {x.dtype} and dy "
            f"{tuple(dy.shape)} of {dy.dtype} for {stream.rows} output channels; they are "
            "[batch, in, ...] and [batch, out, ...] of one dtype"
        )
    out = torch.empty(stream.rows, stream.cols)
    _core.sparse_conv2d_weight_gradient(
        stream.order(),
        stream.rows,
        stream.cols,
        _readable(x),
        _readable(dy),
        out,
        window.kernel,
        window.stride,
        window.padding,
        window.dilation,
        torch.get_num_threads(),
    )
    return out


def _readable(images: torch.Tensor) -> torch.Tensor:
    """With unit stride along rows or channels: what is read a vector at a time."""
    images = images.detach()
    if images.stride(3) == 1 or images.stride(1) == 1:
        return images
    return images.contiguous()


def _check(operation: str, stream: Stream, window: Window, **images: torch.Tensor) -> None:
    for name, tensor in images.items():
        if tensor.device.type != "cpu":
            raise DeviceError(
                f"{operation}: {name} is on {tensor.device}; streams are for the CPU: move it "
                "there, or use the dense layer on that device"
            )
        if tensor.dim() != 4 or tensor.dtype not in VALUE_DTYPES:
            raise SparseFormatError(
                f"{operation}: received {name} {tuple(tensor.shape)} of {tensor.dtype}; it takes "
                "float32 or bfloat16 images [batch, channels, height, width]"
            )
    taps = window.taps
    if images["x"].shape[1] * taps != stream.cols:
        raise SparseFormatError(
            f"{operation}: received {images['x'].shape[1]} channels and {taps} taps for a matrix "
            f"of {stream.cols} columns; it has one for each channel at each tap"
        )
