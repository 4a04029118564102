"""Lloyd's iteration: assign, sum, divide, until the labels or the centroids stand still."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from dcfast import ops
from dcfast.cluster.points import InMemory, Points
from dcfast.cluster.replay import Replayed
from dcfast.cluster.sphere import unit

# Iterations that a device is given before the host looks at how the last ones went: to look costs a round trip in which
# a GPU idles, and iterations past the end of a run change nothing. A processor would only do those for nothing. Even on
# a GPU, so that after them labels and new labels are in the places that a captured graph knows.
_AHEAD = {"cpu": 1, "cuda": 4}
# Elements of rows, 16 more each for what a row costs anyway, up to which a graph is captured. To launch some 40 kernels
# one by one takes the host about 0.2 ms, several times what a large GPU needs to read so many; and the memory that a
# graph keeps to itself stays some 100 MiB.
_CAPTURED = {"cpu": 0, "cuda": 2**24}
# How a run stands. Vacant clusters are the host's to fill.
_STATES = _GOING, _LABELS, _TOL, _OBJECTIVE, _VACANT = range(5)
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
            points.offsets,
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
    run = _Run(points, centroids, tol, empty, seed, spherical)
    ahead = _AHEAD[device.type] if points.ranks.size == 1 and is_plain else 1
    launch: Callable[[], None] = functools.partial(run.iterate, ahead)
    if ahead > 1 and points.resident and points.n_samples * (points.n_features + 16) <= _CAPTURED[device.type]:
        launch = Replayed(launch, device)
    n_iter, ended, objective = 0, _GOING, math.nan
    while n_iter < max_iter and ended == _GOING:
        if max_iter - n_iter >= ahead:
            launch()
        else:
            run.iterate(max_iter - n_iter)
        ended, n_iter, n_moved = run.status.tolist()
        if verbose or early_stop_threshold is not None:
            last, objective = objective, float(points.inertia(run.before, run.labels))
        if ended == _VACANT:
            run.relocate()
            ended, n_iter, _ = run.status.tolist()
        if verbose:
            say(f"Iteration {n_iter - 1}, inertia {objective}.")
        with points.ranks.together():
            if callback is not None:
                callback(n_iter, n_moved)
        if (
            ended == _GOING
            and early_stop_threshold is not None
            and abs(last - objective) <= early_stop_threshold * last
        ):
            ended = _OBJECTIVE
        if verbose and ended != _GOING:
            reason = {
                _LABELS: "strict convergence",
                _TOL: f"center shift {float(run.shift(run.before))} within tolerance {tol}",
                _OBJECTIVE: f"inertia {objective} after {last} within threshold {early_stop_threshold}",
            }[ended]
            say(f"Converged at iteration {n_iter - 1}: {reason}.")
    if ended != _LABELS:
        run.assign()
    inertia = points.inertia(run.centroids, run.labels)
    return Lloyd(run.centroids, run.labels, inertia, n_iter, _CONVERGED[ended])


class _Run:
    """Iterations on the device. Its tensors stay where they are, so that a captured graph can replay them.

    Attributes
    ----------
    centroids, before : Tensor of shape (k, d)
        Those of now, and those before the last update, to which labels and bounds belong.
    labels : Tensor of shape (N,), int64
    status : Tensor of shape (3,), int64
        Whether the run goes on or how it ended, its updates, and the rows that the last one moved.
    """

    def __init__(
        self, points: Points, centroids: torch.Tensor, tol: float, empty: str, seed: int, spherical: bool
    ) -> None:
        self._points, self._tol, self._empty, self._seed, self._spherical = points, tol, empty, seed, spherical
        n, k, device = points.n_samples, centroids.shape[0], centroids.device
        self.centroids = centroids.clone(memory_format=torch.contiguous_format)
        self.before = self.centroids.clone()
        self.labels = torch.full((n,), -1, dtype=torch.int64, device=device)
        self.status = torch.zeros(3, dtype=torch.int64, device=device)
        self._state, self._updates, self._n_moved = self.status
        self._spare = torch.empty_like(self.labels)
        self._own = torch.arange(k, device=device)
        # On the device, where numbers of Python's would be written anew for each use.
        self._code = torch.arange(len(_STATES), device=device)
        self._running = ops.RunningSums(k, points.grid, points.weight_grid, device)
        self._bounds = ops.distance_bounds(n, points.n_features, device)

    def iterate(self, count: int) -> None:
        """Launch some iterations. Once the run has ended its centroids stay, and with them labels and sums."""
        labels, spare = self.labels, self._spare
        for _ in range(count):
            n_moved = self._points.ranks.sum(self._relabel(labels, spare, move=True))
            labels, spare = spare, labels
            sums = self._points.total_sums(self._running)
            new = _means(sums, self.centroids, self._spherical)
            if self._empty == "split":
                new = _split(new, sums.counts, self._seed, self._updates, self._spherical)
            goes_on = self._state == _GOING
            torch.where(goes_on, n_moved, self._n_moved, out=self._n_moved)
            found = self._ending(new)
            if self._empty == "farthest":
                found = torch.where((sums.counts == 0).any(), self._code[_VACANT], found)
            updated = goes_on & (found != _VACANT)
            self.before.copy_(self.centroids)
            torch.where(updated, new, self.centroids, out=self.centroids)
            self._updates += updated
            torch.where(goes_on, found, self._state, out=self._state)
        # Last of all: a capture that fails leaves everything as it was.
        self.labels, self._spare = labels, spare

    def assign(self) -> None:
        """Bring the labels up to date."""
        self._relabel(self.labels, self._spare, move=False)
        self.labels, self._spare = self._spare, self.labels

    def relocate(self) -> None:
        """Make the update for which clusters were vacant: which rows they get is the host's decision."""
        vacant = torch.nonzero(self._points.total_sums(self._running).counts == 0)[:, 0]
        new = _relocated(self._points, self.centroids, self.labels, self._running, vacant, self._spherical)
        self._state.copy_(self._ending(new))
        self._updates += 1
        self.before.copy_(self.centroids)
        self.centroids.copy_(new)

    def shift(self, other: torch.Tensor) -> torch.Tensor:
        """The squared Frobenius norm of the way from the centroids to others: () float64."""
        return ops.inertia(other, self.centroids, self._own)

    def _relabel(self, old: torch.Tensor, new: torch.Tensor, *, move: bool) -> torch.Tensor:
        """Fill the new labels, and `move` the sums if they shall follow; the number of rows that changed."""
        changed = torch.zeros((), dtype=torch.int64, device=old.device)
        with self._points.ranks.together():
            for at, rows in self._points.operands():
                changed += ops.reassign(rows, self.centroids, self.before, old[at], self._bounds[at], new[at])
                if move:
                    self._running.move(rows, new[at], old[at], self._points.weight(at))
        return changed

    def _ending(self, new: torch.Tensor) -> torch.Tensor:
        still = (self._n_moved == 0) & (new == self.centroids).all()
        moves_on = torch.where(self.shift(new) <= self._tol, self._code[_TOL], self._code[_GOING])
        return torch.where(still, self._code[_LABELS], moves_on)


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
