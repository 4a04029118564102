"""Where k-means starts: random rows, k-means++, or given centroids."""

from __future__ import annotations

import math

import numpy as np
import torch

from dcfast import ops
from dcfast.cluster.points import InMemory, Points
from dcfast.ops.kmeans_plusplus.greedy import draw_scale, draw_units

# Candidates whose distances to all rows are held at once: at least so many, and as many as these bytes hold.
_TRIALS, _TRIAL_BYTES = 2, 2**24


def random_rows(points: Points, n_clusters: int, random_state: np.random.RandomState) -> torch.Tensor:
    """`n_clusters` distinct rows, drawn in proportion to their weights (scikit-learn's draw from `random_state`)."""
    return points.fetch(_draw_rows(points, random_state, n_clusters))


def local_trials(n_clusters: int) -> int:
    """Candidates per centroid of greedy k-means++, as in scikit-learn."""
    return 2 + int(math.log(n_clusters))


def kmeans_plusplus(
    points: Points, n_clusters: int, random_state: np.random.RandomState, n_local_trials: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy k-means++: `dcfast.ops.kmeans_plusplus` over points that may come in blocks.

    Parameters
    ----------
    points : Points
        N rows of d elements, and their weights.
    n_clusters : int
    random_state : numpy.random.RandomState
        Consumed as scikit-learn consumes it: one `choice`, then `uniform(size=n_local_trials)` per centroid.
    n_local_trials : int, optional
        Candidates per centroid; 2 + floor(ln k) if not given.

    Returns
    -------
    centroids : Tensor of shape (k, d)
    indices : Tensor of shape (k,), int64

    Notes
    -----
    Where the points come in blocks, two passes per centroid for every two candidates, and at most 56 bytes per row.
    """
    trials = n_local_trials or local_trials(n_clusters)
    first = int(_draw_rows(points, random_state, 1))
    uniform = points.ranks.from_first(lambda: random_state.uniform(size=(n_clusters - 1, trials)))
    uniform = torch.from_numpy(uniform)
    if isinstance(points, InMemory) and points.ranks.size == 1:
        indices = ops.kmeans_plusplus(points.x, points.sample_weight, first, uniform)
        return points.take(indices), indices
    return _kmeans_plusplus(points, first, uniform)


def _kmeans_plusplus(points: Points, first: int, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`dcfast.ops.kmeans_plusplus` over blocks and ranks."""
    indices = torch.empty(len(uniform) + 1, dtype=torch.int64, device="cpu")
    indices[0] = first
    centroids = points.fetch(indices[:1]).repeat(len(indices), 1)
    potential = points.closer(centroids[:1], None)[0]
    lowest = float(points.ranks.exact_sum(potential))
    together = max(_TRIALS, _TRIAL_BYTES // (8 * points.total))  # the same on all ranks
    for c, trials in enumerate(uniform.tolist(), 1):
        scale = draw_scale(torch.tensor(lowest, dtype=torch.float64, device=points.device), points.total)
        candidates = _draw(points, potential, scale, trials)
        rows = points.fetch(candidates)
        best, chosen = potential, 0
        for start in range(0, len(trials), together):
            closer = points.closer(rows[start : start + together], potential)
            for winner, total in enumerate(points.ranks.exact_sum(closer).tolist()):
                if start + winner == 0 or total < lowest:
                    best, lowest, chosen = closer[winner].clone(), total, start + winner
        potential = best
        centroids[c], indices[c] = rows[chosen], candidates[chosen]
    return centroids, indices.to(points.device)


def _draw_rows(points: Points, random_state: np.random.RandomState, count: int) -> torch.Tensor:
    """`draw_numbers` of the first rank for the rows of all ranks."""
    weights = points.ranks.to_first(points.sample_weight)

    def draw() -> torch.Tensor:
        weight = None if weights[0] is None else torch.cat([w.cpu() for w in weights])
        return draw_numbers(random_state, points.total, weight, count)

    return points.ranks.from_first(draw)


def draw_numbers(random_state: np.random.RandomState, n: int, weight: torch.Tensor | None, count: int) -> torch.Tensor:
    """`count` different numbers below n, in proportion to weights (n,): those of `random_state.choice`.

    That takes several times as long to look for faults in the weights as to draw a few numbers.
    """
    share = np.ones(n) if weight is None else weight.numpy()
    with np.errstate(invalid="ignore"):  # without any weight
        share = share / share.sum()
    if np.count_nonzero(share > 0) < count:
        raise ValueError(f"sample_weight has {np.count_nonzero(share > 0)} rows of positive weight: expected {count}")
    drawn = np.empty(0, dtype=np.int64)
    while len(drawn) < count:
        uniform = random_state.random_sample(count - len(drawn))
        share[drawn] = 0.0
        cumulative = share.cumsum()
        cumulative /= cumulative[-1]
        found = cumulative.searchsorted(uniform, side="right")
        _, first = np.unique(found, return_index=True)
        drawn = np.append(drawn, found[np.sort(first)])
    return torch.from_numpy(drawn)


def _draw(points: Points, potential: torch.Tensor, scale: torch.Tensor, uniform: list[float]) -> torch.Tensor:
    """Rows drawn in proportion to `potential`: the first whose cumulative count exceeds u times the total."""
    cumulative = draw_units(potential, scale)
    torch.cumsum(cumulative, 0, out=cumulative)
    own = cumulative[-1:].cpu() if len(cumulative) else torch.zeros(1, dtype=torch.int64, device="cpu")
    counts = points.ranks.stack(own)[:, 0].tolist()
    before, total = sum(counts[: points.ranks.rank]), sum(counts)
    thresholds = torch.tensor([int(u * 2.0**53) * total >> 53 for u in uniform], device="cpu") - before
    here = (thresholds >= 0) & (thresholds < own)
    rows = torch.searchsorted(cumulative, thresholds.to(cumulative.device), right=True).cpu() + points.offset
    # A rank knows the rows that are its own. Where nothing is left to draw, row 0 stands for all.
    return points.ranks.sum(torch.where(here, rows, 0))
