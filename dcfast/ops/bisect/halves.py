"""2-means of some rows by the other ops, on any device: the definition of `bisect`."""

from __future__ import annotations

import torch

_ops = torch.ops.dcfast


def bisect(
    x: torch.Tensor,
    rows: torch.Tensor,
    centroids: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,  # the grid: `lloyd` finds that of these rows
    n_words: int,
    max_iter: int,
    tol: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    x, weight = x[rows], None if sample_weight is None else sample_weight[rows]
    offsets = torch.tensor([0, rows.shape[0]])
    end = torch.full((1,), tol, dtype=torch.float64, device=x.device)
    seed = torch.zeros(1, dtype=torch.int64, device=x.device)
    run = _ops.lloyd(x, offsets, centroids[None], weight, max_iter, end, False, "farthest", seed)
    centroids, labels, inertia = run[0][0], run[1], run[2][0]
    distance = _ops.point_distances(x, centroids, labels, weight)
    members = torch.stack([labels == half for half in (0, 1, -1)])
    order = torch.cat([rows[mask] for mask in members])
    inertias = _ops.exact_sum(torch.where(members[:2], distance, 0.0))
    # No output may share memory with another tensor.
    return centroids.clone(), order, members[:2].sum(1), inertia.clone(), inertias
