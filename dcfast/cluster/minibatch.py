"""MiniBatchKMeans: k-means from small random batches, each step exact."""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.cluster.base import BaseKMeans, random_subset, unfitted_on_error
from dcfast.cluster.inputs import open_points
from dcfast.cluster.points import Points


class MiniBatchKMeans(BaseKMeans):
    """k-means that moves its centroids after every batch of rows (Sculley 2010), with scikit-learn's interface.

    A centroid is the mean of all rows that it was ever given. A step is exact (see `dcfast.ops.minibatch_step`), so
    that a run is a pure function of the data, the parameters and the seed, on any number of threads and any backend.

    Parameters
    ----------
    n_clusters : int, default=8
    init : {'k-means++', 'random'}, callable or array-like of shape (n_clusters, n_features), default='k-means++'
        A callable takes (X, n_clusters, random_state) and returns such an array.
    max_iter : int, default=100
        Passes over the data: a run takes at most max_iter * n_samples // batch_size steps.
    batch_size : int, default=1024
        Rows of a step, drawn with replacement in proportion to their weights.
    verbose : int, default=0
    compute_labels : bool, default=True
        Label X, and sum its inertia, once the centroids stand.
    random_state : int, RandomState instance or None, default=None
        Consumed as scikit-learn consumes it: the same batches for the same seed.
    tol : float, default=0.0
        Relative to the mean variance of the features: a run stops when the squared Frobenius norm of a step of the
        centroids is at most tol times that variance. 0 never stops for it.
    max_no_improvement : int or None, default=10
        A run stops after so many steps in a row that did not lower the smoothed inertia of the batches.
    init_size : int, default=None
        Rows that the starts are chosen from: 3 * batch_size if not given, or 3 * n_clusters where that is below
        n_clusters; at most n_samples.
    n_init : 'auto' or int, default='auto'
        Starts of which the one of lowest inertia on a sample of init_size rows is used. 'auto' is 1 for 'k-means++'
        and arrays, 3 for 'random' and callables.
    reassignment_ratio : float, default=0.01
        From time to time a centroid that has seen less than this share of the weight of the heaviest is moved to a
        random row of the batch. 0 never does.

    Attributes
    ----------
    cluster_centers_ : array of shape (n_clusters, n_features)
    labels_ : array of shape (n_samples,), int32
        Equal to ``predict(X)``; of the last batch after `partial_fit`. With `compute_labels` only.
    inertia_ : float
        Weighted sum of squared distances to the own centroid, rounded once; without `compute_labels`, after `fit`,
        an estimate from the smoothed inertia of the batches.
    n_iter_ : int
        Passes over the data that were begun, after `fit`.
    n_steps_ : int
        Batches processed.
    n_features_in_ : int
    feature_names_in_ : array of shape (n_features_in_,)
        Where X has string column names.

    Notes
    -----
    Kinds of arrays are those of `KMeans`. A step costs O(batch_size n_features n_clusters) operations.

    Where more centroids ask to be moved than half the rows of a batch, the lightest are, the lowest index first among
    equals; scikit-learn leaves their order to an unstable sort.

    Examples
    --------
    >>> import numpy as np
    >>> from dcfast import MiniBatchKMeans
    >>> X = np.repeat([[0.0, 0.0], [4.0, 4.0]], 50, axis=0)
    >>> MiniBatchKMeans(2, random_state=0).fit(X).inertia_
    0.0
    """

    _parameter_constraints: dict = {
        **BaseKMeans._parameter_constraints,
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "compute_labels": ["boolean"],
        "max_no_improvement": [Interval(Integral, 0, None, closed="left"), None],
        "init_size": [Interval(Integral, 1, None, closed="left"), None],
        "reassignment_ratio": [Interval(Real, 0, None, closed="left")],
    }
    _auto_starts = 3

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        max_iter: int = 100,
        batch_size: int = 1024,
        verbose: int = 0,
        compute_labels: bool = True,
        random_state: Any = None,
        tol: float = 0.0,
        max_no_improvement: int | None = 10,
        init_size: int | None = None,
        n_init: Any = "auto",
        reassignment_ratio: float = 0.01,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.verbose = verbose
        self.compute_labels = compute_labels
        self.random_state = random_state
        self.tol = tol
        self.max_no_improvement = max_no_improvement
        self.init_size = init_size
        self.n_init = n_init
        self.reassignment_ratio = reassignment_ratio

    def _check_parameters(self, points: Points) -> None:
        super()._check_parameters(points)
        self._tol = self.tol * points.mean_variance if self.tol > 0 else 0.0
        n = points.n_samples
        self._batch_size = min(self.batch_size, n)
        size = 3 * self._batch_size if self.init_size is None else self.init_size
        if size < self.n_clusters:
            if self.init_size is not None:
                warnings.warn(
                    f"init_size={size} should be larger than n_clusters={self.n_clusters}: "
                    "min(3*n_clusters, n_samples) is used",
                    RuntimeWarning,
                    stacklevel=5,
                )
            size = 3 * self.n_clusters
        self._init_size = min(size, n)

    @_fit_context(prefer_skip_nested_validation=True)
    @unfitted_on_error
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Cluster the rows of X from random batches of them.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            float32, float64, float16 or bfloat16; anything else becomes float64.
        y : Ignored
        sample_weight : array of shape (n_samples,), optional
            Rows are drawn in proportion to it.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X is not finite or has fewer rows than n_clusters, or if weights or initial centroids do not fit. After
            an error or an interrupt the estimator is not fitted, even if it was before.
        """
        points = open_points(self, X, reset=True, sample_weight=sample_weight)
        self._check_parameters(points)
        random_state = check_random_state(self.random_state)
        n = points.n_samples
        centroids = self._best_start(points, random_state)
        seen = torch.zeros(self.n_clusters, dtype=torch.float64, device=points.device)
        self._since_reassignment = 0
        own = torch.arange(self.n_clusters, device=points.device)
        draw = _batches(n, points.sample_weight, self._batch_size, random_state)
        stop = _EarlyStop(self, n)
        n_steps = self.max_iter * n // self._batch_size
        for step in range(1, n_steps + 1):
            batch = points.select(arrays.as_tensor(draw()))
            moved, seen, inertia = self._step(batch, None, centroids, seen, random_state, points.row_grid)
            shift = float(ops.inertia(moved, centroids, own)) if self._tol > 0 else math.inf
            centroids = moved
            if stop(step, n_steps, inertia / self._batch_size, shift):
                break
        self.cluster_centers_ = points.answer(centroids)
        self._n_features_out = self.n_clusters
        self._counts = points.answer(seen)
        self.n_steps_ = step
        self.n_iter_ = math.ceil(step * self._batch_size / n)
        if self.compute_labels:
            self._label(points, centroids)
        else:
            total = float(n if points.sample_weight is None else ops.exact_sum(points.sample_weight))
            self.inertia_ = stop.mean_inertia * total
            self.__dict__.pop("labels_", None)  # those of an earlier fit are of other rows
        return self

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> MiniBatchKMeans:
        """Take one step with X as the batch, after choosing a start from it if there is none yet.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            Later batches are converted to the dtype of the first.
        y : Ignored
        sample_weight : array of shape (n_samples,), optional

        Returns
        -------
        self

        Raises
        ------
        ValueError
            As `fit`.
        """
        first = not hasattr(self, "cluster_centers_")
        points = open_points(self, X, reset=first, sample_weight=sample_weight)
        if not hasattr(self, "_random_state"):
            self._random_state = check_random_state(self.random_state)
        if first:
            self._check_parameters(points)
            rows = random_subset(points, self._init_size, self._random_state)
            centroids = self._start(rows, self._random_state, init=self.init, n_clusters=self.n_clusters)
            seen = torch.zeros(self.n_clusters, dtype=torch.float64, device=points.device)
            self._since_reassignment = 0
            self.n_steps_ = 0
        else:
            centroids = arrays.as_tensor(self.cluster_centers_).to(points.device)
            seen = arrays.as_tensor(self._counts).to(points.device)
        batch = points.select(torch.arange(points.n_samples, device="cpu")).to(centroids.dtype)
        centroids, seen, _ = self._step(batch, points.sample_weight, centroids, seen, self._random_state)
        self.cluster_centers_ = points.answer(centroids)
        self._n_features_out = self.n_clusters
        self._counts = points.answer(seen)
        self.n_steps_ += 1
        if self.compute_labels:
            labels = ops.assign(batch, centroids)
            self.labels_ = points.answer(labels.int())
            self.inertia_ = float(ops.inertia(batch, centroids, labels, points.sample_weight))
        return self

    def _best_start(self, points: Points, random_state: np.random.RandomState) -> torch.Tensor:
        """Of `_n_init` starts, each from a subset of its own, the best on one common sample."""
        sample = points.subset(arrays.as_tensor(random_state.randint(0, points.n_samples, self._init_size)))
        best, lowest = None, math.inf
        for run in range(1, self._n_init + 1):
            rows = random_subset(points, self._init_size, random_state)
            start = self._start(rows, random_state, init=self.init, n_clusters=self.n_clusters)
            inertia = float(sample.inertia(start, sample.assign(start)))
            if self.verbose:
                print(f"Start {run}/{self._n_init}: inertia {inertia} on {sample.n_samples} rows")
            if best is None or inertia < lowest:
                best, lowest = start, inertia
        assert best is not None
        return best

    def _step(
        self,
        x: torch.Tensor | ops.Csr,
        weight: torch.Tensor | None,
        centroids: torch.Tensor,
        seen: torch.Tensor,
        random_state: np.random.RandomState,
        grid: ops.Grid | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor, float]:
        """New centroids, the weight that they have seen, and the inertia of the batch before the step."""
        # Always while a centroid has seen nothing, else every 10 n_clusters rows.
        self._since_reassignment += self._batch_size
        reassign = bool((seen == 0).any()) or self._since_reassignment >= 10 * self.n_clusters
        if reassign:
            self._since_reassignment = 0
        centroids, seen, inertia = ops.minibatch_step(x, centroids, seen, weight, grid)
        if reassign and self.reassignment_ratio > 0:
            centroids, seen = self._reassign(x, centroids, seen, random_state)
        return centroids, seen, float(inertia)

    def _reassign(
        self,
        x: torch.Tensor | ops.Csr,
        centroids: torch.Tensor,
        seen: torch.Tensor,
        random_state: np.random.RandomState,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Move the centroids that have seen little to random rows of the batch: at most half as many as its rows."""
        weight = seen.cpu().numpy()
        light = weight < self.reassignment_ratio * weight.max()
        light[weight.argmax()] = False  # a ratio above 1 leaves one to take the new weight from
        n = x.shape[0]
        if light.sum() > 0.5 * n:
            light[np.argsort(weight, kind="stable")[n // 2 :]] = False
        if not light.any():
            return centroids, seen
        which = torch.as_tensor(np.flatnonzero(light), device=centroids.device)
        if self.verbose:
            print(f"{len(which)} centroids move to random rows")
        rows = torch.as_tensor(random_state.choice(n, size=len(which), replace=False), device=centroids.device)
        chosen = x[rows].dense() if isinstance(x, ops.Csr) else x[rows]
        # Not 0, or the next step would move them again.
        return centroids.index_copy(0, which, chosen), seen.index_fill(0, which, float(weight[~light].min()))

    def _label(self, points: Points, centroids: torch.Tensor) -> None:
        labels = points.assign(centroids)
        self.labels_ = points.answer(labels.int())
        self.inertia_ = float(points.inertia(centroids, labels))


class _EarlyStop:
    """Whether a run has converged: by the step of the centroids, or by the smoothed inertia of the batches.

    Attributes
    ----------
    mean_inertia : float
        Per row: that of the second batch, then smoothed exponentially (that of the first if there is no other).
    """

    def __init__(self, estimator: MiniBatchKMeans, n_samples: int) -> None:
        self.tol = estimator._tol
        self.patience = estimator.max_no_improvement
        self.verbose = estimator.verbose
        self.rate = min(1.0, 2.0 * estimator._batch_size / (n_samples + 1))
        self.mean_inertia = 0.0
        self.lowest = math.inf
        self.waited = 0

    def __call__(self, step: int, n_steps: int, inertia: float, shift: float) -> bool:
        """Take note of step number `step` (from 1) of `n_steps`; `inertia` is the batch's per row."""
        # The first batch still shows the start.
        self.mean_inertia = inertia if step <= 2 else self.mean_inertia * (1 - self.rate) + inertia * self.rate
        if self.verbose:
            print(f"Step {step}/{n_steps}: inertia per row {inertia}, smoothed {self.mean_inertia}")
        if step == 1:
            return False
        reason = None
        if shift <= self.tol:
            reason = "small centers change"
        elif self.mean_inertia < self.lowest:
            self.lowest, self.waited = self.mean_inertia, 0
        else:
            self.waited += 1
        if reason is None and self.patience is not None and self.waited >= self.patience:
            reason = "lack of improvement in inertia"
        if self.verbose and reason is not None:
            print(f"Converged ({reason}) at step {step}/{n_steps}")
        return reason is not None


def _batches(n: int, weight: torch.Tensor | None, size: int, random_state: np.random.RandomState) -> Any:
    """A function that draws what `random_state.choice(n, size, p=weight / weight.sum())` would, in O(size log n)."""
    share = np.ones(n) if weight is None else weight.cpu().numpy()
    edges = np.zeros(n + 1)
    np.cumsum(share / share.sum(), out=edges[1:])
    edges /= edges[-1]

    def draw() -> np.ndarray:
        at = random_state.random_sample(size)
        if weight is not None:
            return edges[1:].searchsorted(at, side="right")
        # Edges of equal shares are multiples of 1 / n up to rounding, which few draws fall into.
        rows = np.minimum((at * n).astype(np.intp), n - 1)
        off = np.flatnonzero((at < edges[rows]) | (at >= edges[rows + 1]))
        rows[off] = edges[1:].searchsorted(at[off], side="right")
        return rows

    return draw
