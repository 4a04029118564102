"""Lloyd's iteration: assign, sum, divide, until the labels or the centroids stand still."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from dcfast import ops

# Called once per iteration with its number and the rows that changed their label (all of them at first).
Callback = Callable[[int, int], None]


class Lloyd(NamedTuple):
    """What a run of Lloyd's iteration found.

    Attributes
    ----------
    centroids : Tensor of shape (k, d)
    labels : Tensor of shape (N,), int64
        The nearest of `centroids`.
    inertia : Tensor of shape (), float64
    n_iter : int
        Updates of the centroids.
    converged : str or None
        'labels' if they stood still, 'tol' if the centroids moved by no more than that, None at `max_iter`.
    """

    centroids: torch.Tensor
    labels: torch.Tensor
    inertia: torch.Tensor
    n_iter: int
    converged: str | None


def lloyd(
    x: torch.Tensor,
    centroids: torch.Tensor,
    *,
    sample_weight: torch.Tensor | None = None,
    max_iter: int = 300,
    tol: float = 0.0,
    empty: str = "farthest",
    seed: int = 0,
    grid: ops.Grid | None = None,
    callback: Callback | None = None,
    verbose: bool = False,
) -> Lloyd:
    """Alternate labels and means (Lloyd 1982), a pure function of its arguments on every device.

    Parameters
    ----------
    x : Tensor of shape (N, d)
    centroids : Tensor of shape (k, d)
        Of the dtype and device of `x`.
    sample_weight : Tensor of shape (N,), float64, optional
    max_iter : int
    tol : float
        Stop when the squared Frobenius norm of the centroids' step is at most this.
    empty : {'farthest', 'split', 'keep'}
        What becomes of a cluster without weight: it takes the row farthest from its centroid; it splits a larger
        cluster (`ops.split_empty`); it keeps its centroid.
    seed : int
        Of the draws of 'split'.
    grid : Grid, optional
        `ops.sum_grid(x, sample_weight)`, where the caller has it already.
    callback : callable, optional
        Called with (iteration, n_moved) after each update.
    verbose : bool
        Print the inertia of every iteration, and why the last was the last.
    """
    k = centroids.shape[0]
    grid = grid or ops.sum_grid(x, sample_weight)
    own = torch.arange(k, device=x.device)
    labels = torch.full((x.shape[0],), -1, dtype=torch.int64, device=x.device)
    converged = None
    n_iter = 0
    while n_iter < max_iter and converged is None:
        previous, labels = labels, ops.assign(x, centroids)
        sums = ops.accumulate(x, labels, k, sample_weight, grid)
        vacant = torch.nonzero(sums.counts == 0)[:, 0]
        if empty == "farthest" and vacant.numel():
            moved_labels = _relocate(x, centroids, labels, vacant)
            sums = ops.accumulate(x, moved_labels, k, sample_weight, grid)
        new = ops.means(sums, centroids)
        if empty == "split" and vacant.numel():
            new, _ = ops.split_empty(new, sums.counts, seed, n_iter)
        if verbose:
            print(f"Iteration {n_iter}, inertia {float(ops.inertia(x, centroids, labels, sample_weight))}.")
        n_iter += 1
        n_moved = int((labels != previous).sum())
        if callback is not None:
            callback(n_iter, n_moved)
        if n_moved == 0 and torch.equal(new, centroids):
            converged = "labels"
            reason = "strict convergence"
        elif (step := float(ops.inertia(new, centroids, own))) <= tol:
            converged = "tol"
            reason = f"center shift {step} within tolerance {tol}"
        if verbose and converged is not None:
            print(f"Converged at iteration {n_iter - 1}: {reason}.")
        centroids = new
    if converged != "labels":
        labels = ops.assign(x, centroids)
    return Lloyd(centroids, labels, ops.inertia(x, centroids, labels, sample_weight), n_iter, converged)


def _relocate(x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, vacant: torch.Tensor) -> torch.Tensor:
    """Give each vacant cluster the row farthest from its centroid: by D64 descending, then by index."""
    distance = ops.point_distances(x, centroids, labels)
    # A stable sort keeps the lower index first among equals; nothing moves where every row sits on its centroid.
    far = torch.sort(distance, descending=True, stable=True).indices[: vacant.numel()]
    if float(distance[far[0]]) == 0.0:
        return labels
    labels = labels.clone()
    labels[far] = vacant[: far.numel()]
    return labels
