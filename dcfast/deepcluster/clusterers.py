"""Clusterers other than the published k-means, found by name."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np

__all__ = ["KMEANS", "cluster_by", "find_clusterer"]

KMEANS = "kmeans"


def find_clusterer(name: str) -> type:
    """Return the class of a clusterer.

    Parameters
    ----------
    name : str
        A class of `sklearn.cluster` ('AgglomerativeClustering'), or a dotted name of any class with ``fit`` and
        ``fit_predict`` ('sklearn.cluster.MiniBatchKMeans', 'dcfast.BisectingKMeans').

    Raises
    ------
    ValueError
        If there is no such class, it cannot be made from its defaults, or it does not cluster points.
    """
    module, _, plain = name.rpartition(".")
    try:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ImportError("no dotted name")
        found = getattr(importlib.import_module(module or "sklearn.cluster"), plain, None)
    except ImportError as error:
        raise ValueError(f"clusterer={name!r}: {error}") from None
    remedy = f"give {KMEANS!r}, a class of sklearn.cluster such as 'MiniBatchKMeans', or the dotted name of one"
    if not inspect.isclass(found) or not hasattr(found, "fit_predict"):
        raise ValueError(f"clusterer={name!r} is no class with fit_predict: {remedy}")
    try:
        made = _make(found, n_clusters=2, seed=0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"clusterer={name!r} cannot be made from its defaults ({error}): {remedy}") from None
    # Of the object, not of the class: some inherit a fit_predict only to refuse it.
    if not all(hasattr(made, method) for method in ("fit", "fit_predict")):
        raise ValueError(f"clusterer={name!r} does not cluster points by fit and fit_predict: {remedy}")
    return found


def _make(found: type, n_clusters: int, seed: int) -> Any:
    """Make a clusterer with its own defaults, and these options where it takes them."""
    given = {"n_clusters": n_clusters, "random_state": seed}
    takes = inspect.signature(found).parameters
    return found(**{option: value for option, value in given.items() if option in takes})


def cluster_by(name: str, points: np.ndarray, n_clusters: int, seed: int) -> tuple[np.ndarray, int | None, int]:
    """Cluster by the class of that name, with its own defaults.

    Parameters
    ----------
    name : str
        As for `find_clusterer`.
    points : ndarray of shape (N, d), float32
    n_clusters, seed : int
        Given as ``n_clusters`` and ``random_state`` where the class takes them.

    Returns
    -------
    labels : ndarray of int, shape (N,)
        Negative for noise.
    iterations : int or None
        ``n_iter_`` where there is one.
    n_empty : int
        Clusters asked for that hold no point; 0 where the class finds their number itself.
    """
    found = find_clusterer(name)
    clusterer = _make(found, n_clusters, seed)
    labels = np.asarray(clusterer.fit_predict(points))
    used = len(np.unique(labels[labels >= 0]))
    if used < 2:
        raise ValueError(
            f"clusterer={name!r} found {used} cluster(s) in {len(points)} images and called {np.sum(labels < 0)} of "
            "them noise: training needs two clusters, choose another clusterer"
        )
    iterations = getattr(clusterer, "n_iter_", None)
    asked = "n_clusters" in inspect.signature(found).parameters
    return labels, None if iterations is None else int(iterations), n_clusters - used if asked else 0
