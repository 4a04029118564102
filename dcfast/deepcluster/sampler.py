"""The order in which a clustering's images are trained on."""

from __future__ import annotations

import numpy as np

from dcfast.deepcluster.keyed import Stream, generator

__all__ = ["plain_order", "uniform_order"]


def uniform_order(assignments: np.ndarray, n_draws: int, seed: int, epoch: int) -> np.ndarray:
    """Order images so that every non-empty cluster is equally likely at every position.

    Each cluster gives floor(n_draws / non-empty clusters) + 1 of its images, drawn with replacement only if it has
    fewer; all are shuffled and cut to ``n_draws``.

    Parameters
    ----------
    assignments : ndarray of int, shape (N,)
        Cluster of each image.
    n_draws : int
        Length of the order; N times the epochs until the next clustering.
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
    by_cluster = np.argsort(assignments, kind="stable")
    sizes = np.bincount(assignments)
    ends = np.cumsum(sizes)
    each = n_draws // int(np.count_nonzero(sizes)) + 1
    chosen = [
        draw.choice(by_cluster[end - size : end], each, replace=bool(size < each))
        for size, end in zip(sizes, ends, strict=True)
        if size
    ]
    return draw.permutation(np.concatenate(chosen))[:n_draws].astype(np.int64)


def plain_order(n_images: int, n_draws: int, seed: int, epoch: int) -> np.ndarray:
    """Concatenate permutations of all images, and cut them to ``n_draws``; parameters as in `uniform_order`."""
    draw = generator(seed, Stream.ORDER, epoch)
    rounds = -(-n_draws // n_images)
    return np.concatenate([draw.permutation(n_images) for _ in range(rounds)])[:n_draws].astype(np.int64)
