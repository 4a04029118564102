"""Where k-means starts: random rows, k-means++, or given centroids."""

from __future__ import annotations

import math

import numpy as np
import torch

from dcfast import ops


def random_rows(
    x: torch.Tensor, n_clusters: int, sample_weight: torch.Tensor | None, random_state: np.random.RandomState
) -> torch.Tensor:
    """`n_clusters` distinct rows, drawn in proportion to their weights (scikit-learn's draw from `random_state`)."""
    n = x.shape[0]
    weight = np.ones(n) if sample_weight is None else sample_weight.cpu().numpy()
    rows = random_state.choice(n, size=n_clusters, replace=False, p=weight / weight.sum())
    return x[torch.as_tensor(rows, device=x.device)]


def kmeans_plusplus(
    x: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None,
    random_state: np.random.RandomState,
    n_local_trials: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007, with the trials of their section 4).

    Parameters
    ----------
    x : Tensor of shape (N, d)
    n_clusters : int
    sample_weight : Tensor of shape (N,), float64, optional
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
    O(N d k log k). Distances are D64. The cumulative potential that a draw falls into counts in integers of
    2^-62 N of the largest potential, so that the choice depends on no order of summation.
    """
    n = x.shape[0]
    trials = n_local_trials or 2 + int(math.log(n_clusters))
    weight = np.ones(n) if sample_weight is None else sample_weight.cpu().numpy()
    indices = torch.empty(n_clusters, dtype=torch.int64)
    indices[0] = int(random_state.choice(n, p=weight / weight.sum()))
    potential = _potentials(x, x[indices[:1]], sample_weight)[0]
    for c in range(1, n_clusters):
        candidates = _draw(potential, random_state.uniform(size=trials))
        closer = torch.minimum(potential, _potentials(x, x[candidates], sample_weight))
        best = int(torch.argmin(ops.exact_sum(closer)))
        potential = closer[best]
        indices[c] = candidates[best]
    indices = indices.to(x.device)
    return x[indices], indices


def _potentials(x: torch.Tensor, candidates: torch.Tensor, sample_weight: torch.Tensor | None) -> torch.Tensor:
    """RN64(w D64(x, c)) of every row and candidate: (candidates, N) float64."""
    count, (n, d) = candidates.shape[0], x.shape
    labels = torch.zeros(1, 1, dtype=torch.int64, device=x.device).expand(count, n)
    weight = None if sample_weight is None else sample_weight.expand(count, n)
    return ops.point_distances(x.expand(count, n, d), candidates[:, None], labels, weight)


def _draw(potential: torch.Tensor, uniform: np.ndarray) -> torch.Tensor:
    """Rows drawn in proportion to `potential`: the first whose cumulative potential exceeds u times the total."""
    _, exponent = torch.frexp(potential.max())
    bits = 62 - math.ceil(math.log2(max(2, potential.shape[0])))
    cumulative = torch.ldexp(potential, bits - exponent).floor().long().cumsum(0)
    total = int(cumulative[-1])
    thresholds = [int(u * 2.0**53) * total >> 53 for u in uniform.tolist()]
    rows = torch.searchsorted(cumulative, torch.tensor(thresholds, device=potential.device), right=True)
    return rows.clamp(max=potential.shape[0] - 1)
