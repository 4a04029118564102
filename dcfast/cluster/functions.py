"""k_means and kmeans_plusplus: scikit-learn's functions over the exact estimators."""

from __future__ import annotations

from numbers import Integral
from typing import Any

from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_params

from dcfast.cluster import arrays, init
from dcfast.cluster.inputs import open_points
from dcfast.cluster.kmeans import KMeans


@validate_params({"return_n_iter": ["boolean"]}, prefer_skip_nested_validation=False)
def k_means(
    X: Any,
    n_clusters: int,
    *,
    sample_weight: Any = None,
    init: Any = "k-means++",
    n_init: Any = "auto",
    max_iter: int = 300,
    verbose: int = False,
    tol: float = 1e-4,
    random_state: Any = None,
    copy_x: bool = True,
    algorithm: str = "lloyd",
    return_n_iter: bool = False,
) -> tuple:
    """Fit `KMeans` and return what it found.

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
    n_clusters : int
    sample_weight : array of shape (n_samples,), optional
    init, n_init, max_iter, verbose, tol, random_state, copy_x, algorithm
        As for `KMeans`.
    return_n_iter : bool, default=False

    Returns
    -------
    centroids : array of shape (n_clusters, n_features)
    labels : array of shape (n_samples,), int32
    inertia : float
    n_iter : int
        With `return_n_iter` only.

    Raises
    ------
    ValueError
        As `KMeans.fit`.
    """
    model = KMeans(
        n_clusters,
        init=init,
        n_init=n_init,
        max_iter=max_iter,
        verbose=verbose,
        tol=tol,
        random_state=random_state,
        copy_x=copy_x,
        algorithm=algorithm,
    ).fit(X, sample_weight=sample_weight)
    found = model.cluster_centers_, model.labels_, model.inertia_
    return (*found, model.n_iter_) if return_n_iter else found


@validate_params(
    {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "n_local_trials": [Interval(Integral, 1, None, closed="left"), None],
    },
    prefer_skip_nested_validation=True,
)
def kmeans_plusplus(
    X: Any,
    n_clusters: int,
    *,
    sample_weight: Any = None,
    x_squared_norms: Any = None,
    random_state: Any = None,
    n_local_trials: int | None = None,
) -> tuple[Any, Any]:
    """Choose `n_clusters` rows of X that lie far apart: greedy k-means++ (Arthur & Vassilvitskii 2007).

    Parameters
    ----------
    X : array of shape (n_samples, n_features)
    n_clusters : int
    sample_weight : array of shape (n_samples,), optional
        A row of weight 0 is not chosen while another is left at a distance from those chosen.
    x_squared_norms : array of shape (n_samples,), optional
        Taken so that code written for scikit-learn runs, and checked for its length: distances are sums of squared
        differences, exact where norms would cancel.
    random_state : int, RandomState instance or None, default=None
        For float64 data the rows are those that scikit-learn chooses, unless a draw falls within rounding of the
        boundary between two, or two candidates lower the potential by as much.
    n_local_trials : int, optional
        Candidates for each centroid, of which the one that lowers the potential most is taken:
        2 + floor(ln n_clusters) if not given.

    Returns
    -------
    centroids : array of shape (n_clusters, n_features)
    indices : array of shape (n_clusters,), int64

    Raises
    ------
    ValueError
        If X is not finite or has fewer rows than n_clusters, or if weights or norms do not fit it.

    Notes
    -----
    O(n_samples n_features n_clusters n_local_trials) operations.

    Examples
    --------
    >>> import numpy as np
    >>> from dcfast import kmeans_plusplus
    >>> X = np.array([[1, 2], [1, 4], [1, 0], [10, 2], [10, 4], [10, 0]])
    >>> kmeans_plusplus(X, 2, random_state=0)[1]
    array([3, 2])
    """
    points = open_points(BaseEstimator(), X, reset=True, sample_weight=sample_weight)
    n = points.n_samples
    if n < n_clusters:
        raise ValueError(f"n_samples={n} should be >= n_clusters={n_clusters}.")
    if x_squared_norms is not None:
        norms = arrays.as_numbers(x_squared_norms, "x_squared_norms")
        if norms.dim() == 0 or norms.shape[0] != n:
            raise ValueError(
                f"The length of x_squared_norms {tuple(norms.shape)} should be equal to the length of n_samples {n}."
            )
        arrays.check_finite(norms, "x_squared_norms")
    random_state = check_random_state(random_state)
    centroids, indices = init.kmeans_plusplus(points, n_clusters, random_state, n_local_trials)
    return points.answer(centroids), points.answer(indices)
