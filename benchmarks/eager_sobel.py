"""What `dcfast.nn.SobelConv2d` is compared with: grey, Sobel and convolution one after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_X = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
SOBEL = torch.stack([_X, _X.T])[:, None]


def sobel_conv2d(
    image: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    mean: torch.Tensor,
    std: torch.Tensor,
    sobel: torch.Tensor = SOBEL,
) -> torch.Tensor:
    """`dcfast.ops.sobel_conv2d` as torch ops, in the dtype of the weight."""
    dtype = weight.dtype
    x = image.to(dtype) / 255 if image.dtype == torch.uint8 else image.to(dtype)
    grey = ((x - mean.to(dtype)[:, None, None]) / std.to(dtype)[:, None, None]).mean(1, keepdim=True)
    return F.conv2d(F.conv2d(grey, sobel.to(dtype), padding=1), weight, bias, stride, padding)


class EagerSobelConv2d(nn.Module):
    """The same as a layer, with the weights of a fused one."""

    mean: torch.Tensor
    std: torch.Tensor
    sobel: torch.Tensor

    def __init__(self, fused: Any) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(fused.weight.detach().clone()), nn.Parameter(fused.bias.detach().clone())
        self.stride, self.padding = fused.stride, fused.padding
        self.register_buffer("mean", fused.mean.clone())
        self.register_buffer("std", fused.std.clone())
        self.register_buffer("sobel", SOBEL.clone())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        arguments = self.weight, self.bias, self.stride, self.padding, self.mean, self.std, self.sobel
        return sobel_conv2d(image, *arguments)
