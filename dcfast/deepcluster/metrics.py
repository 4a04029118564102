"""What a clustering is judged by."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from sklearn.metrics import normalized_mutual_info_score

__all__ = ["moved_points", "nmi"]


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
        Non-negative cluster numbers.

    Returns
    -------
    int
        Between 0 (the same partition, or a finer one) and N. Time and memory O(N + non-empty pairs).
    """
    pairs = coo_array((np.ones(len(current), dtype=np.int64), (current, previous))).tocsr()
    return len(current) - int(pairs.max(axis=1).sum())
