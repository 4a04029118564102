"""What a clustering is judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

__all__ = [
    "MOST_TERMS",
    "ami",
    "ari",
    "class_entropy",
    "cluster_sizes",
    "matched_accuracy",
    "moved_points",
    "nmi",
    "purity",
    "settled",
]

# Terms of what chance gives, of which a processor adds up some 50 million a second.
MOST_TERMS = 2**26
# When clusterings have settled: means over three of them, since NMI scatters by a hundredth or two from one random
# start of k-means to the next.
_WINDOW = 3
_LEVEL = 0.01
_RISE = 0.03
_LARGEST_MOVE = 0.01


def cluster_sizes(assignments: np.ndarray) -> np.ndarray:
    """Count the points of each cluster; negative labels are noise and counted nowhere."""
    return np.bincount(assignments[assignments >= 0])


def _known(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Leave out the points with a negative label in either."""
    known = (first >= 0) & (second >= 0)
    return first[known], second[known]


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
    first, second = _known(first, second)
    if not len(first):
        return None
    return float(normalized_mutual_info_score(first, second, average_method="geometric"))


def ami(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the mutual information of two labellings less what chance gives, over the most that there could be.

    Unlike `nmi` it does not grow with the number of clusters alone: 0 is what random labels come to, 1 the same
    partition (Vinh, Epps and Bailey 2010; their entropies averaged as in `nmi`).

    Parameters
    ----------
    first, second : ndarray of int, shape (N,)
        The labellings; points with a negative label in either are left out.

    Returns
    -------
    float at most 1, or None
        None if no point is left, or if N times the classes of the labelling with fewer is more than 2^26, since what
        chance gives takes as many steps: more than an epoch of ImageNet has time for.
    """
    first, second = _known(first, second)
    if not len(first) or len(first) * min(len(np.unique(first)), len(np.unique(second))) > MOST_TERMS:
        return None
    return float(adjusted_mutual_info_score(first, second, average_method="geometric"))


def ari(first: np.ndarray, second: np.ndarray) -> float | None:
    """Return the share of pairs of points on which two labellings agree, less what chance gives, over the most.

    Parameters
    ----------
    first, second : ndarray of int, shape (N,)
        The labellings; points with a negative label in either are left out.

    Returns
    -------
    float in [-0.5, 1], or None
        0 is what random labels come to, 1 the same partition (Hubert and Arabie 1985). None if no point is left.
    """
    first, second = _known(first, second)
    return float(adjusted_rand_score(first, second)) if len(first) else None


def matched_accuracy(classes: np.ndarray, clusters: np.ndarray) -> float | None:
    """Return the share of points in the right cluster under the best matching of clusters to classes.

    Each cluster stands for at most one class and each class for at most one cluster, matched by the Hungarian method:
    the accuracy that papers on deep clustering report where there are as many clusters as classes.

    Parameters
    ----------
    classes, clusters : ndarray of int, shape (N,)
        Points with a negative class are left out; those with a negative cluster, noise, count as wrong.

    Returns
    -------
    float in [0, 1], or None
        None if no point has a class. Time O(c k min(c, k)) for c classes and k clusters.
    """
    clusters = clusters[classes >= 0]
    if not len(clusters):
        return None
    known, found = _known(classes[classes >= 0], clusters)
    counts = contingency_matrix(known, found)
    return float(counts[linear_sum_assignment(counts, maximize=True)].sum() / len(clusters))


def purity(classes: np.ndarray, clusters: np.ndarray) -> float | None:
    """Return the share of points that are of the most frequent class of their cluster.

    Parameters
    ----------
    classes, clusters : ndarray of int, shape (N,)
        Points with a negative number in either are left out.

    Returns
    -------
    float in (0, 1], or None
        None if no point is left. It grows with the number of clusters by itself: 1 where each point is one.
    """
    classes, clusters = _known(classes, clusters)
    return 1 - moved_points(classes, clusters) / len(classes) if len(classes) else None


def class_entropy(classes: np.ndarray, clusters: np.ndarray) -> float | None:
    """Return the entropy of the classes within a cluster over the most it could be, the mean over the points.

    Parameters
    ----------
    classes, clusters : ndarray of int, shape (N,)
        Points with a negative number in either are left out.

    Returns
    -------
    float in [0, 1], or None
        0 where each cluster is of one class, 1 where each holds all classes alike; a cluster counts by its size, or
        those of one point, which are of one class, would outweigh the rest. None if fewer than two classes are left.
    """
    classes, clusters = _known(classes, clusters)
    n_classes = len(np.unique(classes))
    if n_classes < 2:
        return None
    pairs = coo_array((np.ones(len(classes)), (clusters, classes))).tocsr()
    sizes = np.repeat(pairs.sum(axis=1), np.diff(pairs.indptr))
    return float((pairs.data * np.log(sizes / pairs.data)).sum() / len(classes) / np.log(n_classes))


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
    previous, current = _known(previous, current)
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
        True if each of the last three clusterings moved at most 1 % of the points; or if the NMI with the previous
        clustering has levelled off: its mean over the last three lies .03 or more above the lowest value so far, and
        less than .01 from the mean over the three before.

    Notes
    -----
    The NMI must have risen because it is level, too, before the features have learnt anything: near 1 from a warm
    start, then it falls; at its lowest from random ones. A function of its arguments alone.

    That clustering can stop early, and training go on with the last labels, is the finding of "A Deep Dive into Deep
    Cluster" (2022); the rule is our own.
    """
    recent = clusterings[-_WINDOW:]
    if len(recent) == _WINDOW and all(one["n_moved"] <= _LARGEST_MOVE * n_points for one in recent):
        return True
    agreement = [one["nmi_previous"] for one in clusterings]
    if len(agreement) < 2 * _WINDOW:
        return False
    before, last = fmean(agreement[-2 * _WINDOW : -_WINDOW]), fmean(agreement[-_WINDOW:])
    return last >= min(agreement) + _RISE and abs(last - before) < _LEVEL
