"""Clusterers by name, and what their clusters come to."""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dcfast import ClusterHead, KMeans, ops

__all__ = ["KMEANS", "cluster_by", "find_clusterer", "inertia", "takes_number"]

KMEANS = "kmeans"
_SHORT = {KMEANS: "dcfast.KMeans", "head": "dcfast.ClusterHead", "pic": "dcfast.PIC"}


def find_clusterer(name: str, option: str = "clusterer") -> type:
    """Return the class of a clusterer.

    Parameters
    ----------
    name : str
        'kmeans', 'head' or 'pic' of dcfast's own; a class of `sklearn.cluster` ('AgglomerativeClustering'), or a dotted
        name of any class with ``fit`` and ``fit_predict`` ('sklearn.cluster.MiniBatchKMeans',
        'dcfast.BisectingKMeans').
    option : str
        What errors call it.

    Raises
    ------
    ValueError
        If there is no such class, it cannot be made from its defaults, or it does not cluster points.
    """
    given = f"{option}={name!r}"
    name = _SHORT.get(name, name)
    module, _, plain = name.rpartition(".")
    try:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ImportError("no dotted name")
        found = getattr(importlib.import_module(module or "sklearn.cluster"), plain, None)
    except ImportError as error:
        raise ValueError(f"{given}: {error}") from None
    short = ", ".join(map(repr, _SHORT))
    remedy = f"give {short}, a class of sklearn.cluster such as 'MiniBatchKMeans', or the dotted name of one"
    if not inspect.isclass(found) or not hasattr(found, "fit_predict"):
        raise ValueError(f"{given} is no class with fit_predict: {remedy}")
    try:
        made = _make(found, n_clusters=2, seed=0)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{given} cannot be made from its defaults ({error}): {remedy}") from None
    # Of the object, not of the class: some inherit a fit_predict only to refuse it.
    if not all(hasattr(made, method) for method in ("fit", "fit_predict")):
        raise ValueError(f"{given} does not cluster points by fit and fit_predict: {remedy}")
    return found


def takes_number(found: type) -> bool:
    """Tell whether a class of `find_clusterer` is told the number of clusters, or finds it itself."""
    return "n_clusters" in inspect.signature(found).parameters


def _make(found: type, n_clusters: int | None, seed: int, callback: Callable[..., None] | None = None) -> Any:
    """Make a clusterer with its own defaults, and these options where it takes them."""
    given = {"n_clusters": n_clusters, "random_state": seed} | ({} if callback is None else {"callback": callback})
    takes = inspect.signature(found).parameters
    return found(**{option: value for option, value in given.items() if option in takes})


def cluster_by(
    name: str,
    points: np.ndarray,
    n_clusters: int | None,
    seed: int,
    option: str = "clusterer",
    advance: Callable[[int], None] | None = None,
) -> tuple[np.ndarray, int | None, int, torch.nn.Linear | None]:
    """Cluster by the class of that name, with its own defaults.

    Parameters
    ----------
    name, option : str
        As for `find_clusterer`.
    points : ndarray of shape (N, d)
    n_clusters, seed : int
        Given as ``n_clusters`` and ``random_state`` where the class takes them; the former may be None for a class that
        finds the number itself.
    advance : callable, optional
        Called with 1 after each iteration of dcfast's `KMeans` and each epoch of its `ClusterHead`.

    Returns
    -------
    labels : ndarray of int, shape (N,)
        Negative for noise.
    iterations : int or None
        ``n_iter_`` where there is one.
    n_empty : int
        Clusters asked for that hold no point; 0 where the class finds their number itself.
    head : torch.nn.Linear or None
        ``head_`` where there is one: from points to logits of the labels.

    Raises
    ------
    ValueError
        As `find_clusterer`, and if it refuses the points or finds fewer than two clusters.
    """
    found = find_clusterer(name, option)
    callback: Callable[..., None] | None = None
    if advance is not None and issubclass(found, (KMeans, ClusterHead)):  # what others call a callback may be anything
        callback = functools.partial(_count, advance)
    clusterer = _make(found, n_clusters, seed, callback)
    try:
        labels = np.asarray(clusterer.fit_predict(points))
    except ValueError as error:
        raise ValueError(f"{option}={name!r} cannot cluster {len(points)} images: {error}") from error
    used = len(np.unique(labels[labels >= 0]))
    if used < 2:
        raise ValueError(
            f"{option}={name!r} found {used} cluster(s) in {len(points)} images and called {np.sum(labels < 0)} of "
            f"them noise: two clusters are needed, choose another {option}"
        )
    iterations = getattr(clusterer, "n_iter_", None)
    n_empty = n_clusters - used if n_clusters is not None and takes_number(found) else 0
    return labels, None if iterations is None else int(iterations), n_empty, getattr(clusterer, "head_", None)


def _count(advance: Callable[[int], None], *_: int) -> None:
    advance(1)


def inertia(points: Tensor, labels: np.ndarray) -> float:
    """Return the sum of the squared distances of points to the means of their clusters.

    Parameters
    ----------
    points : Tensor of shape (N, d)
    labels : ndarray of int, shape (N,)
        Negative for noise, which counts nowhere.
    """
    clusters = torch.from_numpy(labels).to(points.device, torch.int64)
    n_clusters = int(clusters.max()) + 1
    means = ops.means(ops.accumulate(points, clusters, n_clusters), points.new_zeros(n_clusters, points.shape[1]))
    return float(ops.inertia(points, means, clusters))
