"""Sizes and layouts that the backends share."""

from __future__ import annotations

import torch


def pooled_size(size: torch.Size, kernel_size: int, stride: int) -> tuple[int, int]:
    """Height and width of the output for an input of that shape."""
    height, width = ((n - kernel_size) // stride + 1 for n in size[2:])
    return height, width


def layout(x: torch.Tensor) -> torch.memory_format:
    """What the kernels read `x` as, and the layout of its gradient."""
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
