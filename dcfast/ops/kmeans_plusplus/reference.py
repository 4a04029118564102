"""Greedy k-means++ by the definition."""

from __future__ import annotations

import math

import torch

from dcfast.ops.kmeans_plusplus.greedy import greedy, kmeans_plusplus_batch

__all__ = ["kmeans_plusplus", "kmeans_plusplus_batch"]


def kmeans_plusplus(
    x: torch.Tensor, sample_weight: torch.Tensor | None, first: int, uniform: torch.Tensor
) -> torch.Tensor:
    wide = x.double()

    def potentials(rows: torch.Tensor) -> torch.Tensor:
        acc = wide.new_zeros(len(rows), len(wide))
        for i in range(x.shape[1]):
            t = wide[None, :, i] - wide[rows, i, None]
            acc = acc + t * t
        return acc if sample_weight is None else sample_weight * acc

    def exact_sum(values: torch.Tensor) -> torch.Tensor:
        return torch.tensor([math.fsum(row) for row in values.tolist()], dtype=torch.float64, device=values.device)

    return greedy(potentials, exact_sum, x.shape[0], first, uniform, x.device)
