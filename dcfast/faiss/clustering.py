"""Clustering: faiss's k-means over the exact ops."""

from __future__ import annotations

import time
import warnings
from dataclasses import fields
from typing import Any

import numpy as np
import torch

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.faiss.index import METRIC_INNER_PRODUCT, IndexFlatL2, flat
from dcfast.faiss.parameters import ClusteringIterationStats, ClusteringParameters
from dcfast.faiss.starts import generator, permutation, splitmix64, start, words
from dcfast.faiss.vectors import Vector, as_float32, as_rows, of_unit_length

# What faiss adds to the seed for every further run, and the seed of its search for clusters to split.
_REDO = 15486557
_SPLIT_SEED = 1234


class Clustering(ClusteringParameters):
    """k-means as faiss runs it, on the exact ops.

    Parameters
    ----------
    d : int
        Dimension.
    k : int
        Number of clusters.
    cp : ClusteringParameters, optional
        Copied; the fields are attributes of the object, too.

    Attributes
    ----------
    centroids : vector of k * d float32
        For `vector_to_array`. What it holds when `train` is called are the first of the initial centroids.
    iteration_stats : vector of ClusteringIterationStats
        As in faiss of all iterations of all calls of `train`, and of all runs (nredo) up to the best.
    obj : vector of float64
        Their objectives.

    Notes
    -----
    A row goes to the nearest centroid (`dcfast.ops.assign`) or, with an `IndexFlatIP`, to the one with the largest
    inner product; a centroid is the exact sum of its rows, rounded and divided (`dcfast.ops.means`). Empty clusters
    take half of a larger one, by faiss's own walk. With init_method RANDOM a run starts from the rows that faiss
    starts from, given the same seed, and follows its objective as far as the rounding of faiss allows. As in faiss, a
    second run (nredo) goes on with what the first made of the given centroids. Where n = k the rows are the centroids;
    of a sample of k rows too, where faiss takes the first k of all. Each iteration costs O(n k d) operations, and
    memory beyond the input is O(n + k d), with an `IndexFlatIP` or a sample a copy of the rows, too.
    """

    def __init__(self, d: int, k: int, cp: ClusteringParameters | None = None) -> None:
        given = cp or ClusteringParameters()
        super().__init__(**{field.name: getattr(given, field.name) for field in fields(ClusteringParameters)})
        self.d = int(d)
        self.k = int(k)
        self.centroids = Vector(np.empty(0, np.float32))
        self._stats: list[ClusteringIterationStats] = []

    @property
    def iteration_stats(self) -> Vector:
        return Vector(self._stats)

    @property
    def obj(self) -> Vector:
        return Vector(np.array([stats.obj for stats in self._stats]))

    def train(self, x: Any, index: IndexFlatL2, weights: Any = None) -> None:
        """Cluster the rows of `x`.

        Parameters
        ----------
        x : array of shape (n, d)
            numpy or what it converts (to float32), or a tensor on any device.
        index : IndexFlatL2 or IndexFlatIP
            Its metric assigns the rows; it holds the centroids afterwards. With one of a GPU all work is done there.
        weights : array of shape (n,), optional
            Of the rows in their means.

        Raises
        ------
        ValueError
            If shapes or parameters do not fit, if there are fewer rows than clusters, if a row or a given centroid is
            not finite, or if a weight is negative or not finite, or none is positive.
        TypeError
            If the index is of another kind.

        Warns
        -----
        UserWarning
            If there are fewer than min_points_per_centroid rows per cluster.
        """
        begin = time.perf_counter()
        rows = as_rows(x, self.d).to(device=flat(index)._device)
        self._check(rows, index)
        weight = None if weights is None else _weights(weights, rows)
        given = self._given(rows.device)
        seed = self.seed if self.seed >= 0 else time.time_ns()
        rows, weight = self._sample(rows, weight, seed)
        n = rows.shape[0]
        if n == self.k:
            if self.verbose:
                print(f"Number of training points ({n}) same as number of clusters, just copying")
            self._stats.append(ClusteringIterationStats(0.0, 0.0, 0.0, 1.0, 0))
            self._finish(rows, index)
            return
        if self.verbose:
            print(
                f"Clustering {n} points in {self.d}D to {self.k} clusters, "
                f"redo {self.nredo} times, {self.niter} iterations"
            )
            if len(given):
                frozen = "frozen" if self.frozen_centroids else "not frozen"
                print(f"  Using {len(given)} centroids provided as input ({frozen})")
            print(f"  Preprocessing in {time.perf_counter() - begin:.2f} s")
        run = _Run(self, index, rows, weight, len(given) if self.frozen_centroids else 0)
        best: tuple[float, torch.Tensor, int] | None = None
        for redo in range(self.nredo):
            if self.verbose and self.nredo > 1:
                print(f"Outer iteration {redo} / {self.nredo}")
            first = start(rows, given, self.k, self.init_method, seed + 1 + redo * _REDO, self.afkmc2_chain_length)
            objective, centroids = run(first, self._stats)
            given = centroids[: len(given)]
            badness = -objective if index.metric_type == METRIC_INNER_PRODUCT else objective
            if best is None or badness < best[0]:
                best = badness, centroids, len(self._stats)
                if self.verbose and self.nredo > 1:
                    print("Objective improved: keep new clusters")
        assert best is not None
        del self._stats[best[2] :]
        self._finish(best[1], index)

    def _check(self, rows: torch.Tensor, index: IndexFlatL2) -> None:
        if index.d != self.d:
            raise ValueError(f"index has the dimension {index.d} and the clustering {self.d}: make them equal")
        for name in ("d", "k", "nredo", "max_points_per_centroid", "afkmc2_chain_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.use_super_kmeans:
            raise ValueError(
                "use_super_kmeans=True prunes and misses nearest centroids: labels are exact here; leave it out"
            )
        if (n := rows.shape[0]) < self.k:
            raise ValueError(
                f"Number of training points ({n}) should be at least as large as number of clusters ({self.k})"
            )
        # As in faiss a sample is not too small, whatever was asked for.
        if n <= self.k * self.max_points_per_centroid and n < self.k * self.min_points_per_centroid:
            warnings.warn(
                f"clustering {n} points to {self.k} centroids: please provide at least "
                f"{self.k * self.min_points_per_centroid} training points, or set min_points_per_centroid",
                stacklevel=3,
            )
        if self.check_input_data_for_NaNs:
            arrays.check_finite(rows, "x")

    def _given(self, device: torch.device) -> torch.Tensor:
        """The initial centroids that the caller set, (m, d)."""
        values = arrays.as_tensor(self.centroids._items)
        if values.numel() % self.d or values.numel() > self.k * self.d:
            raise ValueError(
                f"centroids has {values.numel()} elements: expected m * d for m <= k, with d={self.d}, k={self.k}"
            )
        given = values.reshape(-1, self.d).to(device)
        arrays.check_finite(given, "centroids")
        return given

    def _sample(
        self, rows: torch.Tensor, weight: torch.Tensor | None, seed: int
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        n, most = rows.shape[0], self.k * self.max_points_per_centroid
        if n <= most:
            return rows, weight
        if self.verbose:
            print(f"Sampling a subset of {most} / {n} for training")
        draw = splitmix64 if self.use_faster_subsampling else permutation
        chosen = torch.as_tensor(draw(n, most, seed), device=rows.device)
        return rows[chosen], None if weight is None else weight[chosen]

    def _finish(self, centroids: torch.Tensor, index: IndexFlatL2) -> None:
        self.centroids = Vector(centroids.cpu().numpy().flatten())
        index.reset()
        index.add(centroids)


class _Run:
    """The iterations from one start; holds what all starts share."""

    def __init__(
        self, cp: Clustering, index: IndexFlatL2, x: torch.Tensor, weight: torch.Tensor | None, frozen: int
    ) -> None:
        self.cp, self.index, self.x, self.weight, self.frozen = cp, index, x, weight, frozen
        self.queries = index._queries(x)
        self.grid = ops.sum_grid(x, weight)
        self.weight_grid = None if weight is None else ops.sum_grid(weight[:, None])
        self.begin = time.perf_counter()
        self.search_seconds = 0.0

    def __call__(self, first: torch.Tensor, stats: list[ClusteringIterationStats]) -> tuple[float, torch.Tensor]:
        """The last objective and the centroids."""
        cp, k, n = self.cp, self.cp.k, self.x.shape[0]
        centroids = self._normalized(first)
        running = ops.RunningSums(k, self.grid, self.weight_grid, self.x.device)
        labels = torch.full((n,), -1, dtype=torch.int64, device=self.x.device)
        new_labels = torch.empty_like(labels)
        stored = self.index._stored(centroids)
        bounds = ops.distance_bounds(n, self.queries.shape[1], self.x.device)
        objective = previous = 0.0
        for iteration in range(cp.niter):
            searching = time.perf_counter()
            before, stored = stored, self.index._stored(centroids)
            ops.reassign(self.queries, stored, before, labels, bounds, new_labels)
            moved_from, labels, new_labels = labels, new_labels, labels
            self.search_seconds += time.perf_counter() - searching
            running.move(self.x, labels, moved_from, self.weight)
            sums = running.sums()
            previous, objective = objective, float(ops.exact_sum(self.index._scores(self.x, centroids, labels)))
            new = ops.means(sums, centroids)
            new[: self.frozen] = centroids[: self.frozen]
            nsplit = _split(new[self.frozen :], sums.total[self.frozen :].float().cpu().numpy(), n)
            centroids = self._normalized(new)
            sizes = sums.counts if self.weight is None else torch.bincount(labels[labels >= 0], minlength=k)
            done = ClusteringIterationStats(
                obj=objective,
                time=time.perf_counter() - self.begin,
                time_search=self.search_seconds,
                imbalance_factor=int(sizes.square().sum()) * k / n**2,
                nsplit=nsplit,
            )
            stats.append(done)
            if cp.verbose:
                print(
                    f"  Iteration {iteration} ({done.time:.2f} s, search {done.time_search:.2f} s): "
                    f"objective={done.obj:g} imbalance={done.imbalance_factor:.3f} nsplit={done.nsplit}"
                )
            if iteration and abs(previous - objective) <= cp.early_stop_threshold * abs(previous):
                break
        return objective, centroids

    def _normalized(self, centroids: torch.Tensor) -> torch.Tensor:
        if self.cp.spherical:
            centroids = of_unit_length(centroids)
        if self.cp.int_centroids:
            whole = centroids.trunc()
            centroids = whole + centroids.sign() * ((centroids - whole).abs() >= 0.5)
        return centroids


def _weights(weights: Any, rows: torch.Tensor) -> torch.Tensor:
    """Checked weights, rounded to float32 as faiss does and widened as the ops want them."""
    weight = as_float32(weights).to(rows.device).double()
    if weight.shape != rows.shape[:1]:
        raise ValueError(f"weights has shape {tuple(weight.shape)}: expected ({rows.shape[0]},)")
    arrays.check_finite(weight, "weights")
    if bool((weight < 0).any()):
        raise ValueError(f"weights has {int((weight < 0).sum())} negative element(s): weights are 0 or more")
    if not bool((weight > 0).any()):
        raise ValueError("weights are all 0: at least one must be positive")
    return weight


def _split(centroids: torch.Tensor, counts: np.ndarray, n: int) -> int:
    """Give each empty cluster half of a larger one, in place, and return how many there were.

    Parameters
    ----------
    centroids : Tensor of shape (k, d)
    counts : array of shape (k,), float32
        Total weights.
    n : int
        Rows.

    Notes
    -----
    faiss's walk: clusters are offered in turn, from the first; one of weight w is taken with probability
    (w - 1) / (n - k), and after 10 k offers the largest. The generator starts anew with every call. The two centroids
    are moved apart by one part in 1024, up in even dimensions and down in odd ones, and the other way round.
    """
    empty = np.flatnonzero(counts == 0)
    if empty.size == 0:
        return 0
    k, d = centroids.shape
    up = torch.tensor([1 + 1 / 1024, 1 - 1 / 1024], device=centroids.device).repeat(d // 2 + 1)[:d]
    rng = generator(_SPLIT_SEED)
    draws = np.empty(0, np.float32)
    for taker in empty:
        chances = ((counts.astype(np.float64) - 1) / np.float32(n - k)).astype(np.float32)
        for _ in range(10):
            if draws.size < k:
                draws = np.concatenate([draws, words(rng, 2 * k).astype(np.float32) / np.float32(2**32)])
            hits = np.flatnonzero(draws[:k] < chances)
            draws = draws[hits[0] + 1 if hits.size else k :]
            if hits.size:
                giver = hits[0]
                break
        else:
            giver = counts.argmax()
        centroids[taker] = centroids[giver] * up
        centroids[giver] *= 2 - up
        counts[taker] = counts[giver] / 2
        counts[giver] -= counts[taker]
    return int(empty.size)
