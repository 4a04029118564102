"""A step of mini-batch k-means by the other ops, on any device: the definition of `minibatch_step`."""

from __future__ import annotations

import torch

from dcfast.ops.accumulate.grid import sum_grid

_ops = torch.ops.dcfast


def minibatch_step(
    x: torch.Tensor,
    centroids: torch.Tensor,
    seen: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    k = centroids.shape[0]
    labels = _ops.assign(x, centroids)
    inertia = _ops.exact_sum(_ops.point_distances(x, centroids, labels, sample_weight))
    words, counts = _ops.accumulate(x, labels, k, sample_weight, low, n_words)
    added = rounded(words, low)
    total = counts.double()
    if sample_weight is not None:
        column = sample_weight[:, None]
        grid = sum_grid(column)
        total = rounded(_ops.accumulate(column, labels, k, None, *grid)[0], grid.low)[:, 0]
    return (*averaged(added, counts, total, centroids, seen), inertia)


def rounded(words: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """RN64 of exact sums (k, n_words, d): (k, d). They are means of weight 1."""
    zeros = torch.zeros(words.shape[0], words.shape[2], dtype=torch.float64, device=words.device)
    return _ops.means(words, low, torch.ones_like(zeros[:, 0]), zeros)


def averaged(
    added: torch.Tensor, counts: torch.Tensor, total: torch.Tensor, centroids: torch.Tensor, seen: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The centroids that the sums `added` (k, d) of rows of weight `total` (k,) go into, and the weight behind them."""
    given = counts > 0
    after = torch.where(given, seen + total, seen)
    mean = ((centroids.double() * seen[:, None] + added) / after[:, None]).to(centroids.dtype)
    return torch.where(given[:, None], mean, centroids), after
