"""Launches csrc/cpu/batch_norm_relu_pool.cpp, some images at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dcfast.ops import _native
from dcfast.ops.batch_norm_relu_pool._geometry import layout, pooled_size

_DTYPES = {torch.float32: 0, torch.float64: 1}
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
        self.sizes, self.dtype = torch.tensor(sizes), _DTYPES[x.dtype]
        self.operations = _OPERATIONS * channels * height * width
        self.threads = _native.threads(self.operations * n)
        own = -(-(2 * band + 1) * width * channels // 16) * 16
        self.scratch = torch.empty(self.threads * own, dtype=x.dtype)

    def slices(self, run: Callable[[int, int], None]) -> None:
        """run(first, last) for all images."""
        for start, stop in _native.slices(self.x.shape[0], self.operations, self.threads):
            run(start, stop)

    def sums(self, run: Callable[[int, int, int, int], None]) -> torch.Tensor:
        """What run(partial, totals, first, last) sums up: (2, channels) float64."""
        n, channels = self.x.shape[:2]
        partial = torch.empty(n, 2, channels, dtype=torch.float64)
        totals = torch.zeros(2, channels, dtype=torch.float64)
        self.slices(lambda start, stop: run(partial.data_ptr(), totals.data_ptr(), start, stop))
        return totals


def _moments(call: _Call) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of every channel, from sums about its first value: that far from it they do not cancel."""
    x, core = call.x, _native.cpu()
    pivot = x[0, :, 0, 0].contiguous()

    def run(partial: int, totals: int, start: int, stop: int) -> None:
        core.batch_moments(
            call.dtype,
            call.sizes.data_ptr(),
            x.data_ptr(),
            pivot.data_ptr(),
            call.scratch.data_ptr(),
            partial,
            totals,
            start,
            stop,
            call.threads,
        )

    first, second = call.sums(run) / (x.shape[0] * x.shape[2] * x.shape[3])
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
    call, core = _Call(x, kernel_size, stride), _native.cpu()
    if mean is None or variance is None:
        mean, variance = _moments(call)
    mean, variance = mean.to(torch.float64, copy=True), variance.to(torch.float64, copy=True)
    scale = weight.double() * (variance + eps).rsqrt()
    shift = (bias.double() - mean * scale).to(x.dtype)
    scale = scale.to(x.dtype)
    (n, channels), size = x.shape[:2], pooled_size(x.shape, kernel_size, stride)
    out = _native.empty((n, channels, *size), x.dtype, torch.channels_last)
    taken = torch.empty(n, *size, channels, dtype=torch.uint8)
    call.slices(
        lambda start, stop: core.batch_norm_relu_pool(
            call.dtype,
            call.sizes.data_ptr(),
            call.x.data_ptr(),
            scale.data_ptr(),
            shift.data_ptr(),
            call.scratch.data_ptr(),
            out.data_ptr(),
            taken.data_ptr(),
            start,
            stop,
            call.threads,
        )
    )
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
    call, core = _Call(x, kernel_size, stride), _native.cpu()
    grad, taken = grad.contiguous(memory_format=torch.channels_last), taken.contiguous()
    centre = mean.to(x.dtype).contiguous()

    def run(partial: int, totals: int, start: int, stop: int) -> None:
        core.batch_norm_relu_pool_sums(
            call.dtype,
            call.sizes.data_ptr(),
            grad.data_ptr(),
            taken.data_ptr(),
            call.x.data_ptr(),
            centre.data_ptr(),
            call.scratch.data_ptr(),
            partial,
            totals,
            start,
            stop,
            call.threads,
        )

    by_bias, by_x = call.sums(run)
    inverse = (variance.double() + eps).rsqrt()
    scale = weight.double() * inverse
    # How the gradient goes through the moments; not at all where they are constants.
    share = float(of_batch) / max(1, x.shape[0] * x.shape[2] * x.shape[3])
    factors = torch.stack([scale, scale * by_bias * share, scale * inverse * inverse * by_x * share]).to(x.dtype)
    out = _native.empty(x.shape, x.dtype, call.layout)
    call.slices(
        lambda start, stop: core.batch_norm_relu_pool_backward(
            call.dtype,
            call.sizes.data_ptr(),
            grad.data_ptr(),
            taken.data_ptr(),
            call.x.data_ptr(),
            centre.data_ptr(),
            factors.data_ptr(),
            call.scratch.data_ptr(),
            out.data_ptr(),
            start,
            stop,
            call.threads,
        )
    )
    return out, (by_x * inverse).to(weight.dtype), by_bias.to(weight.dtype)
