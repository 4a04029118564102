"""Labels of the nearest centroids by the definition: D64 of every pair, accumulated in order."""

from __future__ import annotations

import torch

from dcfast.ops.assign.anew import reassign

__all__ = ["assign", "distances", "reassign"]

# Rows at a time, so that a block of distances stays near 64 MiB.
_BLOCK_ELEMENTS = 2**23


def distances(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """D64 of every row and centroid: (..., n, d), (..., k, d) -> (..., n, k) float64.

    A multiplication and an addition, each rounded on its own (no addcmul, no sum), over i = 0, ..., d-1.
    """
    x, centroids = x.double(), centroids.double()
    acc = x.new_zeros(*x.shape[:-1], centroids.shape[-2])
    for i in range(x.shape[-1]):
        t = x[..., i, None] - centroids[..., None, :, i]
        acc = acc + t * t
    return acc


def assign(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    k = centroids.shape[-2]
    labels = torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device)
    usable = centroids.isfinite().all(-1)
    rows = max(1, _BLOCK_ELEMENTS // max(1, k * x.shape[:-2].numel()))
    for start in range(0, x.shape[-2], rows):
        block = x[..., start : start + rows, :]
        # argmin of torch does not promise the lowest index on ties: the lowest index that reaches the minimum.
        distance = distances(block, centroids).masked_fill(~usable[..., None, :], torch.inf)
        nearest = (distance == distance.amin(-1, keepdim=True)) & usable[..., None, :]
        index = torch.where(nearest, torch.arange(k, device=x.device), k).amin(-1)
        valid = block.isfinite().all(-1) & usable.any(-1, keepdim=True)
        labels[..., start : start + rows] = torch.where(valid, index, -1)
    return labels
