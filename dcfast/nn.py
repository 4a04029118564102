"""Modules over the ops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from dcfast import ops
from dcfast.ops._registry import autocast_dtype

__all__ = ["InverseSizeCrossEntropy", "InverseSizeLinearCrossEntropy", "SobelConv2d", "UnitLinear", "WinogradConv2d"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# What a tile of 4x4 outputs and a 3x3 filter cost Winograd's algorithm, in multiplications of the sum itself: the 36 of
# the tile and what is transformed of it, and 50 ns for the filter. It pays from 32 to 64 tiles on, as measured.
_TILE_PRODUCTS, _FILTER_PRODUCTS = 45, 5_000


class InverseSizeCrossEntropy(torch.nn.Module):
    """Cross-entropy in which each class counts the inverse of its cluster's size.

    Over a whole data set it is the mean over the clusters of each cluster's mean loss: minimising it equals sampling
    uniformly over clusters. See `dcfast.ops.weighted_cross_entropy` for the definition, shapes, dtypes and errors.

    Parameters
    ----------
    cluster_sizes : Tensor of shape (k,)
        How many points each cluster has: integers or floats. A buffer: it moves with the module and is saved.
    ignore_index : int, default -100
    label_smoothing : float, default 0.0
    reduction : {'mean', 'sum', 'none'}

    Examples
    --------
    >>> import torch, dcfast
    >>> labels = torch.tensor([0, 0, 0, 1])
    >>> loss = dcfast.nn.InverseSizeCrossEntropy(labels.bincount())
    >>> loss(torch.zeros(4, 2), labels)
    tensor(0.6931)
    """

    cluster_sizes: torch.Tensor

    def __init__(
        self,
        cluster_sizes: torch.Tensor,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self.register_buffer("cluster_sizes", cluster_sizes)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ops.weighted_cross_entropy(
            logits, target, self.cluster_sizes, self.ignore_index, self.label_smoothing, self.reduction
        )

    def extra_repr(self) -> str:
        return (
            f"n_clusters={len(self.cluster_sizes)}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"
        )


class InverseSizeLinearCrossEntropy(torch.nn.Module):
    """A linear layer and `InverseSizeCrossEntropy`, without all logits at once.

    What `torch.nn.LinearCrossEntropyLoss` (of newer torch) is to `torch.nn.CrossEntropyLoss`. See
    `dcfast.ops.linear_weighted_cross_entropy` for the definition, dtypes, memory and errors.

    Parameters
    ----------
    in_features : int
        Columns of the input.
    cluster_sizes : Tensor of shape (k,)
        How many points each cluster has: integers or floats. A buffer: it moves with the module and is saved.
    bias : bool, default False
        Whether each class adds a learnt constant.
    ignore_index : int, default -100
    label_smoothing : float, default 0.0
    reduction : {'mean', 'sum', 'none'}
    device, dtype
        Of the parameters.

    Attributes
    ----------
    linear : torch.nn.Linear
        The layer, for logits where they are wanted.

    Examples
    --------
    >>> import torch, dcfast
    >>> loss = dcfast.nn.InverseSizeLinearCrossEntropy(8, torch.tensor([3, 1]))
    >>> loss(torch.zeros(4, 8), torch.tensor([0, 0, 0, 1]))
    tensor(0.6931, grad_fn=<ToCopyBackward0>)
    """

    cluster_sizes: torch.Tensor

    def __init__(
        self,
        in_features: int,
        cluster_sizes: torch.Tensor,
        bias: bool = False,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(in_features, len(cluster_sizes), bias, device, dtype)
        self.register_buffer("cluster_sizes", cluster_sizes)
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        self.reduction = reduction

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        options = (self.ignore_index, self.label_smoothing, self.reduction)
        return ops.linear_weighted_cross_entropy(
            input, self.linear.weight, target, self.cluster_sizes, self.linear.bias, *options
        )

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"


class SobelConv2d(torch.nn.Module):
    """A network's first layer on the Sobel gradients of the grey image; see `dcfast.ops.sobel_conv2d`.

    Parameters
    ----------
    out_channels : int
        Number of filters.
    kernel_size, stride, padding : int or two ints
        As for `torch.nn.Conv2d`.
    bias : bool
        Whether each filter adds a learnt constant.
    mean, std : sequence of three floats, optional
        Normalisation of the image, in the units of a float image or of bytes divided by 255; ImageNet's by default.
        None: 0 and 1, for images that are normalised already.
    device, dtype
        Of the parameters. A float image must have their dtype.

    Attributes
    ----------
    weight : Parameter of shape (out_channels, 2, kernel height, kernel width)
        Drawn like that of `torch.nn.Conv2d`.
    bias : Parameter of shape (out_channels,), or None
    mean, std : Tensor of shape (3,), or None
        Buffers that follow the module's device and are no part of its state_dict.

    Raises
    ------
    ValueError
        If a size, `mean` or `std` is not as above.

    Examples
    --------
    >>> layer = SobelConv2d(96, 11, stride=4, padding=2)
    >>> layer(torch.zeros(1, 3, 224, 224, dtype=torch.uint8)).shape
    torch.Size([1, 96, 55, 55])
    """

    mean: torch.Tensor | None
    std: torch.Tensor | None

    def __init__(
        self,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        bias: bool = True,
        mean: Sequence[float] | None = IMAGENET_MEAN,
        std: Sequence[float] | None = IMAGENET_STD,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if out_channels < 1:
            raise ValueError(f"out_channels is {out_channels}: expected at least 1")
        self.out_channels = out_channels
        self.kernel_size = _pair(kernel_size, "kernel_size", 1)
        self.stride = _pair(stride, "stride", 1)
        self.padding = _pair(padding, "padding", 0)
        self.weight = torch.nn.Parameter(torch.empty(out_channels, 2, *self.kernel_size, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != 3:
                raise ValueError(f"{name} is {values}: expected three values, one per channel")
            buffer = None if values is None else torch.tensor([float(v) for v in values], device=device)
            self.register_buffer(name, buffer, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias anew, uniformly within 1/sqrt(fan-in) as `torch.nn.Conv2d` does."""
        bound = 1.0 / math.sqrt(2 * self.kernel_size[0] * self.kernel_size[1])
        torch.nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            torch.nn.init.uniform_(self.bias, -bound, bound)

    def forward(
        self,
        image: torch.Tensor,
        scale: torch.Tensor | None = None,
        shift: torch.Tensor | None = None,
        relu: bool = False,
    ) -> torch.Tensor:
        """(N, 3, H, W) -> (N, out_channels, H', W'), for inference with the epilogue of `dcfast.ops.sobel_conv2d`.

        Under autocast in its dtype, like `torch.nn.Conv2d`.
        """
        weight: torch.Tensor = self.weight
        bias: torch.Tensor | None = self.bias
        dtype = autocast_dtype(image.device)
        if dtype is not None:
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
            image = image if image.dtype == torch.uint8 else image.to(dtype)
        geometry = (self.stride, self.padding)
        return ops.sobel_conv2d(
            image, weight, bias, *geometry, self.mean, self.std, scale=scale, shift=shift, relu=relu
        )

    def extra_repr(self) -> str:
        """What `print` shows beside the class."""
        text = f"{self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        if self.padding != (0, 0):
            text += f", padding={self.padding}"
        return text if self.bias is not None else f"{text}, bias=False"


class UnitLinear(torch.nn.Linear):
    """`torch.nn.Linear` on rows that it first divides by their lengths; see `dcfast.ClusterHead`.

    Examples
    --------
    >>> layer = UnitLinear(512, 10)
    >>> x = torch.randn(3, 512)
    >>> torch.allclose(layer(x), layer(100 * x), atol=1e-6)
    True
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(..., in_features) -> (..., out_features)."""
        return super().forward(torch.nn.functional.normalize(input, dim=-1))


class WinogradConv2d(torch.nn.Conv2d):
    """A 3x3 convolution with stride 1 and padding 1, on the CPU by `dcfast.ops.winograd_conv2d`.

    `torch.nn.Conv2d` in its parameters and state_dict, and in its results within rounding. It is torch's own on a GPU,
    under autocast, in dtypes that the op does not know, and on maps so few or so small that the op saves nothing.

    Parameters
    ----------
    in_channels, out_channels : int
    bias : bool
        Whether each filter adds a learnt constant.
    device, dtype
        Of the parameters.

    Examples
    --------
    >>> layer = WinogradConv2d(16, 32)
    >>> layer(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1, bias=bias, device=device, dtype=dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W)."""
        kind = input.device.type
        known = self.weight.dtype in (torch.float32, torch.float64) and input.dim() == 4
        if kind == "cpu" and known and not torch.is_autocast_enabled(kind) and _saves_products(input.shape):
            return ops.winograd_conv2d(input, self.weight, self.bias)
        return super().forward(input)


def _saves_products(size: torch.Size) -> bool:
    """Whether Winograd's algorithm and the transforms of the filters cost less than the sum itself, for each filter."""
    n, _, height, width = size
    n_tiles = n * -(-height // 4) * -(-width // 4)
    return _TILE_PRODUCTS * n_tiles + _FILTER_PRODUCTS < 9 * n * height * width


def _pair(value: int | Sequence[int], name: str, least: int) -> tuple[int, int]:
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or min(values) < least:
        raise ValueError(f"{name} is {value}: expected one or two integers of at least {least}")
    return values[0], values[1]
