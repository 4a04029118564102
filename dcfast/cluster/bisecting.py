"""BisectingKMeans: clusters by repeated 2-means."""

from __future__ import annotations

from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.cluster.base import BaseKMeans, unfitted_on_error
from dcfast.cluster.init import draw_numbers
from dcfast.cluster.inputs import open_points
from dcfast.cluster.lloyd import lloyd
from dcfast.cluster.points import InMemory, Points


class _Leaf(NamedTuple):
    """A cluster that was not split: its row numbers, how many of them weigh, its claim to be split next, its place."""

    rows: torch.Tensor
    size: int
    score: float
    place: tuple[int, int] | None


class BisectingKMeans(BaseKMeans):
    """Split the data in two by k-means, then a cluster of the two in two, and so on, with scikit-learn's interface.

    Each split is an exact 2-means (see `KMeans`), so that a run is a pure function of the data, the parameters and
    the seed, on any number of threads and any backend.

    Parameters
    ----------
    n_clusters : int, default=8
    init : {'k-means++', 'random'} or callable, default='random'
        Where each 2-means starts. A callable takes (X, 2, random_state), X being the rows of the cluster to split,
        and returns an array of shape (2, n_features).
    n_init : int, default=1
        Starts of each split, of which the one of lowest inertia is kept.
    random_state : int, RandomState instance or None, default=None
        Consumed as scikit-learn consumes it.
    max_iter : int, default=300
        Of each 2-means.
    verbose : int, default=0
    tol : float, default=1e-4
        A 2-means stops when the squared Frobenius norm of the step of its centroids is at most this (not relative
        to the variance, as in scikit-learn), or when its labels stand still.
    copy_x : bool, default=True
        Taken so that code written for scikit-learn runs: the data is never modified, whatever its value.
    algorithm : {'lloyd', 'elkan'}, default='lloyd'
        Taken for the same reason: both name the one engine, whose labels are exact.
    bisecting_strategy : {'biggest_inertia', 'largest_cluster'}, default='biggest_inertia'
        Split the cluster of largest inertia, or of most rows; the leftmost in the tree among equals.

    Attributes
    ----------
    cluster_centers_ : array of shape (n_clusters, n_features)
    labels_ : array of shape (n_samples,), int32
        Equal to ``predict(X)``: the leaf that is reached by going to the nearer of two centroids at every split,
        which need not be the leaf of the nearest centroid.
    inertia_ : float
        Weighted sum of squared distances to the own centroid, rounded once.
    n_features_in_ : int
    feature_names_in_ : array of shape (n_features_in_,)
        Where X has string column names.

    Notes
    -----
    Kinds of arrays are those of `KMeans`. Where the largest cluster is split in balance, all splits together cost
    O(n_samples n_features log(n_clusters)) operations per iteration.

    Examples
    --------
    >>> import numpy as np
    >>> from dcfast import BisectingKMeans
    >>> X = np.array([[1, 1], [10, 1], [3, 1], [10, 0], [2, 1], [10, 2], [10, 8], [10, 9], [10, 10]])
    >>> BisectingKMeans(3, random_state=0).fit(X).labels_
    array([0, 2, 0, 2, 0, 2, 1, 1, 1], dtype=int32)
    """

    _parameter_constraints: dict = {
        **BaseKMeans._parameter_constraints,
        "init": [StrOptions({"k-means++", "random"}), callable],
        "n_init": [Interval(Integral, 1, None, closed="left")],
        "copy_x": ["boolean"],
        "algorithm": [StrOptions({"lloyd", "elkan"})],
        "bisecting_strategy": [StrOptions({"biggest_inertia", "largest_cluster"})],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "random",
        n_init: int = 1,
        random_state: Any = None,
        max_iter: int = 300,
        verbose: int = 0,
        tol: float = 1e-4,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        bisecting_strategy: str = "biggest_inertia",
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.random_state = random_state
        self.max_iter = max_iter
        self.verbose = verbose
        self.tol = tol
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.bisecting_strategy = bisecting_strategy

    @_fit_context(prefer_skip_nested_validation=True)
    @unfitted_on_error
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> BisectingKMeans:
        """Cluster the rows of X.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            float32, float64, float16 or bfloat16; anything else becomes float64.
        y : Ignored
        sample_weight : array of shape (n_samples,), optional

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X is not finite or has fewer rows (of positive weight) than n_clusters, or if weights or the centroids
            of a callable `init` do not fit. After an error or an interrupt the estimator is not fitted, even if it was
            before.
        """
        points = open_points(self, X, reset=True, sample_weight=sample_weight)

        def n_positive(rows: torch.Tensor) -> int:
            # Without weight a row is no member of a cluster.
            weight = points.sample_weight
            return rows.shape[0] if weight is None else int(torch.count_nonzero(weight[rows]))

        everything = torch.arange(points.n_samples, device=points.device)
        n = n_positive(everything)
        if n < self.n_clusters:
            raise ValueError(f"n_samples={n} should be >= n_clusters={self.n_clusters}.")
        random_state = check_random_state(self.random_state)
        labels = torch.zeros(points.n_samples, dtype=torch.int64, device=points.device)
        # From left to right in the tree: a leaf that is split makes place for its two.
        leaves = [_Leaf(everything, n, 0.0, None)]
        # Split s sends a row to the nearer of pairs[s], and from there to the split children[s, nearer], or to the
        # leaf of label ~children[s, nearer].
        pairs = torch.empty(self.n_clusters - 1, 2, points.n_features, dtype=points.dtype, device=points.device)
        children = np.empty((self.n_clusters - 1, 2), dtype=np.int64)
        for split in range(self.n_clusters - 1):
            # A row alone cannot be split, and there are more rows than leaves.
            several = [i for i, leaf in enumerate(leaves) if leaf.size > 1]
            chosen = max(several, key=lambda i: leaves[i].score)
            leaf = leaves[chosen]
            if leaf.place is not None:
                children[leaf.place] = split
            found = self._bisect(points, leaf, random_state)
            pairs[split] = found.centroids
            sizes = found.sizes.tolist()
            scores = found.inertias.tolist() if self.bisecting_strategy == "biggest_inertia" else sizes
            leaves[chosen : chosen + 1] = [
                # Copies: a view of few rows would keep all of them.
                _Leaf(rows.clone(), n_positive(rows), scores[side], (split, side))
                for side, rows in enumerate(found.rows.split(sizes))
            ]
        for label, leaf in enumerate(leaves):
            labels[leaf.rows] = label
            if leaf.place is not None:
                children[leaf.place] = ~label
        centroids = torch.stack([points.mean() if leaf.place is None else pairs[leaf.place] for leaf in leaves])
        self.cluster_centers_ = points.answer(centroids)
        self.labels_ = points.answer(labels.int())
        self.inertia_ = float(points.inertia(centroids, labels))
        self._n_features_out = self.n_clusters
        self._pairs = points.answer(pairs)
        self._children = points.answer(torch.as_tensor(children, device=points.device))
        return self

    def _bisect(self, points: Points, leaf: _Leaf, random_state: np.random.RandomState) -> ops.Bisection:
        """The best of `n_init` runs of 2-means of a leaf."""
        best: ops.Bisection | None = None
        for _ in range(self.n_init):
            found = self._run(points, leaf, random_state)
            if best is None or float(found.inertia) < float(best.inertia):
                best = found
        assert best is not None
        if self.verbose:
            print(f"Split {len(leaf.rows)} rows: inertia {float(best.inertia)}")
        return best

    def _run(self, points: Points, leaf: _Leaf, random_state: np.random.RandomState) -> ops.Bisection:
        rows = leaf.rows
        if self.init == "random":
            weight = None if points.sample_weight is None else points.sample_weight[rows]
            start = points.take(rows[draw_numbers(random_state, len(rows), weight, 2)])
        else:
            start = self._start(points.subset(rows), random_state, init=self.init, n_clusters=2)
        if isinstance(points, InMemory) and points.is_small(2, n_samples=len(rows)) and not self.verbose:
            weight, grid = points.sample_weight, points.grid
            return ops.bisect(points.x, rows, start, weight, grid=grid, max_iter=self.max_iter, tol=self.tol)
        members = points if leaf.place is None else points.subset(rows)
        run = lloyd(members, start, max_iter=self.max_iter, tol=self.tol, verbose=bool(self.verbose))
        sides = run.labels == torch.arange(2, device=points.device)[:, None]
        distances = members.distances(run.centroids, run.labels, weighted=True)
        inertias = ops.exact_sum(torch.where(sides, distances, 0.0))
        order = torch.cat([rows[side] for side in sides])
        return ops.Bisection(run.centroids, order, sides.sum(1), run.inertia, inertias)

    def predict(self, X: Any) -> Any:
        """Label of the leaf that every row of X falls into.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples,), int32
            A row goes to the nearer of the two centroids of every split on its way.
        """
        points, _ = self._compare(X)
        return points.answer(self._labels(points).int())

    def _labels(self, points: Points) -> torch.Tensor:
        pairs = arrays.as_tensor(self._pairs).to(points.device, points.dtype)
        children = arrays.as_tensor(self._children).to(points.device)
        out = torch.empty(points.n_samples, dtype=torch.int64, device=points.device)
        for at, x in points.operands():
            place = torch.full((x.shape[0],), 0 if len(pairs) else ~0, dtype=torch.int64, device=points.device)
            for split, pair in enumerate(pairs):  # a split comes after the one that leads to it
                rows = torch.nonzero(place == split)[:, 0]
                place[rows] = children[split][ops.assign(x[rows], pair)]
            out[at] = ~place
        return out
