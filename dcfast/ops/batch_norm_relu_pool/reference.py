"""The definition in plain torch, and its gradients."""

from __future__ import annotations

import torch

from dcfast.ops.batch_norm_relu_pool._geometry import layout

_NONE = 255


def _per_channel(values: torch.Tensor) -> torch.Tensor:
    return values[:, None, None]


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
    wide = x.double()
    if mean is None or variance is None:
        variance, mean = torch.var_mean(wide, (0, 2, 3), correction=0)
    mean, variance = mean.to(torch.float64, copy=True), variance.to(torch.float64, copy=True)
    normal = (wide - _per_channel(mean)) * _per_channel((variance + eps).rsqrt())
    scaled = normal * _per_channel(weight.double()) + _per_channel(bias.double())
    windows = scaled.unfold(2, kernel_size, stride).unfold(3, kernel_size, stride).flatten(4)
    largest = windows.amax(4)
    # The first of the largest; a NaN is the largest.
    here = (windows == largest[..., None]) | windows.isnan()
    position = torch.where(here, torch.arange(kernel_size**2, device=x.device), _NONE).amin(4)
    taken = torch.where((largest > 0) | largest.isnan(), position, _NONE).to(torch.uint8)
    output = largest.relu().to(x.dtype).contiguous(memory_format=torch.channels_last)
    return output, taken.permute(0, 2, 3, 1).contiguous(), mean, variance


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
    taken, gradient = taken.permute(0, 3, 1, 2), torch.zeros_like(x, dtype=torch.float64)
    height, width = ((n - 1) * stride + 1 for n in taken.shape[2:])
    for i in range(kernel_size):
        for j in range(kernel_size):
            own = torch.where(taken == i * kernel_size + j, grad, 0.0)
            gradient[:, :, i : i + height : stride, j : j + width : stride] += own
    inverse = (variance.double() + eps).rsqrt()
    normal = (x.double() - _per_channel(mean.double())) * _per_channel(inverse)
    by_bias, by_weight = gradient.sum((0, 2, 3)), (gradient * normal).sum((0, 2, 3))
    if of_batch:
        count = x.shape[0] * x.shape[2] * x.shape[3]
        gradient = gradient - _per_channel(by_bias / count) - normal * _per_channel(by_weight / count)
    by_x = gradient * _per_channel(weight.double() * inverse)
    by_x = by_x.to(x.dtype).contiguous(memory_format=layout(x))
    return by_x, by_weight.to(weight.dtype), by_bias.to(weight.dtype)
