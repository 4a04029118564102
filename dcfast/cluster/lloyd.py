"""Lloyd's iteration: assign, sum, divide, until the labels or the centroids stand still."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from dcfast import ops
from dcfast.cluster.points import InMemory, Points, unit

# Iterations that a device is given before the host looks at how the last ones went: to look costs a round trip in which
# a GPU idles, and iterations past the end of a run change nothing. A processor would only do those for nothing.
_AHEAD = {"cpu": 1, "cuda": 4}
# How a run stands. Vacant clusters are the host's to fill.
_GOING, _LABELS, _TOL, _OBJECTIVE, _VACANT = range(5)
_CONVERGED = {_GOING: None, _LABELS: "labels", _TOL: "tol", _OBJECTIVE: "objective"}

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
        'labels' if they stood still, 'tol' if the centroids moved by no more than that, 'objective' if the inertia
        did, None at `max_iter`.
    """

    centroids: torch.Tensor
    labels: torch.Tensor
    inertia: torch.Tensor
    n_iter: int
    converged: str | None


def lloyd(
    points: Points,
    centroids: torch.Tensor,
    *,
    max_iter: int = 300,
    tol: float = 0.0,
    relative_tol: bool = False,
    empty: str = "farthest",
    seed: int = 0,
    spherical: bool = False,
    early_stop_threshold: float | None = None,
    callback: Callback | None = None,
    verbose: bool = False,
) -> Lloyd:
    """Alternate labels and means (Lloyd 1982), a pure function of its arguments on every device.

    Parameters
    ----------
    points : Points
        The rows, (N, d), and their weights. How they are cut into blocks changes no bit.
    centroids : Tensor of shape (k, d)
        Of the dtype and device of `points`.
    max_iter : int
    tol : float
        Stop when the squared Frobenius norm of the centroids' step is at most this.
    relative_tol : bool
        Whether `tol` counts in mean variances of the features (`points.mean_variance`).
    empty : {'farthest', 'split', 'keep'}
        What becomes of a cluster without weight: it takes the row farthest from its centroid (where all are at
        theirs, or that row has no weight, the centroid of the heaviest cluster); it splits a larger
        cluster (`ops.split_empty`); it keeps its centroid.
    seed : int
        Of the draws of 'split'.
    spherical : bool
        Divide the centroids by their norms after every update. The points and the first centroids have norm 1.
    early_stop_threshold : float, optional
        Stop when the inertia, taken before each update, changes by at most this share of the one before.
    callback : callable, optional
        Called with (iteration, n_moved) after each update.
    verbose : bool
        Print the inertia of every iteration, and why the last was the last.
    """
    k, device = centroids.shape[0], centroids.device
    is_plain = callback is None and not verbose and not spherical and early_stop_threshold is None
    if isinstance(points, InMemory) and points.is_small(k) and is_plain:
        runs = ops.lloyd(
            points.x,
            points.bounds,
            centroids[None],
            sample_weight=points.sample_weight,
            max_iter=max_iter,
            tol=tol,
            relative_tol=relative_tol,
            empty=empty,
            seed=seed,
        )
        return Lloyd(runs.centroids[0], runs.labels, runs.inertia[0], int(runs.n_iter), _CONVERGED[int(runs.ended)])
    if relative_tol and tol > 0:
        tol *= points.mean_variance
    say = print if points.ranks.rank == 0 else _silent
    own = torch.arange(k, device=device)
    labels = torch.full((points.n_samples,), -1, dtype=torch.int64, device=device)
    new_labels = torch.empty_like(labels)
    running = ops.RunningSums(k, points.grid, points.weight_grid, device)
    before = centroids  # which `labels` and `bounds` belong to
    bounds = ops.distance_bounds(points.n_samples, points.n_features, device)

    def ending(new: torch.Tensor, n_moved: torch.Tensor) -> torch.Tensor:
        still = (n_moved == 0) & (new == centroids).all()
        return torch.where(still, _LABELS, torch.where(ops.inertia(new, centroids, own) <= tol, _TOL, _GOING))

    ahead = _AHEAD[device.type] if points.ranks.size == 1 and is_plain else 1
    # On the device: whether the run goes on or how it ended, its updates, and the rows that the last one moved.
    state, updates, n_moved = torch.zeros(3, dtype=torch.int64, device=device)
    n_iter, ended, objective = 0, _GOING, math.nan
    while n_iter < max_iter and ended == _GOING:
        for _ in range(min(ahead, max_iter - n_iter)):
            moved = torch.zeros((), dtype=torch.int64, device=device)
            with points.ranks.together():
                for at, rows in points.operands():
                    moved += ops.reassign(rows, centroids, before, labels[at], bounds[at], new_labels[at])
                    running.move(rows, new_labels[at], labels[at], points.weight(at))
            labels, new_labels = new_labels, labels
            sums = points.total_sums(running)
            new = _means(sums, centroids, spherical)
            if empty == "split":
                new = _split(new, sums.counts, seed, updates, spherical)
            # Once the run has ended its centroids stay, and with them labels and sums.
            goes_on = state == _GOING
            n_moved = torch.where(goes_on, points.ranks.sum(moved), n_moved)
            found = ending(new, n_moved)
            if empty == "farthest":
                found = torch.where((sums.counts == 0).any(), _VACANT, found)
            updated = goes_on & (found != _VACANT)
            before, centroids = centroids, torch.where(updated, new, centroids)
            updates = updates + updated
            state = torch.where(goes_on, found, state)
        n_iter, ended, moves = torch.stack([updates, state, n_moved]).tolist()
        if verbose or early_stop_threshold is not None:
            last, objective = objective, float(points.inertia(before, labels))
        if ended == _VACANT:
            # Which rows to relocate is the host's decision; no iteration has gone by since.
            vacant = torch.nonzero(points.total_sums(running).counts == 0)[:, 0]
            new = _relocated(points, centroids, labels, running, vacant, spherical)
            state = ending(new, n_moved)
            updates = updates + 1
            n_iter, ended = n_iter + 1, int(state)
            before, centroids = centroids, new
        if verbose:
            say(f"Iteration {n_iter - 1}, inertia {objective}.")
        with points.ranks.together():
            if callback is not None:
                callback(n_iter, moves)
        if (
            ended == _GOING
            and early_stop_threshold is not None
            and abs(last - objective) <= early_stop_threshold * last
        ):
            ended = _OBJECTIVE
        if verbose and ended != _GOING:
            reason = {
                _LABELS: "strict convergence",
                _TOL: f"center shift {float(ops.inertia(centroids, before, own))} within tolerance {tol}",
                _OBJECTIVE: f"inertia {objective} after {last} within threshold {early_stop_threshold}",
            }[ended]
            say(f"Converged at iteration {n_iter - 1}: {reason}.")
    if ended != _LABELS:
        with points.ranks.together():
            for at, rows in points.operands():
                ops.reassign(rows, centroids, before, labels[at], bounds[at], new_labels[at])
        labels = new_labels
    return Lloyd(centroids, labels, points.inertia(centroids, labels), n_iter, _CONVERGED[ended])


def _means(sums: ops.ClusterSums, centroids: torch.Tensor, spherical: bool) -> torch.Tensor:
    """The new centroids; on the sphere those of the directions of the sums."""
    if not spherical:
        return ops.means(sums, centroids)
    mean = ops.means(sums, centroids.double())
    # Where a cluster has no rows, or their directions cancel out, the centroid stays.
    some = (sums.counts > 0) & mean.any(1)
    return torch.where(some[:, None], unit(mean).to(centroids.dtype), centroids)


def _split(
    new: torch.Tensor, counts: torch.Tensor, seed: int, iteration: torch.Tensor, spherical: bool
) -> torch.Tensor:
    """The centroids with the empty clusters' taken from larger ones."""
    split, _ = ops.split_empty(new, counts, seed, iteration)
    # Of unit norm again, where they changed.
    return torch.where((split != new).any(1, keepdim=True), unit(split), split) if spherical else split


def _relocated(
    points: Points,
    centroids: torch.Tensor,
    labels: torch.Tensor,
    running: ops.RunningSums,
    vacant: torch.Tensor,
    spherical: bool,
) -> torch.Tensor:
    """The means once each vacant cluster has the row farthest from its centroid: by D64 descending, then by index."""
    far = _farthest(points, points.distances(centroids, labels), vacant.numel())
    # Of these rows a rank moves its own. The sums are exact, so that moving them back leaves no trace.
    own = (far >= points.offset) & (far < points.offset + points.n_samples)
    mine, taken = far[own] - points.offset, vacant[: far.numel()][own]
    with points.ranks.together():
        rows = points.take(mine)
    weight = None if points.sample_weight is None else points.sample_weight[mine]
    running.move(rows, taken, labels[mine], weight)
    sums = points.total_sums(running)
    new = _means(sums, centroids, spherical)
    # What is left without weight goes to the heaviest, as in scikit-learn.
    new = torch.where(sums.total[:, None] == 0, new[sums.total.argmax()], new)
    running.move(rows, labels[mine], taken, weight)
    return new


def _farthest(points: Points, distance: torch.Tensor, count: int) -> torch.Tensor:
    """The rows of the `count` largest distances, the lower index first among equals; none if all are 0.

    Counted over all ranks, each of which has the distances of its own rows.
    """
    largest = torch.full((count,), -1.0, dtype=torch.float64, device=distance.device)
    numbers = torch.zeros(count, dtype=torch.int64, device=distance.device)
    own = min(count, distance.shape[0])
    if own:
        far = torch.nonzero(distance >= torch.topk(distance, own).values[-1])[:, 0]
        order = torch.sort(distance[far], descending=True, stable=True).indices[:own]
        largest[:own], numbers[:own] = distance[far[order]], far[order] + points.offset
    # Ranks follow one another as their rows do, so that a stable sort keeps the order of equals.
    everywhere = points.ranks.stack(largest).flatten()
    order = torch.sort(everywhere, descending=True, stable=True).indices[:count]
    order = order[everywhere[order] >= 0]
    return points.ranks.stack(numbers).flatten()[order] if float(everywhere[order[0]]) > 0 else order[:0]


def _silent(_: str) -> None:
    """Say nothing: the first rank speaks for all."""
