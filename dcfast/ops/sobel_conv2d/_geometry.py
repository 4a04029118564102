"""What the contract and every backend compute alike: sizes of the output, the map from pixels to grey, the epilogue."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def output_size(
    image: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, int]:
    """Height and width of the convolution's output, from those of image and kernel."""
    height, width = ((i + 2 * p - k) // s + 1 for i, k, s, p in zip(image, kernel, stride, padding, strict=True))
    return height, width


def fold(
    image_dtype: torch.dtype, mean: torch.Tensor | None, std: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """(4,) float64 on `device`: grey = fold[0] R + fold[1] G + fold[2] B + fold[3].

    From grey = ((R' - mean[0]) / std[0] + ...) / 3 with R' = R / 255 for bytes. Stays on the device: no
    synchronisation.
    """
    scale = torch.full((3,), 1.0 / 3.0, dtype=torch.float64, device=device)
    if std is not None:
        scale = scale / std.double()
    offset = scale.new_zeros(1) if mean is None else -(scale * mean.double()).sum(0, keepdim=True)
    return torch.cat([scale / 255.0 if image_dtype == torch.uint8 else scale, offset])


def affine(
    dtype: torch.dtype, bias: torch.Tensor | None, scale: torch.Tensor | None, shift: torch.Tensor | None
) -> torch.Tensor | None:
    """(O,) of `dtype`, contiguous: what is added to scale * convolution, scale * bias + shift; None for nothing."""
    if scale is not None and bias is not None:
        bias = scale.double() * bias.double()
    if shift is not None:
        bias = shift if bias is None else bias.double() + shift.double()
    return None if bias is None else bias.to(dtype).contiguous()
