"""The three steps of the definition in plain torch, and their gradients."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.nn import grad as G

from dcfast.ops._dtypes import wide_dtype


def _kernels(like: torch.Tensor) -> torch.Tensor:
    x = [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    y = [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]
    return like.new_tensor([[x], [y]])


def planes(
    image: torch.Tensor, dtype: torch.dtype, mean: torch.Tensor | None, std: torch.Tensor | None
) -> torch.Tensor:
    """Sobel-x and Sobel-y of the grey image: (N, 3, H, W) -> (N, 2, H, W) of `dtype`."""
    x = image.to(dtype)
    if image.dtype == torch.uint8:
        x = x / 255
    if mean is not None:
        x = x - mean.to(dtype)[:, None, None]
    if std is not None:
        x = x / std.to(dtype)[:, None, None]
    grey = (x[:, 0:1] + x[:, 1:2] + x[:, 2:3]) / 3
    return F.conv2d(grey, _kernels(grey), padding=1)


def sobel_conv2d(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    relu: bool,
) -> torch.Tensor:
    dtype = wide_dtype(weight.dtype)
    sobel = planes(image, dtype, mean, std)
    output = F.conv2d(sobel, weight.to(dtype), None if bias is None else bias.to(dtype), stride, padding)
    if scale is not None:
        output = output * scale.to(dtype)[:, None, None]
    if shift is not None:
        output = output + shift.to(dtype)[:, None, None]
    if relu:
        output = output.relu()
    return output.to(weight.dtype).contiguous()


def sobel_conv2d_backward_weight(
    grad: torch.Tensor,
    image: torch.Tensor,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    mean: torch.Tensor | None,
    std: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = wide_dtype(grad.dtype)
    sobel, g = planes(image, dtype, mean, std), grad.to(dtype)
    by_weight = G.conv2d_weight(sobel, (grad.shape[1], 2, *kernel_size), g, stride, padding)
    return by_weight.to(grad.dtype).contiguous(), g.sum((0, 2, 3)).to(grad.dtype)


def sobel_conv2d_backward_image(
    grad: torch.Tensor,
    weight: torch.Tensor,
    image_size: list[int],
    stride: list[int],
    padding: list[int],
    std: torch.Tensor | None,
) -> torch.Tensor:
    dtype = wide_dtype(grad.dtype)
    w = weight.to(dtype)
    sobel = G.conv2d_input((grad.shape[0], 2, *image_size), w, grad.to(dtype), stride, padding)
    grey = F.conv_transpose2d(sobel, _kernels(sobel), padding=1) / 3
    scale = grey.new_ones(3) if std is None else 1 / std.to(dtype)
    return (grey * scale[:, None, None]).to(grad.dtype).contiguous()
