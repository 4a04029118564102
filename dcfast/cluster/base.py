"""What the k-means estimators share: parameters, starts, predict, transform, score and pickling."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

import dcfast
from dcfast.cluster import arrays
from dcfast.cluster import init as starts
from dcfast.cluster.inputs import open_points
from dcfast.cluster.points import InMemory, Points
from dcfast.cluster.sphere import unit

P = ParamSpec("P")
R = TypeVar("R")


def unfitted_on_error(fit: Callable[P, R]) -> Callable[P, R]:
    """A `fit` that fails or is interrupted leaves nothing of a model: neither half of this one nor the one before."""

    @functools.wraps(fit)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fit(*args, **kwargs)
        except BaseException:
            fitted = vars(args[0])
            for name in [name for name in fitted if name.endswith("_") and not name.startswith("__")]:
                del fitted[name]
            raise

    return wrapper


class BaseKMeans(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):
    """The estimators of this package that fit `cluster_centers_`.

    A subclass has the parameters below and `fit`, and sets `cluster_centers_`, `labels_` and `_n_features_out`.
    """

    _parameter_constraints: dict = {
        "n_clusters": [Interval(Integral, 1, None, closed="left")],
        "init": [StrOptions({"k-means++", "random"}), callable, "array-like", torch.Tensor],
        "n_init": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }
    # The starts that n_init='auto' means where they are random or come from a callable.
    _auto_starts = 10

    n_clusters: int
    init: Any
    n_init: Any
    tol: float
    cluster_centers_: Any
    labels_: Any

    # Bytes of rows that are converted or read at once; None is the default of `open_points`.
    max_memory: int | str | None = None
    # Whether rows are divided by their norms.
    spherical: bool = False
    # What works on the rows, if not the device that they are on.
    device: torch.device | str | None = None
    # scikit-learn's predicts by so many; saved beside the centroids by code written for it, and read by none of ours.
    _n_threads = 1

    def _check_parameters(self, points: Points) -> None:
        """Set `_n_init`, the number of starts."""
        if points.total < self.n_clusters:
            raise ValueError(f"n_samples={points.total} should be >= n_clusters={self.n_clusters}.")
        self._n_init = self._number_of_starts()

    def _number_of_starts(self) -> int:
        """What `n_init` means."""
        given = not isinstance(self.init, str) and not callable(self.init)
        plusplus = isinstance(self.init, str) and self.init == "k-means++"
        if self.n_init != "auto":
            n_init = self.n_init
        else:
            n_init = 1 if given or plusplus else self._auto_starts
        if given and n_init != 1:
            warnings.warn(
                f"Explicit initial center position passed: performing only one init in {type(self).__name__} "
                f"instead of n_init={n_init}.",
                RuntimeWarning,
                stacklevel=6,
            )
            return 1
        return n_init

    def _start(
        self,
        points: Points,
        random_state: np.random.RandomState,
        *,
        init: Any,
        n_clusters: int,
    ) -> torch.Tensor:
        """Initial centroids of shape (n_clusters, d).

        A callable is given the rows in the kind of array that the caller gave, or where they come from if that is more
        than an array (a sparse matrix, a memory map, a function of chunks). Of several ranks the first one's array
        counts.
        """
        if isinstance(init, str):
            if init == "random":
                return starts.random_rows(points, n_clusters, random_state)
            return starts.kmeans_plusplus(points, n_clusters, random_state)[0]
        if callable(init):
            if points.ranks.size > 1:
                raise ValueError("init is callable, which sees the rows of one rank alone: give an array or a name")
            given = points.answer(points.x) if isinstance(points, InMemory) and points.source is None else points.source
            init = init(given, n_clusters, random_state=random_state)
        with points.ranks.together():
            start = arrays.as_numbers(init, "init")
            mismatch = f"The shape of the initial centers {tuple(start.shape)} does not match the number of"
            if start.dim() != 2 or start.shape[0] != n_clusters:
                raise ValueError(f"{mismatch} clusters {n_clusters}.")
            if start.shape[1] != points.n_features:
                raise ValueError(f"{mismatch} features of the data {points.n_features}.")
            start = start.to(points.device, points.dtype, copy=True)
            arrays.check_finite(start, "init")
            start = unit(start) if self.spherical else start
        return points.ranks.first(start)

    def _init_centroids(
        self,
        X: Any,
        x_squared_norms: Any,
        init: Any,
        random_state: np.random.RandomState,
        sample_weight: Any,
        init_size: int | None = None,
        n_centroids: int | None = None,
    ) -> Any:
        """`_start` under the name and with the arguments of scikit-learn, for code written against it.

        The norms are not needed: distances are sums of squared differences.
        """
        points = open_points(BaseEstimator(), X, reset=True, sample_weight=sample_weight)
        k = self.n_clusters if n_centroids is None else n_centroids
        points = random_subset(points, init_size, random_state)
        return points.answer(self._start(points, random_state, init=init, n_clusters=k))

    def _compare(self, X: Any, sample_weight: Any = None) -> tuple[Points, torch.Tensor]:
        """X and the centroids in one dtype (the wider) on the device of X."""
        check_is_fitted(self, "cluster_centers_")
        centroids = arrays.as_tensor(self.cluster_centers_)
        points = open_points(
            self,
            X,
            reset=False,
            sample_weight=sample_weight,
            at_least=centroids.dtype,
            max_memory=self.max_memory,
            spherical=self.spherical,
            device=self.device,
        )
        if centroids.shape[1] != points.n_features:
            raise ValueError(f"X has {points.n_features} features, but cluster_centers_ has {centroids.shape[1]}")
        return points, centroids.to(points.device, points.dtype)

    def predict(self, X: Any) -> Any:
        """Index of the nearest centroid of every row of X.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples,), int32
        """
        points, centroids = self._compare(X)
        return points.answer(points.assign(centroids).int())

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """`fit`, then `labels_`."""
        return self.fit(X, sample_weight=sample_weight).labels_

    def transform(self, X: Any) -> Any:
        """Distances from every row of X to every centroid.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_clusters)
            Of the wider of the dtypes of X and of the centroids.
        """
        points, centroids = self._compare(X)
        wide = points.dtype if points.dtype in (torch.float32, torch.float64) else torch.float32
        centroids = centroids.to(wide)
        out = torch.empty(points.n_samples, len(centroids), dtype=points.dtype, device=points.device)
        for at, rows in points.blocks():
            # By differences: a row that is a centroid has the distance 0, which |x|^2 + |c|^2 - 2 x.c does not give.
            out[at] = torch.cdist(rows.to(wide), centroids, compute_mode="donot_use_mm_for_euclid_dist")
        return points.answer(out)

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """`fit`, then `transform`."""
        return self.fit(X, sample_weight=sample_weight).transform(X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """The negative inertia of X, every row at its nearest centroid."""
        points, centroids = self._compare(X, sample_weight)
        return -float(points.inertia(centroids, points.assign(centroids)))

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_dcfast_version": dcfast.__version__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        pickled = state.pop("_dcfast_version", "unknown")
        if pickled != dcfast.__version__:
            warnings.warn(
                f"{type(self).__name__} was pickled by dcfast {pickled} and is read by {dcfast.__version__}: "
                "attributes may have changed; fit it again if in doubt",
                UserWarning,
                stacklevel=2,
            )
        super().__setstate__(state)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def random_subset(points: Points, size: int | None, random_state: np.random.RandomState) -> Points:
    """`size` rows drawn with replacement, and their weights; all rows where there are no more."""
    if size is None or size >= points.n_samples:
        return points
    return points.subset(arrays.as_tensor(random_state.randint(0, points.n_samples, size)))
