"""PIC: power iteration clustering on the graph of nearest neighbours."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse.csgraph import connected_components
from sklearn.base import BaseEstimator, ClusterMixin, _fit_context
from sklearn.utils._param_validation import Interval

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.cluster.base import unfitted_on_error
from dcfast.cluster.neighbours import other_neighbours


class PIC(ClusterMixin, BaseEstimator):
    """Power iteration clustering: points follow their neighbours uphill, and those that end together are a cluster.

    The other clustering of DeepCluster (Caron et al. 2018, after Lin and Cohen 2010). It finds the number of clusters
    itself, and is meant for rows of unit length, such as `PCAWhiten` gives.

    Every point i has edges to its nearest neighbours j, of weight ``G_ij = exp(-|x_i - x_j|^2 / sigma^2)``. From
    ``v = 1 / n`` on, ``v <- alpha (G + G') v + (1 - alpha) / n``, divided by its sum, is iterated. Then a point follows
    its neighbour of the largest ``G_ij (v_j - v_i) > 0``. Where there is none it is the root of a cluster, which all
    points that lead to it belong to; clusters of one point join that of their nearest point in a larger one.

    Parameters
    ----------
    n_neighbors : int, default=5
        Edges of each point, less than the number of samples. A point is no neighbour of its own.
    sigma : float, default=0.2
        Distance over which weights fall to 1/e.
    alpha : float, default=0.001
        Share of the graph in v, between 0 and 1.
    max_iter : int, default=200
        Iterations, of which those that would change nothing are left out.

    Attributes
    ----------
    labels_ : array of shape (n_samples,), int32
    n_clusters_ : int
    embedding_ : array of shape (n_samples,), float64
        v, which has the sum 1: largest where many points lie close to one another.
    n_iter_ : int
        Iterations that were made.
    n_features_in_ : int
    feature_names_in_ : array of shape (n_features_in_,)
        Where X has string column names.

    Notes
    -----
    Neighbours are exact: O(n_samples^2 n_features) operations. An iteration takes O(n_samples n_neighbors), and memory
    is O(n_samples (n_features + n_neighbors)). A run is a function of the data and the parameters on one machine,
    whatever the number of threads.

    Equally far neighbours count by their index, and so do equal v: a point with no neighbour above it, but some level
    with it, follows the nearest of these if that has a lower index, so that copies of a point stay together.

    Examples
    --------
    >>> import numpy as np
    >>> from dcfast import PIC
    >>> X = np.array([[0.0, 1.0], [0.1, 1.0], [0.2, 1.0], [1.0, 0.0], [1.0, 0.1], [1.0, 0.2]])
    >>> PIC(n_neighbors=2).fit(X).labels_
    array([0, 0, 0, 1, 1, 1], dtype=int32)
    """

    _parameter_constraints: dict = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "sigma": [Interval(Real, 0, None, closed="neither")],
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, n_neighbors: int = 5, *, sigma: float = 0.2, alpha: float = 0.001, max_iter: int = 200) -> None:
        self.n_neighbors = n_neighbors
        self.sigma = sigma
        self.alpha = alpha
        self.max_iter = max_iter

    @_fit_context(prefer_skip_nested_validation=True)
    @unfitted_on_error
    def fit(self, X: Any, y: Any = None) -> PIC:
        """Cluster the rows of X.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)
            numpy, torch, cupy, or what has `__dlpack__`: float32, float64, float16 or bfloat16; anything else becomes
            float64.
        y : Ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X is not finite or has no more rows than n_neighbors.

        Warns
        -----
        UserWarning
            If most points are too far from all others, measured by sigma, for their weights to count.
        """
        x = arrays.as_points(self, X, reset=True)
        n = x.shape[0]
        if self.n_neighbors >= n:
            raise ValueError(
                f"n_neighbors={self.n_neighbors} must be less than n_samples={n}: lower it, or give more rows"
            )
        found = other_neighbours(x, int(self.n_neighbors))
        squares = torch.stack([ops.point_distances(x, x, label) for label in found.unbind(1)], 1).cpu().numpy()
        nearest = found.cpu().numpy()
        with np.errstate(over="ignore"):  # which means a weight of 0
            weight = np.exp(-squares / self.sigma / self.sigma)
        # What does not change a sum with 1 is no connection.
        weight[self.alpha * weight < np.finfo(np.float64).eps] = 0
        if (lone := np.count_nonzero(weight.max(1) == 0)) > n // 2:
            warnings.warn(
                f"sigma={self.sigma}: {lone} of {n} points are too far from their neighbours for a weight, at a median "
                f"distance of {np.sqrt(np.median(squares[:, 0])):.3g} from the nearest; scale rows to unit length, or "
                "raise sigma towards that",
                UserWarning,
                stacklevel=4,
            )
        v, self.n_iter_ = self._iterate(nearest, weight)
        labels = _clusters(_follow(nearest, weight, v))
        single = np.bincount(labels)[labels] == 1
        if 0 < np.count_nonzero(single) < n:
            alone, others = (torch.as_tensor(np.flatnonzero(which), device=x.device) for which in (single, ~single))
            labels[single] = labels[~single][ops.assign(x[alone], x[others]).cpu().numpy()]
        clusters, labels = np.unique(labels, return_inverse=True)
        answer = arrays.answer_like(X)
        self.labels_ = answer(torch.as_tensor(labels.astype(np.int32), device=x.device))
        self.n_clusters_ = len(clusters)
        self.embedding_ = answer(torch.as_tensor(v, device=x.device))
        return self

    def _iterate(self, nearest: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, int]:
        """Return v, and the iterations that it took."""
        n, k = nearest.shape
        graph = scipy.sparse.csr_array((weight.ravel(), nearest.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
        graph = self.alpha * (graph + graph.T)
        v = np.full(n, 1 / n)
        for iteration in range(self.max_iter):
            before, v = v, graph @ v + (1 - self.alpha) / n
            v /= v.sum()
            if np.array_equal(v, before):
                return v, iteration
        return v, self.max_iter


def _follow(nearest: np.ndarray, weight: np.ndarray, v: np.ndarray) -> np.ndarray:
    """The neighbour that every point follows, or the point: (n,)."""
    everyone = np.arange(len(v))
    rise = v[nearest] - v[:, None]
    gain = weight * rise
    level = (rise == 0) & (weight > 0) & (nearest < everyone[:, None])
    best = np.where(gain.max(1) > 0, gain.argmax(1), level.argmax(1))
    stays = (gain.max(1) <= 0) & ~level.any(1)
    return np.where(stays, everyone, nearest[everyone, best])


def _clusters(follow: np.ndarray) -> np.ndarray:
    """The number of the tree that every point is in."""
    n = len(follow)
    return connected_components(
        scipy.sparse.csr_array((np.ones(n), follow, np.arange(n + 1)), shape=(n, n)), directed=False
    )[1]
