"""IndexFlatL2: exact search among stored vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.cluster.neighbours import neighbours
from dcfast.faiss.vectors import as_rows

METRIC_INNER_PRODUCT = 0
METRIC_L2 = 1


class IndexFlatL2:
    """Stored vectors, searched for the nearest by squared Euclidean distance.

    Parameters
    ----------
    d : int
        Dimension of the vectors.

    Attributes
    ----------
    d, ntotal : int
        Dimension, and number of vectors stored.
    is_trained : bool
        Always True.
    metric_type : int
        METRIC_L2.

    Notes
    -----
    Neighbours are those of the smallest D64 (see `dcfast.ops.assign`), by ascending distance, the lower index first
    among equals. A vector with a NaN or an infinity is never found.
    """

    metric_type = METRIC_L2
    is_trained = True
    # Distance of what is not there, as faiss gives it.
    _absent = torch.finfo(torch.float32).max

    # Where it works, on rows from anywhere; None for where the rows are.
    _device: torch.device | None = None

    def __init__(self, d: int) -> None:
        self.d = int(d)
        self.reset()

    @property
    def ntotal(self) -> int:
        return self._vectors.shape[0]

    def reset(self) -> None:
        """Remove all vectors."""
        self._vectors = torch.zeros(0, self.d, device=self._device)

    def train(self, x: Any) -> None:
        """Check `x`, of shape (n, d): there is nothing to learn."""
        as_rows(x, self.d)

    def add(self, x: Any) -> None:
        """Store copies of the rows of `x`, of shape (n, d), on the device of the first that were added."""
        rows = as_rows(x, self.d)
        if self.ntotal:
            self._vectors = torch.cat([self._vectors, rows.to(self._vectors.device)])
        else:
            self._vectors = rows.to(device=self._device, copy=True)

    def remove_ids(self, x: Any) -> int:
        """Remove the vectors of these indices, and return how many there were; those behind them move up.

        Parameters
        ----------
        x : array of integers, shape (n,)
            Indices that are not stored, and repeated ones, do nothing.

        Raises
        ------
        TypeError
            If `x` holds something else, such as one of faiss's selectors.
        ValueError
            If it has another shape.
        """
        ids = _indices(x)
        kept = torch.ones(self.ntotal, dtype=torch.bool, device="cpu")
        kept[ids[(ids >= 0) & (ids < self.ntotal)]] = False
        before, self._vectors = self.ntotal, self._vectors[kept.to(self._vectors.device)]
        return before - self.ntotal

    def reconstruct(self, key: int) -> np.ndarray:
        """The stored vector `key`: a numpy array of shape (d,); ValueError if there is none."""
        return self.reconstruct_batch([key])[0]

    def reconstruct_n(self, n0: int = 0, ni: int = -1) -> np.ndarray:
        """The `ni` stored vectors from `n0` on, all of them by default: a numpy array of shape (ni, d).

        Raises
        ------
        ValueError
            If there are not so many.
        """
        count = self.ntotal - n0 if ni == -1 else ni
        if count and not 0 <= n0 < n0 + count <= self.ntotal:
            raise ValueError(f"n0={n0}, ni={ni}: expected 0 <= n0 and n0 + ni <= ntotal = {self.ntotal}")
        return self._vectors[n0 : n0 + count].cpu().numpy().copy()

    def reconstruct_batch(self, key: Any) -> np.ndarray:
        """The stored vectors of these indices, of shape (n,): a numpy array of shape (n, d).

        Raises
        ------
        TypeError, ValueError
            As `remove_ids`; and ValueError for an index that is not stored.
        """
        ids = _indices(key)
        if len(wrong := ids[(ids < 0) | (ids >= self.ntotal)]):
            raise ValueError(f"key={int(wrong[0])}: expected 0 <= key < ntotal = {self.ntotal}")
        return self._vectors[ids.to(self._vectors.device)].cpu().numpy().copy()

    def search(self, x: Any, k: int) -> tuple[Any, Any]:
        """The k nearest stored vectors of every row.

        Parameters
        ----------
        x : array of shape (n, d)
        k : int

        Returns
        -------
        D : array of shape (n, k), float32
            Squared distances, rounded once, ascending.
        I : array of shape (n, k), int64
            Their indices; -1, with the largest float32 as distance, where fewer are stored or the row is not finite.
            Both of the kind and on the device of `x`: tensors if it is one, numpy's for a list.

        Raises
        ------
        ValueError
            If shapes do not fit, or k < 1.

        Notes
        -----
        O(n ntotal d) operations. k = 1 takes O(n) memory; more take some copies of the stored vectors in double, and
        blocks of 16 MiB of scores.
        """
        if k < 1:
            raise ValueError(f"k={k}: expected at least 1")
        given = as_rows(x, self.d)
        rows = given.to(device=self._device)
        vectors = self._vectors.to(rows.device)
        labels = torch.full((rows.shape[0], k), -1, dtype=torch.int64, device=rows.device)
        scores = torch.full(labels.shape, self._absent, device=rows.device)
        if self.ntotal:
            found = neighbours(self._queries(rows), self._stored(vectors), min(k, self.ntotal))
            metric = torch.stack([self._scores(rows, vectors, label) for label in found.unbind(1)], 1)
            found, metric = self._ordered(found, metric)
            labels[:, : found.shape[1]] = found
            scores[:, : found.shape[1]] = torch.where(found < 0, self._absent, metric).float()
        answer = arrays.answer_like(x)
        return answer(scores.to(given.device)), answer(labels.to(given.device))

    def assign(self, x: Any, k: int) -> Any:
        """The indices that `search` finds, of shape (n, k)."""
        return self.search(x, k)[1]

    def range_search(self, x: Any, thresh: float) -> tuple[Any, Any, Any]:
        """All stored vectors within a squared distance of every row; of an `IndexFlatIP`, with a larger product.

        Parameters
        ----------
        x : array of shape (n, d)
        thresh : float
            The bound, which itself is outside.

        Returns
        -------
        lims : array of shape (n + 1,), uint64 for numpy arrays and else int64
            What row i has found are the elements lims[i] to lims[i + 1] - 1 of the others.
        D : array of shape (m,), float32
            Squared distances, or inner products, computed and compared in double and rounded once.
        I : array of shape (m,), int64
            The indices, ascending for each row; none for a row that is not finite.

        Notes
        -----
        O(n ntotal d) operations, and O(ntotal d) memory beyond the result.
        """
        given = as_rows(x, self.d)
        rows = given.to(device=self._device)
        vectors = self._vectors.to(rows.device)
        one = torch.zeros(self.ntotal, dtype=torch.int64, device=rows.device)
        usable = vectors.isfinite().all(1)
        found, scores = [one[:0]], [one[:0].double()]
        for row, sound in zip(rows[:, None], rows.isfinite().all(1).tolist(), strict=True):
            metric = self._scores(vectors, row, one)
            found.append(torch.nonzero(usable & self._within(metric, float(thresh)) & sound)[:, 0])
            scores.append(metric[found[-1]])
        lims = torch.tensor([len(each) for each in found], device=rows.device).cumsum(0)
        answer = arrays.answer_like(x)
        ends = answer(lims.to(given.device))
        if isinstance(ends, np.ndarray):
            ends = ends.astype(np.uint64)
        return ends, answer(torch.cat(scores).float().to(given.device)), answer(torch.cat(found).to(given.device))

    # The nearest of `_stored(vectors)` to `_queries(rows)` are the best of the metric.

    @staticmethod
    def _queries(rows: torch.Tensor) -> torch.Tensor:
        return rows

    @staticmethod
    def _stored(vectors: torch.Tensor) -> torch.Tensor:
        return vectors

    @staticmethod
    def _scores(rows: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(n,) float64: the metric between every row and the vector of its label, 0 for the label -1."""
        return ops.point_distances(rows, vectors, labels)

    @staticmethod
    def _within(scores: torch.Tensor, bound: float) -> torch.Tensor:
        return scores < bound

    @staticmethod
    def _ordered(labels: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, k) each, the best first: neighbours come so."""
        return labels, scores


def flat(index: Any) -> IndexFlatL2:
    """The index; TypeError if it is of another kind than those here."""
    if not isinstance(index, IndexFlatL2):
        raise TypeError(f"index is a {type(index).__name__}: expected an IndexFlatL2 or an IndexFlatIP")
    return index


def _indices(x: Any) -> torch.Tensor:
    array = x if hasattr(x, "__dlpack__") else np.asarray(x)
    if isinstance(array, np.ndarray) and array.dtype == object:
        raise TypeError(f"indices are a {type(x).__name__}: expected an array of integers")
    ids = arrays.as_tensor(array).cpu()
    if ids.numel() and (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool):
        raise TypeError(f"indices are {ids.dtype}: expected integers")
    if ids.dim() != 1:
        raise ValueError(f"indices have shape {tuple(ids.shape)}: expected (n,)")
    return ids.long()
