"""The order in which a clustering's images are trained on."""

from __future__ import annotations

import numpy as np

from dcfast.deepcluster.keyed import Stream, generator
from dcfast.deepcluster.metrics import cluster_sizes

__all__ = ["plain_order", "uniform_order"]


def uniform_order(assignments: np.ndarray, n_draws: int, seed: int, epoch: int) -> np.ndarray:
    """Order images so that every non-empty cluster is equally likely at every position.

    Each cluster gives floor(n_draws / non-empty clusters) + 1 of its images, drawn with replacement only if it has
    fewer; all are shuffled and cut to ``n_draws``.

    Parameters
    ----------
    assignments : ndarray of int, shape (N,)
        Cluster of each image; negative ones are noise and never drawn.
    n_draws : int
        Length of the order; the images in clusters times the epochs until the next clustering.
    seed, epoch : int
        The key of the draws; ``epoch`` is the one that clustered.

    Returns
    -------
    ndarray of int64, shape (n_draws,)
        Image numbers.

    Notes
    -----
    The paper's sampler: it draws members of the clusters, numbered as in the data set. Time O(N log N + n_draws).
    """
    draw = generator(seed, Stream.ORDER, epoch)
    sizes = cluster_sizes(assignments)
    by_cluster = np.argsort(assignments, kind="stable")[len(assignments) - sizes.sum() :]  # noise sorts first
    ends = np.cumsum(sizes)
    each = n_draws // int(np.count_nonzero(sizes)) + 1
    chosen = [
        draw.choice(by_cluster[end - size : end], each, replace=bool(size < each))
        for size, end in zip(sizes, ends, strict=True)
        if size
    ]
    return draw.permutation(np.concatenate(chosen))[:n_draws].astype(np.int64)


def plain_order(assignments: np.ndarray, n_draws: int, seed: int, epoch: int) -> np.ndarray:
    """Concatenate permutations of the images in clusters, cut to ``n_draws``; parameters as in `uniform_order`."""
    draw = generator(seed, Stream.ORDER, epoch)
    members = np.flatnonzero(assignments >= 0)
    rounds = -(-n_draws // len(members))
    return np.concatenate([draw.permutation(members) for _ in range(rounds)])[:n_draws].astype(np.int64)
