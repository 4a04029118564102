"""Lloyd's iteration by the other ops, one problem after the other, on any device: the definition of `lloyd`."""

from __future__ import annotations

import torch

from dcfast.ops.accumulate.grid import Grid, sum_grid

_ops = torch.ops.dcfast


def lloyd(
    x: torch.Tensor,
    offsets: torch.Tensor,
    centroids: torch.Tensor,
    sample_weight: torch.Tensor | None,
    max_iter: int,
    tol: torch.Tensor,
    relative_tol: bool,
    empty: str,
    seed: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    centroids = centroids.clone(memory_format=torch.contiguous_format)
    labels = torch.empty(x.shape[0], dtype=torch.int64, device=x.device)
    inertia = torch.empty(centroids.shape[0], dtype=torch.float64, device=x.device)
    n_iter, ended = torch.empty_like(seed), torch.empty_like(seed)
    cuts = offsets.tolist()
    grid, row_grid = sum_grid(x, sample_weight), sum_grid(x)
    for b, at in enumerate(map(slice, cuts[:-1], cuts[1:])):
        weight = None if sample_weight is None else sample_weight[at]
        end = float(tol[b])
        if relative_tol and end > 0:
            end *= _mean_variance(x[at], row_grid)
        run = _run(x[at], centroids[b], weight, grid, max_iter, end, empty, seed[b])
        centroids[b], labels[at], inertia[b], n_iter[b], ended[b] = run
    return centroids, labels, inertia, n_iter, ended


def _mean_variance(x: torch.Tensor, grid: Grid) -> float:
    previous = torch.zeros(1, x.shape[1], dtype=x.dtype, device=x.device)
    labels = _ops.assign(x, previous)
    words, counts = _ops.accumulate(x, labels, 1, None, *grid)
    mean = _ops.means(words, grid.low, counts.double(), previous)
    return float(_inertia(x, mean, labels, None)) / x.numel()


def _run(
    x: torch.Tensor,
    centroids: torch.Tensor,
    weight: torch.Tensor | None,
    grid: Grid,
    max_iter: int,
    tol: float,
    empty: str,
    seed: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int, int]:
    k = centroids.shape[0]
    own = torch.arange(k, device=x.device)
    labels = torch.full((x.shape[0],), -1, dtype=torch.int64, device=x.device)
    n_iter, ended = 0, 0
    while n_iter < max_iter and not ended:
        previous, labels = labels, _ops.assign(x, centroids)
        words, counts = _ops.accumulate(x, labels, k, weight, *grid)
        vacant = torch.nonzero(counts == 0)[:, 0]
        members = labels
        if empty == "farthest" and vacant.numel():
            members = _relocated(x, centroids, labels, vacant)
            words, counts = _ops.accumulate(x, members, k, weight, *grid)
        total = counts.double() if weight is None else _ops.exact_sum(torch.where(members == own[:, None], weight, 0.0))
        new = _ops.means(words, grid.low, total, centroids)
        if empty == "farthest" and vacant.numel():
            new = torch.where(total[:, None] == 0, new[total.argmax()], new)
        if empty == "split" and vacant.numel():
            new, _ = _ops.split_empty(new, counts, seed, torch.full_like(seed, n_iter))
        n_iter += 1
        if torch.equal(labels, previous) and torch.equal(new, centroids):
            ended = 1
        elif float(_inertia(new, centroids, own, None)) <= tol:
            ended = 2
        centroids = new
    if ended != 1:
        labels = _ops.assign(x, centroids)
    return centroids, labels, _inertia(x, centroids, labels, weight), n_iter, ended


def _inertia(
    x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor | None
) -> torch.Tensor:
    return _ops.exact_sum(_ops.point_distances(x, centroids, labels, weight))


def _relocated(x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, vacant: torch.Tensor) -> torch.Tensor:
    """Labels once each vacant cluster has the row farthest from its centroid: by D64 descending, then by index."""
    distance = _ops.point_distances(x, centroids, labels, None)
    far = torch.sort(distance, descending=True, stable=True).indices[: vacant.numel()]
    if float(distance[far[0]]) == 0.0:
        return labels
    labels = labels.clone()
    labels[far] = vacant[: far.numel()]
    return labels
