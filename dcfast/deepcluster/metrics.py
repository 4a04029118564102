"""What a clustering is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from sklearn.metrics import normalized_mutual_info_score

__all__ = ["cluster_sizes", "moved_points", "nmi", "settled"]

# When clusterings have settled. k-means starts anew each time, so that NMI levels off below 1, with a scatter from
# start to start: less of a rise than a hundredth, three times in a row, is taken for none. A clustering that hardly
# moves a point (from a warm start) needs no such patience.
_PATIENCE = 3
_LEAST_RISE = 0.01
_LARGEST_MOVE = 0.01


def cluster_sizes(assignments: np.ndarray) -> np.ndarray:
    """Count the points of each cluster; negative labels are noise and counted nowhere."""
    return np.bincount(assignments[assignments >= 0])


def nmi(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the mutual information of two labellings over the geometric mean of their entropies.

    Parameters
    ----------
    first, second : ndarray of int, shape (N,)
        The labellings; points with a negative label in either are left out.

    Returns
    -------
    float in [0, 1], or None
        None if no point is left.
    """
    known = (first >= 0) & (second >= 0)
    if not known.any():
        return None
    return float(normalized_mutual_info_score(first[known], second[known], average_method="geometric"))


def moved_points(previous: np.ndarray, current: np.ndarray) -> int:
    """Count the points that changed company.

    Every k-means starts anew, so cluster numbers mean nothing from one clustering to the next. Each current cluster is
    taken to continue the previous cluster that gives most of its points; the points it has from elsewhere moved.

    Parameters
    ----------
    previous, current : ndarray of int, shape (N,)
        Cluster numbers; points with a negative one in either are left out.

    Returns
    -------
    int
        Between 0 (the same partition, or a finer one) and N. Time and memory O(N + non-empty pairs).
    """
    known = (previous >= 0) & (current >= 0)
    previous, current = previous[known], current[known]
    pairs = coo_array((np.ones(len(current), dtype=np.int64), (current, previous))).tocsr()
    return len(current) - int(pairs.max(axis=1).sum())


def settled(clusterings: Sequence[Mapping[str, Any]], n_points: int) -> bool:
    """Tell whether clustering once more would change little.

    Parameters
    ----------
    clusterings : sequence of mappings
        'nmi_previous' and 'n_moved' of every clustering but the first, in order.
    n_points : int
        Points clustered.

    Returns
    -------
    bool
        True if the last clustering moved at most 1 % of the points, or if the NMI with the previous clustering has
        levelled off: in none of the last three clusterings did it exceed by .01 the best of those before them, of
        which there must be at least one.

    Notes
    -----
    A function of its arguments alone. Continuous clustering is not needed: it can be stopped early and training go on
    with the last labels ("A Deep Dive into Deep Cluster", 2022); the rule is our own.
    """
    if clusterings and clusterings[-1]["n_moved"] <= _LARGEST_MOVE * n_points:
        return True
    agreement = [one["nmi_previous"] for one in clusterings]
    before, last = agreement[:-_PATIENCE], agreement[-_PATIENCE:]
    return bool(before) and max(last) < max(before) + _LEAST_RISE
