"""Launches csrc/cpu/batch_norm_relu_pool.cpp, some images at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from dcfast.ops import _native
from dcfast.ops.batch_norm_relu_pool._geometry import layout, pooled_size

# Rows that are transposed at once: with those of the gradient a quarter of a 512 KiB L2.
_BAND_BYTES = 2**16
# Operations per element of a pass.
_OPERATIONS = 8.0


class _Call:
    """What the kernels are told of `x`, and their scratch."""

    def __init__(self, x: torch.Tensor, kernel_size: int, stride: int) -> None:
        n, channels, height, width = x.shape
        self.layout = layout(x)
        self.x = x.contiguous(memory_format=self.layout)
        size = pooled_size(x.shape, kernel_size, stride)
        last = int(self.layout == torch.channels_last)
        band = max(kernel_size, min(height, _BAND_BYTES // (width * channels * x.itemsize)))
        sizes = [n, channels, height, width, kernel_size, stride, *size, last, band]
        self.sizes, self.dtype = torch.tensor(sizes), _native.DTYPES[x.dtype]
        self.operations = _OPERATIONS * channels * height * width
        self.threads = _native.threads(self.operations * n)
        own = -(-(2 * band + 1) * width * channels // 16) * 16
        self.scratch = torch.empty(self.threads * own, dtype=x.dtype)

    def run(self, kernel: Callable[..., None], inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> None:
        """The kernel on all images: all take inputs, scratch and outputs in this order."""
        for start, stop in _native.slices(self.x.shape[0], self.operations, self.threads):
            pointers = [tensor.data_ptr() for tensor in (self.sizes, *inputs, self.scratch, *outputs)]
            kernel(self.dtype, *pointers, start, stop, self.threads)

    def sums(self, kernel: Callable[..., None], inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """What the kernel sums up over all images: (2, channels) float64."""
        n, channels = self.x.shape[:2]
        partial = torch.empty(n, 2, channels, dtype=torch.float64)
        totals = torch.zeros(2, channels, dtype=torch.float64)
        self.run(kernel, inputs, (partial, totals))
        return totals


def _moments(call: _Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of every channel, from sums about its first value: that far from it they do not cancel."""
    x = call.x
    pivot = x[0, :, 0, 0].contiguous()
    sums = call.sums(_native.cpu().batch_moments, (x, pivot))
    first, second = sums / (x.shape[0] * x.shape[2] * x.shape[3])
    return pivot.double() + first, (second - first * first).clamp_(min=0.0)


def batch_norm_relu_pool(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    mean: torch.Tensor | None,
    variance: torch.Tensor | None,
    eps: float,
    kernel_size: int,
    stride: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    call = _Call(x, kernel_size, stride)
    if mean is None or variance is None:
        mean, variance = _moments(call)
    mean, variance = mean.to(torch.float64, copy=True), variance.to(torch.float64, copy=True)
    scale = weight.double() * (variance + eps).rsqrt()
    shift = (bias.double() - mean * scale).to(x.dtype)
    scale = scale.to(x.dtype)
    (n, channels), size = x.shape[:2], pooled_size(x.shape, kernel_size, stride)
    out = _native.empty((n, channels, *size), x.dtype, torch.channels_last)
    taken = torch.empty(n, *size, channels, dtype=torch.uint8)
    call.run(_native.cpu().batch_norm_relu_pool, (call.x, scale, shift), (out, taken))
    return out, taken, mean, variance


def batch_norm_relu_pool_backward(
    grad: torch.Tensor,
    taken: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    eps: float,
    of_batch: bool,
    kernel_size: int,
    stride: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    call = _Call(x, kernel_size, stride)
    grad, taken = grad.contiguous(memory_format=torch.channels_last), taken.contiguous()
    centre = mean.to(x.dtype).contiguous()
    inputs = (grad, taken, call.x, centre)
    by_bias, by_x = call.sums(_native.cpu().batch_norm_relu_pool_sums, inputs)
    inverse = (variance.double() + eps).rsqrt()
    scale = weight.double() * inverse
    # How the gradient goes through the moments; not at all where they are constants.
    share = float(of_batch) / max(1, x.shape[0] * x.shape[2] * x.shape[3])
    factors = torch.stack([scale, scale * by_bias * share, scale * inverse * inverse * by_x * share]).to(x.dtype)
    out = _native.empty(x.shape, x.dtype, call.layout)
    call.run(_native.cpu().batch_norm_relu_pool_backward, (*inputs, factors), (out,))
    return out, (by_x * inverse).to(weight.dtype), by_bias.to(weight.dtype)
