"""Kmeans: faiss's k-means object."""

from __future__ import annotations

import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from dcfast.cluster import arrays
from dcfast.faiss.clustering import Clustering
from dcfast.faiss.index import IndexFlatL2
from dcfast.faiss.inner_product import IndexFlatIP
from dcfast.faiss.parameters import (
    ClusteringIterationStats,
    ClusteringParameters,
    ProgressiveDimClusteringParameters,
)
from dcfast.faiss.pca import PCAMatrix
from dcfast.faiss.vectors import Vector, as_rows


class Kmeans:
    """faiss's k-means object: `train`, then `centroids`, `assign` and `index`.

    Parameters
    ----------
    d : int
        Dimension.
    k : int
        Number of clusters.
    gpu : bool or int, default=False
        Move the data to the current CUDA device for training. True, -1 and 1 mean the same: one device serves a run.
        Where torch sees none the CPU does, as in faiss, and a warning says so; `gpu` is False then. Tensors on a CUDA
        device are used there without it.
    progressive_dim_steps : int, optional
        Cluster in growing dimensions, in so many steps (`ProgressiveDimClusteringParameters`), without weights, initial
        centroids or spherical.
    **cp
        Fields of `ClusteringParameters`: niter, nredo, verbose, spherical, seed, max_points_per_centroid, ...

    Attributes
    ----------
    cp : ClusteringParameters
    index : IndexFlatL2, or IndexFlatIP if spherical
        Holds the centroids after `train`: ``index.search(x, 1)`` answers (D, I).
    gpu : bool or int
    centroids : numpy array of shape (k, d), float32
    obj : numpy array of float64
        The objective of every iteration; fewer than niter if it stood still.
    iteration_stats : list of dicts
        With the keys obj, time, time_search, imbalance_factor and nsplit: see `ClusteringIterationStats`.

    Raises
    ------
    AttributeError
        If a keyword is unknown.
    TypeError
        If the value of one is of another type.
    ValueError
        If `gpu` is a number of devices or of one: a run is served by the current one.

    Warns
    -----
    UserWarning
        If `gpu` is given and torch sees no CUDA device.

    See Also
    --------
    Clustering : What it computes, and its cost.

    Examples
    --------
    >>> import numpy as np
    >>> import dcfast.faiss as faiss
    >>> x = np.array([[0, 0], [0, 1], [9, 8], [9, 9]], dtype="float32")
    >>> kmeans = faiss.Kmeans(2, 2, min_points_per_centroid=1)
    >>> kmeans.train(x)
    np.float64(1.0)
    >>> D, I = kmeans.assign(x)
    >>> D
    array([0.25, 0.25, 0.25, 0.25], dtype=float32)
    """

    def __init__(
        self, d: int, k: int, gpu: bool | int | None = False, progressive_dim_steps: int | None = None, **cp: Any
    ) -> None:
        self.d = int(d)
        self.reset(k)
        gpu = gpu or False  # faiss takes None as well
        if gpu not in (False, True, -1):
            raise ValueError(f"gpu={gpu}: one device serves a run; use gpu=True")
        if gpu and not torch.cuda.is_available():
            warnings.warn(f"gpu={gpu}: torch sees no CUDA device here, so the CPU is used", stacklevel=2)
            gpu = False
        self.gpu = gpu
        self.cp = ClusteringParameters()
        if progressive_dim_steps is not None:
            self.cp = ProgressiveDimClusteringParameters(progressive_dim_steps=progressive_dim_steps)
        names = [field.name for field in fields(self.cp)]
        for name, value in cp.items():
            if name not in names:
                raise AttributeError(f"{type(self.cp).__name__} has no {name!r}: it has {', '.join(names)}")
            setattr(self.cp, name, value)
        self.set_index()

    def set_index(self) -> None:
        """Make `index` anew, for the metric that `cp.spherical` asks for."""
        self.index = IndexFlatIP(self.d) if self.cp.spherical else IndexFlatL2(self.d)

    def reset(self, k: int | None = None) -> None:
        """Forget the result, and change the number of clusters if `k` is given."""
        if k is not None:
            self.k = int(k)
        self.centroids: np.ndarray | None = None
        self.obj: np.ndarray | None = None
        self.iteration_stats: list[dict[str, Any]] | None = None

    def train(self, x: Any, weights: Any = None, init_centroids: Any = None) -> float:
        """Cluster the rows of `x`.

        Parameters
        ----------
        x : array of shape (n, d)
        weights : array of shape (n,), optional
        init_centroids : array of shape (m, d), optional
            The first m of the k initial centroids.

        Returns
        -------
        float
            The objective of the last iteration; 0 if there was none.

        Raises
        ------
        ValueError
            As `Clustering.train`.
        """
        rows = as_rows(x, self.d)
        if self.gpu:
            rows = rows.cuda()
        if isinstance(self.cp, ProgressiveDimClusteringParameters):
            stats, centroids = self._train_progressively(rows, weights, init_centroids)
        else:
            clustering = Clustering(self.d, self.k, self.cp)
            if init_centroids is not None:
                given = as_rows(init_centroids, self.d, "init_centroids")
                clustering.centroids = Vector(given.cpu().numpy().ravel())
            clustering.train(rows, self.index, weights)
            stats, centroids = clustering._stats, clustering.centroids._items.reshape(self.k, self.d)
        self.centroids = centroids
        self.obj = np.array([each.obj for each in stats])
        self.iteration_stats = [vars(each) for each in stats]
        return self.obj[-1] if self.obj.size else 0.0

    def _train_progressively(
        self, x: torch.Tensor, weights: Any, init_centroids: Any
    ) -> tuple[list[ClusteringIterationStats], np.ndarray]:
        """Liu, Lu and Shao 2015: cluster in few dimensions, and start from that in more."""
        cp = self.cp
        assert isinstance(cp, ProgressiveDimClusteringParameters)
        for name, given in (
            ("weights", weights),
            ("init_centroids", init_centroids),
            ("spherical", cp.spherical or None),
        ):
            if given is not None:
                raise ValueError(f"{name} cannot be combined with progressive_dim_steps: leave one of them out")
        if cp.progressive_dim_steps < 1:
            raise ValueError(f"progressive_dim_steps={cp.progressive_dim_steps}: expected at least 1")
        pca = PCAMatrix(self.d, self.d)
        if cp.apply_pca:
            if cp.verbose:
                print("Training PCA transform\nApply PCA")
            pca.train(x)
            x = pca.apply(x)
        stats: list[ClusteringIterationStats] = []
        centroids = np.zeros((self.k, 0), np.float32)
        for step in range(cp.progressive_dim_steps):
            d = int(self.d ** ((1 + step) / cp.progressive_dim_steps))
            if cp.verbose:
                print(f"Progressive dim step {step}: cluster in dimension {d}")
            clustering = Clustering(d, self.k, cp)
            if step:
                padded = np.pad(centroids, ((0, 0), (0, d - centroids.shape[1])))
                clustering.centroids = Vector(padded.ravel())
            clustering.train(x[:, :d], IndexFlatL2(d))
            stats += clustering._stats
            centroids = clustering.centroids._items.reshape(self.k, d)
        if cp.apply_pca:
            if cp.verbose:
                print("Revert PCA transform on centroids")
            centroids = pca.reverse_transform(centroids)
        self.index.reset()
        self.index.add(torch.as_tensor(centroids, device=x.device))
        return stats, centroids

    def assign(self, x: Any) -> tuple[Any, Any]:
        """Distances to the nearest centroids, and their indices.

        Parameters
        ----------
        x : array of shape (n, d)

        Returns
        -------
        D : array of shape (n,), float32
        I : array of shape (n,), int64
            Both as `IndexFlatL2.search` gives them.

        Raises
        ------
        RuntimeError
            If not trained.
        """
        if self.centroids is None:
            raise RuntimeError("the centroids are not trained: call train(x) before assign(x)")
        self.index.reset()
        self.index.add(self.centroids)
        distances, labels = self.index.search(as_rows(x, self.d), 1)
        answer = arrays.answer_like(x)
        return answer(distances[:, 0]), answer(labels[:, 0])
