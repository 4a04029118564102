"""Greedy k-means++ over the kernels of point_distances and exact_sum: no kernel of its own yet."""

from __future__ import annotations

import torch

from dcfast.ops._triton import CompileCase
from dcfast.ops.kmeans_plusplus.greedy import greedy, kmeans_plusplus_batch

__all__ = ["compile_cases", "kmeans_plusplus", "kmeans_plusplus_batch"]


def kmeans_plusplus(
    x: torch.Tensor, sample_weight: torch.Tensor | None, first: int, uniform: torch.Tensor
) -> torch.Tensor:
    def potentials(rows: torch.Tensor) -> torch.Tensor:
        count, (n, d) = len(rows), x.shape
        labels = torch.zeros(1, 1, dtype=torch.int64, device=x.device).expand(count, n)
        weight = None if sample_weight is None else sample_weight.expand(count, n)
        return torch.ops.dcfast.point_distances(x.expand(count, n, d), x[rows][:, None], labels, weight)

    return greedy(potentials, torch.ops.dcfast.exact_sum, x.shape[0], first, uniform, x.device)


def compile_cases() -> list[CompileCase]:
    """None of its own: see dcfast/ops/inertia/triton.py."""
    return []
