"""KMeans: scikit-learn's estimator over the exact ops."""

from __future__ import annotations

import copy
import warnings
from numbers import Integral, Real
from typing import Any

import torch
from sklearn.base import _fit_context
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from dcfast.cluster import batched
from dcfast.cluster.base import BaseKMeans, unfitted_on_error
from dcfast.cluster.inputs import open_points
from dcfast.cluster.lloyd import Callback, Lloyd, lloyd
from dcfast.cluster.points import Points
from dcfast.cluster.ranks import ProcessGroup, Ranks


class KMeans(BaseKMeans):
    """Exact, reproducible k-means with scikit-learn's interface.

    Labels are the nearest centroids by squared distances in double, the lower index first where those are equal, and
    centroids exact sums, rounded and divided (see `dcfast.ops.assign` and `dcfast.ops.means`), so that a run is a pure
    function of the data, the initial centroids and the seed: the same bits for any number of threads, any instruction
    set and any backend. Sums are exact where no element of float64 data (times its weight) but zeros is smaller than
    2^-480 or larger than 2^480 in magnitude; other data is refused.

    Parameters
    ----------
    n_clusters : int, default=8
    init : {'k-means++', 'random'}, callable or array-like of shape (n_clusters, n_features), default='k-means++'
        A callable takes (X, n_clusters, random_state) and returns such an array; X is the data itself, not centred.
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
    max_memory : int or str, optional
        Bytes, or such as '512MiB', of rows that are held beyond X itself, of which 32 MiB are the default. Rows that
        must be converted, read from disk or made dense are, block by block in every pass, or once if all of them fit.
        It changes no bit of the result.
    device : str or torch.device, optional
        What works on the rows, if not the device that they are on: 'cuda' for rows in the host's memory or on its
        disk. They are copied to it once if they fit into `max_memory`, by default half of what is free there, and
        otherwise in every pass, block by block through pinned memory, the next block while this one is worked on.
    process_group : torch.distributed.ProcessGroup or bool, optional
        Processes that fit one model together, such as torchrun starts, each to rows of its own (True: the default
        group). `fit` is then collective: every process calls it, with equal parameters, and finds the same centroids,
        the bits of which depend neither on how many there are nor on whose the rows are, but on their order (those of
        rank 0 come first); an error on one is raised on all. `labels_` are those of the own rows. `random_state` and
        an array `init` count on rank 0. `init` is no callable then. A group, unlike
        True, can be neither cloned nor pickled.
    spherical : bool, default=False
        Cluster by cosine (Dhillon & Modha 2001): rows are divided by their norms as they are read, also by `predict`,
        `transform` and `score`, and so are the centroids after every update, a cluster's sum giving the direction. All
        else is as before, so that `inertia_` is the sum of |x / |x| - c|^2 = 2 (1 - cos(x, c)). Rows of zeros stay.
    early_stop_threshold : float, optional
        A run stops, too, when the inertia before an update differs from that of the iteration before by at most this
        share of it: faiss's rule, for which 0 waits for it to stand still. It costs O(n_samples n_features) operations
        per iteration.

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
    X may be a numpy array (or anything scikit-learn accepts), a torch tensor or any array with `__dlpack__`, and is
    used where it is, without a copy; arrays are answered in the kind and on the device of X. It may also be a scipy
    sparse matrix, of which the non-zeros alone are read where they are few (else, and for a `device`, one block at a
    time is made dense); and, larger than memory, a numpy memory map, the path of a `.npy` file, or a function without
    arguments that returns an iterator of 2-D arrays, called once for every pass. All of these give the same bits.

    Each iteration costs O(n_samples n_features n_clusters) operations; memory beyond the input is
    O(n_samples + n_clusters n_features). Of a sparse matrix an iteration costs O((non-zeros + n_features) n_clusters),
    and `inertia_`, and `tol` above 0, O(n_samples n_features) once; values that are not float32 or float64, rows to be
    divided by their norms, and rows out of order are copied, as sparse as they are.

    Many problems at once, in float32 or float64: X of shape (B, n_samples, n_features), or (total, n_features) and
    offsets. Then cluster_centers_ is (B, n_clusters, n_features), labels_ (B, n_samples) or (total,), inertia_ and
    n_iter_ (B,); predict, transform and score take X alike, and `init` may be (B, n_clusters, n_features). With
    ``seeds = check_random_state(random_state).randint(np.iinfo(np.int32).max, size=B)``, problem b gets the bits of
    ``KMeans(random_state=seeds[b])`` fitted to it alone.

    Examples
    --------
    >>> import numpy as np
    >>> from dcfast import KMeans
    >>> X = np.array([[1.0, 2.0], [1.0, 4.0], [1.0, 0.0], [10.0, 2.0], [10.0, 4.0], [10.0, 0.0]])
    >>> KMeans(n_clusters=2, random_state=0).fit(X).inertia_
    16.0
    """

    _parameter_constraints: dict = {
        **BaseKMeans._parameter_constraints,
        "copy_x": ["boolean"],
        "algorithm": [StrOptions({"lloyd", "elkan"})],
        "empty": [StrOptions({"farthest", "split", "keep"})],
        "callback": [callable, None],
        "spherical": ["boolean"],
        "early_stop_threshold": [Interval(Real, 0, None, closed="left"), None],
        "process_group": ["boolean", ProcessGroup, None],
        "max_memory": [Interval(Integral, 1, None, closed="left"), str, None],
        "device": [str, torch.device, None],
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
        max_memory: int | str | None = None,
        device: torch.device | str | None = None,
        process_group: Any = None,
        spherical: bool = False,
        early_stop_threshold: float | None = None,
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
        self.max_memory = max_memory
        self.device = device
        self.process_group = process_group
        self.spherical = spherical
        self.early_stop_threshold = early_stop_threshold

    @_fit_context(prefer_skip_nested_validation=True)
    @unfitted_on_error
    def fit(self, X: Any, y: Any = None, sample_weight: Any = None, offsets: Any = None) -> KMeans:
        """Cluster the rows of X, or of each of B problems.

        Parameters
        ----------
        X : array, tensor, sparse matrix, memory map, path or callable of shape (n_samples, n_features)
            float32, float64, and of tensors float16 or bfloat16; anything else becomes float64.
        y : Ignored
        sample_weight : array of shape (n_samples,), optional
        offsets : array of shape (B + 1,) of int, optional
            Problem b has the rows offsets[b] to offsets[b + 1]. Problems of one size may also come as X of shape
            (B, n_samples, n_features), sample_weight of shape (B, n_samples). See the notes of the class.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X is not finite, leaves the range above or has fewer rows than n_clusters, or if weights or initial
            centroids do not fit. After an error or an interrupt the estimator is not fitted, even if it was before.

        Warns
        -----
        ConvergenceWarning
            If fewer than n_clusters distinct clusters were found.
        """
        if batched.is_batch(X, offsets):
            batched.fit(self, X, offsets, sample_weight)
            return self
        points = self._open(X, sample_weight)
        self._check_parameters(points)
        if self.algorithm == "elkan" and self.n_clusters == 1:
            warnings.warn(
                "algorithm='elkan' doesn't make sense for a single cluster: there is nothing to bound.",
                RuntimeWarning,
                stacklevel=4,
            )
        best = self._best_run(points)
        sizes = points.ranks.sum(torch.bincount(best.labels, minlength=self.n_clusters))
        if (found := int(torch.count_nonzero(sizes))) < self.n_clusters:
            warnings.warn(
                f"Number of distinct clusters ({found}) found smaller than n_clusters ({self.n_clusters}). "
                "Possibly due to duplicate points in X.",
                ConvergenceWarning,
                stacklevel=4,
            )
        self.cluster_centers_ = points.answer(best.centroids)
        self.labels_ = points.answer(best.labels.int())
        self.inertia_ = float(best.inertia)
        self.n_iter_ = best.n_iter
        self._n_features_out = self.n_clusters
        return self

    def _open(self, X: Any, sample_weight: Any) -> Points:
        """The rows of this process, which knows of the others'."""
        ranks = Ranks(self.process_group)
        names = ("n_clusters", "n_init", "max_iter", "tol", "empty", "spherical", "early_stop_threshold", "verbose")
        kind = self.init if isinstance(self.init, str) else type(self.init).__name__
        ranks.agree("parameters", {"init": kind} | {name: getattr(self, name) for name in names})
        return open_points(
            self,
            X,
            reset=True,
            sample_weight=sample_weight,
            max_memory=self.max_memory,
            spherical=self.spherical,
            ranks=ranks,
            device=self.device,
        )

    def _best_run(self, points: Points) -> Lloyd:
        """Of `_n_init` runs the one of lowest inertia."""
        random_state = check_random_state(self.random_state)
        # Splitting has a key of its own; the caller's stream goes to the starts alone, as in scikit-learn.
        seed = 0
        if self.empty == "split":
            seed = points.ranks.from_first(lambda: int(copy.deepcopy(random_state).random_sample() * 2.0**53))
        best: Lloyd | None = None
        for run in range(self._n_init):
            start = self._start(points, random_state, init=self.init, n_clusters=self.n_clusters)
            if self.verbose and points.ranks.rank == 0:
                print("Initialization complete")
            result = lloyd(
                points,
                start,
                max_iter=self.max_iter,
                tol=self.tol,
                relative_tol=True,
                empty=self.empty,
                seed=int(seed) + run,
                spherical=self.spherical,
                early_stop_threshold=self.early_stop_threshold,
                callback=self.callback,
                verbose=bool(self.verbose),
            )
            if best is None or float(result.inertia) < float(best.inertia):
                best = result
        assert best is not None
        return best

    def predict(self, X: Any, offsets: Any = None) -> Any:
        """Index of the nearest centroid of every row of X.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), or (B, n_samples, n_features) after a fit to B problems
        offsets : array of shape (B + 1,) of int, optional
            As for `fit`.

        Returns
        -------
        array of shape (n_samples,), or (B, n_samples), int32
        """
        return batched.predict(self, X, offsets) if self._is_batched(offsets) else super().predict(X)

    def transform(self, X: Any, offsets: Any = None) -> Any:
        """Distances from every row of X to every centroid (of its problem).

        Parameters
        ----------
        X, offsets
            As for `predict`.

        Returns
        -------
        array of shape (n_samples, n_clusters), or (B, n_samples, n_clusters)
            Of the wider of the dtypes of X and of the centroids.
        """
        return batched.transform(self, X, offsets) if self._is_batched(offsets) else super().transform(X)

    def fit_predict(self, X: Any, y: Any = None, sample_weight: Any = None, offsets: Any = None) -> Any:
        """`fit`, then `labels_`."""
        if offsets is None:  # of which the `fit` of a subclass may know nothing
            return super().fit_predict(X, sample_weight=sample_weight)
        return self.fit(X, sample_weight=sample_weight, offsets=offsets).labels_

    def fit_transform(self, X: Any, y: Any = None, sample_weight: Any = None, offsets: Any = None) -> Any:
        """`fit`, then `transform`."""
        if offsets is None:
            return super().fit_transform(X, sample_weight=sample_weight)
        return self.fit(X, sample_weight=sample_weight, offsets=offsets).transform(X, offsets)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None, offsets: Any = None) -> Any:
        """The negative inertia of X, every row at its nearest centroid: a float, or (B,) after a fit to B problems."""
        if self._is_batched(offsets):
            return batched.score(self, X, offsets, sample_weight)
        return super().score(X, sample_weight=sample_weight)

    def _is_batched(self, offsets: Any) -> bool:
        is_batched = len(getattr(getattr(self, "cluster_centers_", None), "shape", ())) == 3
        if offsets is not None and not is_batched:
            check_is_fitted(self, "cluster_centers_")
            raise ValueError("offsets are given, but this KMeans was fitted to one problem: fit it with offsets too")
        return is_batched
