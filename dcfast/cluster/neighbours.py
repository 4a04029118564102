"""Distances to stored vectors, and the nearest of them."""

from __future__ import annotations

import torch

from dcfast import ops

# Of the scores that a search for several neighbours holds at a time.
BLOCK_BYTES = 2**26


def squared_distances(x: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """D64 of every row to one point of shape (1, d): (n,) float64."""
    return ops.point_distances(x, point, torch.zeros(x.shape[0], dtype=torch.int64, device=x.device))


def neighbours(x: torch.Tensor, vectors: torch.Tensor, k: int) -> torch.Tensor:
    """Labels (n, k) of the smallest D64, lower labels first among equals; -1 as `ops.assign` gives it."""
    if k == 1:
        return ops.assign(x, vectors)[:, None]
    found = torch.full((x.shape[0], k), -1, dtype=torch.int64, device=x.device)
    sound = torch.nonzero(vectors.isfinite().all(1))[:, 0]
    vectors = vectors[sound]
    n, d = vectors.shape
    if n == 0:
        return found
    shift = vectors.double().mean(0)
    shifted = vectors.double() - shift
    norms = shifted.square().sum(1)
    step = max(1, BLOCK_BYTES // (8 * n))
    for start in range(0, x.shape[0], step):
        block = x[start : start + step]
        usable = torch.nonzero(block.isfinite().all(1))[:, 0]
        block = block[usable]
        if n <= k:
            nearest = _by_distance(block, vectors, torch.arange(n, device=x.device).expand(block.shape[0], n))
        else:
            rows = block.double() - shift
            values, candidates = torch.topk(norms / 2 - rows @ shifted.T, k + 1, dim=1, largest=False)
            nearest = _by_distance(block, vectors, candidates[:, :k])
            # (d + 8) 2^-53 R^2 bounds the error of a score, whatever the order of its sum, and of half of D64; where
            # the next score lies four of them away, the k best scores are the k smallest D64.
            reach = rows.square().sum(1).sqrt() + norms.max().sqrt()
            proved = values[:, k] - values[:, k - 1] > 4 * (d + 8) * 2.0**-53 * reach.square()
            for row in torch.nonzero(~proved)[:, 0].tolist():
                everyone = squared_distances(vectors, block[row : row + 1])
                nearest[row] = everyone.sort(stable=True).indices[:k]
        found[start + usable[:, None], torch.arange(nearest.shape[1], device=x.device)] = sound[nearest]
    return found


def _by_distance(x: torch.Tensor, vectors: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Each row's candidates, (n, m), sorted by D64, then by label."""
    candidates = candidates.sort(1).values
    distances = torch.stack([ops.point_distances(x, vectors, label) for label in candidates.unbind(1)], 1)
    return candidates.gather(1, distances.sort(stable=True, dim=1).indices)
