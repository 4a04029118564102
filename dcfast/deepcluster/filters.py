"""Pictures of a network's first filters."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dcfast.deepcluster.models import Backbone
from dcfast.nn import SobelConv2d

__all__ = ["SOBEL", "first_filters", "gradient_tiles", "image_filters", "mosaic"]

# What dcfast.nn.SobelConv2d convolves with before its weights: the x and the y gradient of the grey image.
SOBEL = torch.tensor([[[1, 0, -1], [2, 0, -2], [1, 0, -1]], [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]])


def first_filters(model: Backbone) -> Tensor | None:
    """Return the weights of the first convolution, (O, 2, kh, kw) behind Sobel or (O, 3, kh, kw) on colours.

    None for a network of the user's own without a convolution on colours.
    """
    for module in model.modules():
        if isinstance(module, SobelConv2d) or (isinstance(module, torch.nn.Conv2d) and module.in_channels == 3):
            return module.weight.detach()
    return None


def image_filters(weight: Tensor) -> Tensor:
    """Return the filters as they act on the image.

    Sobel and the convolution behind it are both linear, so together they are one filter on the grey image, two pixels
    wider each way.

    Parameters
    ----------
    weight : Tensor of shape (O, 2, kh, kw) or (O, 3, kh, kw)
        Weights on Sobel's two gradients, or on colours, which are returned as they are.

    Returns
    -------
    Tensor of shape (O, 1, kh+2, kw+2) or (O, 3, kh, kw)
    """
    if weight.shape[1] != 2:
        return weight
    # Two cross-correlations in sequence are one with the full convolution of their kernels, which is what the
    # transposed convolution computes.
    return torch.nn.functional.conv_transpose2d(weight, SOBEL[:, None].to(weight))


def gradient_tiles(weight: Tensor) -> Tensor:
    """Lay the weights on Sobel's x and y gradient side by side, with a column of NaN after each.

    (O, 2, kh, kw) -> (O, 1, kh, 2 kw + 2)
    """
    n_filters, _, height, _ = weight.shape
    gap = weight.new_full((n_filters, height, 1), torch.nan)
    return torch.cat([weight[:, 0], gap, weight[:, 1], gap], dim=2)[:, None]


def mosaic(filters: Tensor, columns: int) -> Image.Image:
    """Lay filters out in a grid, one pixel per weight.

    Each filter is scaled by its own largest absolute weight: middle grey is zero, white the largest positive and black
    the largest negative value it could hold. What is NaN, and the pixel between two filters, is transparent.

    Parameters
    ----------
    filters : Tensor of shape (O, 1 or 3, h, w)
    columns : int
        Filters per row.

    Returns
    -------
    Image
        RGBA.
    """
    n_filters, _, height, width = filters.shape
    values = filters.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).double().numpy()
    largest = np.nanmax(np.abs(values), axis=(1, 2, 3), keepdims=True)
    with np.errstate(invalid="ignore"):
        scaled = np.nan_to_num(127.5 + 127.5 * values / np.where(largest > 0, largest, 1.0))
    pixels = np.concatenate([np.round(scaled), 255.0 * ~np.isnan(values[..., :1])], axis=3).astype(np.uint8)
    rows = -(-n_filters // columns)
    canvas = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), dtype=np.uint8)
    for index, tile in enumerate(pixels):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        canvas[top : top + height, left : left + width] = tile
    return Image.fromarray(canvas)
