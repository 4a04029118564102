"""Where faiss's k-means starts, and which rows it samples.

faiss draws from std::mt19937, whose words `numpy.random.RandomState` gives too: a random start is the same here and
there. k-means++ and AFK-MC2 draw from the same generator in an order of their own.
"""

from __future__ import annotations

import numpy as np
import torch

from dcfast import ops

ClusteringInitMethod_RANDOM = 0
ClusteringInitMethod_KMEANS_PLUS_PLUS = 1
ClusteringInitMethod_AFK_MC2 = 2


def generator(seed: int) -> np.random.RandomState:
    """std::mt19937(seed)."""
    return np.random.RandomState(seed % 2**32)


def words(rng: np.random.RandomState, count: int) -> np.ndarray:
    """The next `count` 32-bit words of the generator."""
    return rng.randint(0, 2**32, size=count, dtype=np.uint32)


def permutation(n: int, count: int, seed: int) -> np.ndarray:
    """The first `count` elements of faiss's random permutation of n: for i in order, swap i and i + word % (n - i).

    O(count log count) operations without a loop over the swaps.
    """
    steps = np.arange(count)
    partner = steps + words(generator(seed), count) % (n - steps)
    # Position t is read at its own step and, before that, was last written by the latest earlier step whose partner
    # it was, with what that step's position then held. Follow these steps back to one that nobody wrote before.
    order = np.argsort(partner, kind="stable")
    repeated = partner[order[1:]] == partner[order[:-1]]
    previous = np.full(count, -1)  # the step before with the same partner
    previous[order[1:][repeated]] = order[:-1][repeated]
    writer = np.full(count, -1)  # the last step with partner t; they all come at or before step t
    inside = partner < count
    writer[partner[inside]] = steps[inside]
    writer = np.where(writer == steps, previous, writer)
    held = np.where(writer < 0, steps, writer)
    while not np.array_equal(further := held[held], held):
        held = further
    return np.where(partner == steps, held, np.where(previous < 0, partner, held[previous]))


def splitmix64(n: int, count: int, seed: int) -> np.ndarray:
    """`count` numbers below n, with repetitions, as faiss's use_faster_subsampling draws them."""
    z = np.uint64(seed % 2**64) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return ((z & np.uint64(2**63 - 1)) % np.uint64(n)).astype(np.int64)


def start(x: torch.Tensor, given: torch.Tensor, k: int, method: int, seed: int, chain_length: int) -> torch.Tensor:
    """k centroids: the given ones, and rows of `x` after them.

    Parameters
    ----------
    x : Tensor of shape (N, d)
    given : Tensor of shape (m, d)
        m at most k.
    k : int
    method : int
        One of the ClusteringInitMethods.
    seed : int
    chain_length : int
        Of AFK-MC2.

    Returns
    -------
    Tensor of shape (k, d)

    Raises
    ------
    ValueError
        If there is no such method.
    """
    m = given.shape[0]
    if method == ClusteringInitMethod_RANDOM:
        rows = permutation(x.shape[0], k, seed)[m:]
        return torch.cat([given, x[torch.as_tensor(rows, device=x.device)]])
    if method not in (ClusteringInitMethod_KMEANS_PLUS_PLUS, ClusteringInitMethod_AFK_MC2):
        raise ValueError(f"init_method={method}: expected one of the ClusteringInitMethod_ constants, 0 to 2")
    rng = generator(seed)
    if m == 0:
        given = x[(row := rng.randint(x.shape[0])) : row + 1]
    centroids = torch.cat([given, given.new_zeros(k - given.shape[0], x.shape[1])])
    if method == ClusteringInitMethod_KMEANS_PLUS_PLUS:
        _plus_plus(x, centroids, given.shape[0], rng)
    else:
        _afk_mc2(x, centroids, given.shape[0], rng, chain_length)
    return centroids


def _nearest(x: torch.Tensor, centroids: torch.Tensor) -> np.ndarray:
    """D64 of every row to its nearest centroid; numpy's, whose sums below have one order on every device."""
    return ops.point_distances(x, centroids, ops.assign(x, centroids)).cpu().numpy()


def _shares(distances: np.ndarray) -> np.ndarray:
    """Probabilities in proportion to the distances; equal ones where every row sits on a centroid."""
    total = distances.sum()
    return distances / total if total > 0 else np.full(distances.shape, 1 / distances.size)


def _plus_plus(x: torch.Tensor, centroids: torch.Tensor, m: int, rng: np.random.RandomState) -> None:
    """Fill centroids[m:]: each a row drawn in proportion to D64 to the nearest before it (Arthur & Vassilvitskii)."""
    k = centroids.shape[0]
    closest = _nearest(x, centroids[:m])
    for i in range(m, k):
        centroids[i] = x[rng.choice(x.shape[0], p=_shares(closest))]
        closest = np.minimum(closest, _nearest(x, centroids[i : i + 1]))


def _afk_mc2(x: torch.Tensor, centroids: torch.Tensor, m: int, rng: np.random.RandomState, chain_length: int) -> None:
    """Fill centroids[m:]: each the end of a Markov chain of draws (Bachem et al. 2016, algorithm 1)."""
    k, n = centroids.shape[0], x.shape[0]
    proposal = _shares(_nearest(x, centroids[:1])) / 2 + 1 / (2 * n)
    cumulative = proposal.cumsum()
    for i in range(m, k):
        rows = np.searchsorted(cumulative / cumulative[-1], rng.random_sample(chain_length), side="right")
        uniform = rng.random_sample(chain_length)
        distances = _nearest(x[torch.as_tensor(rows, device=x.device)], centroids[:i])
        at = 0
        for j in range(1, chain_length):
            if distances[j] * proposal[rows[at]] > uniform[j] * distances[at] * proposal[rows[j]]:
                at = j
        centroids[i] = x[rows[at]]
