"""KMeans: scikit-learn's estimator over the exact ops."""

from __future__ import annotations

import copy
import warnings
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    ClusterMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from dcfast import ops
from dcfast.cluster import arrays, init
from dcfast.cluster.lloyd import Callback, Lloyd, lloyd


class KMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """Exact, reproducible k-means with scikit-learn's interface.

    Labels are the true nearest centroids and centroids the true means (see `dcfast.ops.assign` and
    `dcfast.ops.accumulate`), so that a run is a pure function of the data, the initial centroids and the seed:
    the same bits for any number of threads, any instruction set and any backend.

    Parameters
    ----------
    n_clusters : int, default=8
    init : {'k-means++', 'random'}, callable or array-like of shape (n_clusters, n_features), default='k-means++'
        A callable takes (X, n_clusters, random_state) and returns such an array.
    n_init : 'auto' or int, default='auto'
        Runs from different starts, of which the one of lowest inertia is kept. 'auto' is 1 for 'k-means++' and
        arrays, 10 for 'random' and callables.
    max_iter : int, default=300
    tol : float, default=1e-4
        Relative to the mean variance of the features: a run stops when the squared Frobenius norm of the
        centroids' step is at most tol times that variance, or when the labels stand still.
    verbose : int, default=0
        Print the inertia of every iteration.
    random_state : int, RandomState instance or None, default=None
    copy_x : bool, default=True
        Taken so that code written for scikit-learn runs: the data is never modified, whatever its value.
    algorithm : {'lloyd', 'elkan'}, default='lloyd'
        Taken for the same reason: both name the one engine, whose labels are exact.
    empty : {'farthest', 'split', 'keep'}, default='farthest'
        What becomes of an empty cluster: it takes the row farthest from its centroid (scikit-learn's rule), splits
        a larger cluster (faiss's and DeepCluster's rule), or keeps its centroid.
    callback : callable, optional
        Called with (iteration, n_moved) after every update of the centroids.

    Attributes
    ----------
    cluster_centers_ : array of shape (n_clusters, n_features)
    labels_ : array of shape (n_samples,), int32
        Equal to ``predict(X)``.
    inertia_ : float
        Weighted sum of squared distances to the own centroid, rounded once.
    n_iter_ : int
    n_features_in_ : int
    feature_names_in_ : array of shape (n_features_in_,)
        Where X has string column names.

    Notes
    -----
    X may be a numpy array (or anything scikit-learn accepts), a torch tensor or a cupy array, and is used where it
    is, without a copy; arrays are answered in the kind and on the device of X. Each iteration costs
    O(n_samples n_features n_clusters) operations; memory beyond the input is O(n_samples + n_clusters n_features).

    Examples
    --------
    >>> import numpy as np
    >>> from dcfast import KMeans
    >>> X = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 0.0], [10.0, 2.0], [10.0, 4.0], [10.0, 0.0]])
    >>> KMeans(n_clusters=2, random_state=0).fit(X).inertia_
    16.0
    """

    _parameter_constraints: dict = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"k-means++", "random"}), callable, "array-like", torch.Tensor],
        "n_init": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
        "copy_x": ["boolean"],
        "algorithm": [StrOptions({"lloyd", "elkan"})],
        "empty": [StrOptions({"farthest", "split", "keep"})],
        "callback": [callable, None],
    }

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        init: Any = "k-means++",
        n_init: Any = "auto",
        max_iter: int = 300,
        tol: float = 1e-4,
        verbose: int = 0,
        random_state: Any = None,
        copy_x: bool = True,
        algorithm: str = "lloyd",
        empty: str = "farthest",
        callback: Callback | None = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.verbose = verbose
        self.random_state = random_state
        self.copy_x = copy_x
        self.algorithm = algorithm
        self.empty = empty
        self.callback = callback

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KMeans:
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
            If X is not finite or has fewer rows than n_clusters, or if weights or initial centroids do not fit.

        Warns
        -----
        ConvergenceWarning
            If fewer than n_clusters distinct clusters were found.
        """
        x = arrays.as_points(self, X, reset=True)
        if x.shape[0] < self.n_clusters:
            raise ValueError(f"n_samples={x.shape[0]} should be >= n_clusters={self.n_clusters}.")
        weight = arrays.sample_weights(sample_weight, X, x)
        grid = ops.sum_grid(x, weight)
        random_state = check_random_state(self.random_state)
        # Splitting has a key of its own; the caller's stream goes to the starts alone, as in scikit-learn.
        seed = int(copy.deepcopy(random_state).randint(np.iinfo(np.int64).max, dtype=np.int64))
        tol = self.tol * _mean_variance(x) if self.tol > 0 else 0.0
        best: Lloyd | None = None
        for run in range(self._runs()):
            start = self._start(X, x, weight, random_state)
            if self.verbose:
                print("Initialization complete")
            result = lloyd(
                x,
                start,
                sample_weight=weight,
                max_iter=self.max_iter,
                tol=tol,
                empty=self.empty,
                seed=seed + run,
                grid=grid,
                callback=self.callback,
                verbose=bool(self.verbose),
            )
            if best is None or float(result.inertia) < float(best.inertia):
                best = result
        assert best is not None
        found = int(torch.unique(best.labels).numel())
        if found < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({found}) found smaller than n_clusters ({self.n_clusters}). "
                "Possibly due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=2,
            )
        answer = arrays.answer_like(X)
        self.cluster_centers_ = answer(best.centroids)
        self.labels_ = answer(best.labels.int())
        self.inertia_ = float(best.inertia)
        self.n_iter_ = best.n_iter
        self._n_features_out = self.n_clusters
        return self

    def _runs(self) -> int:
        if self.n_init != "auto":
            return self.n_init
        return 10 if callable(self.init) or (isinstance(self.init, str) and self.init == "random") else 1

    def _start(
        self, X: Any, x: torch.Tensor, weight: torch.Tensor | None, random_state: np.random.RandomState
    ) -> torch.Tensor:
        if isinstance(self.init, str):
            if self.init == "random":
                return init.random_rows(x, self.n_clusters, weight, random_state)
            return init.kmeans_plusplus(x, self.n_clusters, weight, random_state)[0]
        given = self.init(X, self.n_clusters, random_state=random_state) if callable(self.init) else self.init
        start = given if isinstance(given, torch.Tensor) else torch.as_tensor(np.asarray(given))
        start = start.detach().to(x.device, x.dtype)
        if start.shape != (self.n_clusters, x.shape[1]):
            raise ValueError(
                f"The shape of the initial centers {tuple(start.shape)} does not match the number of clusters "
                f"{self.n_clusters} and the number of features of the data {x.shape[1]}."
            )
        arrays.check_finite(start, "init")
        return start.clone()

    def _compare(self, X: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """X and the centroids as tensors of one dtype (the wider) on the device of X."""
        check_is_fitted(self)
        x = arrays.as_points(self, X, reset=False)
        centroids = self.cluster_centers_
        if not isinstance(centroids, torch.Tensor):
            centroids = (
                arrays.from_numpy(centroids) if isinstance(centroids, np.ndarray) else torch.as_tensor(centroids)
            )
        dtype = torch.promote_types(x.dtype, centroids.dtype)
        return x.to(dtype), centroids.to(x.device, dtype)

    def predict(self, X: Any) -> Any:
        """Index of the nearest centroid of every row of X: an int32 array of shape (n_samples,)."""
        return arrays.answer_like(X)(ops.assign(*self._compare(X)).int())

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """`fit`, then `labels_`."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def transform(self, X: Any) -> Any:
        """Distances from every row of X to every centroid: an array of shape (n_samples, n_clusters)."""
        x, centroids = self._compare(X)
        # By differences: a row that is a centroid has the distance 0, which |x|^2 + |c|^2 - 2 x.c does not give.
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        distances = torch.cdist(wide, centroids.to(wide.dtype), compute_mode="donot_use_mm_for_euclid_dist")
        return arrays.answer_like(X)(distances.to(x.dtype))

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """`fit`, then `transform`."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The negative inertia of X."""
        x, centroids = self._compare(X)
        weight = arrays.sample_weights(sample_weight, X, x)
        return -float(ops.inertia(x, centroids, ops.assign(x, centroids), weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _mean_variance(x: torch.Tensor) -> float:
    """The mean over the features of their variance, from exact sums: that of a single cluster."""
    labels = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    mean = ops.means(ops.accumulate(x, labels, 1, None), torch.zeros_like(x[:1]))
    return float(ops.inertia(x, mean, labels)) / x.numel()
