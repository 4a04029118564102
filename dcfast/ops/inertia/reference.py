"""Distances to the own centroid, and exact sums of doubles, by the definition."""

from __future__ import annotations

import math
from fractions import Fraction

import torch


def point_distances(
    x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None
) -> torch.Tensor:
    k = centroids.shape[-2]
    inside = (labels >= 0) & (labels < k)
    index = torch.where(inside, labels, 0)
    if x.dim() == 3:
        own = torch.gather(centroids, 1, index[..., None].expand(-1, -1, x.shape[-1]))
    else:
        own = centroids[index]
    x, own = x.double(), own.double()
    acc = torch.zeros_like(x[..., 0])
    for i in range(x.shape[-1]):
        t = x[..., i] - own[..., i]
        acc = acc + t * t
    acc = torch.where(inside, acc, 0.0)
    return acc if sample_weight is None else sample_weight * acc


def exact_sum(values: torch.Tensor) -> torch.Tensor:
    def fsum(row: list[float]) -> float:
        if not all(map(math.isfinite, row)):
            return sum(v for v in row if not math.isfinite(v))
        try:
            return math.fsum(row)
        except OverflowError:  # even where only a partial sum leaves the range: fractions do not
            exact = sum(map(Fraction, row))
            try:
                return float(exact)
            except OverflowError:
                return math.inf if exact > 0 else -math.inf

    sums = [fsum(row) for row in values.reshape(values.shape[:-1].numel(), values.shape[-1]).tolist()]
    return torch.tensor(sums, dtype=torch.float64, device=values.device).reshape(values.shape[:-1])
