"""The definition: torch's own convolution, in double."""

from __future__ import annotations

import torch
from torch.nn.grad import conv2d_weight


def winograd_conv2d(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    bias = None if bias is None else bias.double()
    out = torch.nn.functional.conv2d(x.double(), weight.double(), bias, padding=1)
    return out.to(x.dtype).contiguous(memory_format=torch.channels_last)


def winograd_conv2d_backward_weight(x: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    size = [grad.shape[1], x.shape[1], 3, 3]
    found = conv2d_weight(x.double(), size, grad.double(), padding=1)
    return found.to(x.dtype).contiguous()
