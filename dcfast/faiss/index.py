"""IndexFlatL2 and IndexFlatIP: exact search among stored vectors."""

from __future__ import annotations

from typing import Any

import torch

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.faiss.vectors import as_rows

METRIC_INNER_PRODUCT = 0
METRIC_L2 = 1

# Of the scores that a search for several neighbours holds at a time.
_BLOCK_BYTES = 2**26
# Of the squared norm that vectors are lengthened to: its root, 2^127, is a float32.
_MOST_EXPONENT = 254


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

    def __init__(self, d: int) -> None:
        self.d = int(d)
        self.reset()

    @property
    def ntotal(self) -> int:
        return self._vectors.shape[0]

    def reset(self) -> None:
        """Remove all vectors."""
        self._vectors = torch.zeros(0, self.d)

    def train(self, x: Any) -> None:
        """Check `x`, of shape (n, d): there is nothing to learn."""
        as_rows(x, self.d)

    def add(self, x: Any) -> None:
        """Store copies of the rows of `x`, of shape (n, d), on the device of the first that were added."""
        rows = as_rows(x, self.d)
        self._vectors = torch.cat([self._vectors, rows.to(self._vectors.device)]) if self.ntotal else rows.clone()

    def reconstruct(self, key: int) -> Any:
        """The stored vector `key`: a numpy array of shape (d,).

        Raises
        ------
        ValueError
            If there is none.
        """
        if not 0 <= key < self.ntotal:
            raise ValueError(f"key={key}: expected 0 <= key < ntotal = {self.ntotal}")
        return self._vectors[key].cpu().numpy().copy()

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
        O(n ntotal d) operations. k = 1 takes O(n) memory; more take blocks of 64 MiB of scores.
        """
        if k < 1:
            raise ValueError(f"k={k}: expected at least 1")
        rows = as_rows(x, self.d)
        vectors = self._vectors.to(rows.device)
        labels = torch.full((rows.shape[0], k), -1, dtype=torch.int64, device=rows.device)
        scores = torch.full(labels.shape, self._absent, device=rows.device)
        if self.ntotal:
            found = _neighbours(self._queries(rows), self._stored(vectors), min(k, self.ntotal))
            metric = torch.stack([self._scores(rows, vectors, label) for label in found.unbind(1)], 1)
            found, metric = self._ordered(found, metric)
            labels[:, : found.shape[1]] = found
            scores[:, : found.shape[1]] = torch.where(found < 0, self._absent, metric).float()
        answer = arrays.answer_like(x)
        return answer(scores), answer(labels)

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
    def _ordered(labels: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, k) each, the best first: neighbours come so."""
        return labels, scores


class IndexFlatIP(IndexFlatL2):
    """Stored vectors, searched for the largest inner product: what spherical k-means assigns with.

    See `IndexFlatL2` for the methods; `D` are inner products, descending, and absent ones the lowest float32.

    Notes
    -----
    The vectors are lengthened to one norm by further elements (Bachrach et al. 2014), after which the largest inner
    product is the smallest distance, at the cost of a copy of the rows. Which vectors are the k best is exact to the
    rounding of such a distance: of products within 2^-50 of the square of the largest norm, that of the row among them,
    any may come out as the largest. A vector that is not finite is never found.
    """

    metric_type = METRIC_INNER_PRODUCT
    _absent = torch.finfo(torch.float32).min

    @staticmethod
    def _queries(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(rows, (0, 3))

    @staticmethod
    def _stored(vectors: torch.Tensor) -> torch.Tensor:
        norms = squared_distances(vectors, torch.zeros_like(vectors[:1]))
        exponent = torch.frexp(1.5 * torch.where(norms.isfinite(), norms, 0).max()).exponent
        # Times a power of two, which changes no order, what is missing of the longest is a float32 as well.
        if int(exponent) > _MOST_EXPONENT:
            return IndexFlatIP._stored(vectors * 2.0 ** -((int(exponent) - _MOST_EXPONENT + 1) // 2))
        # A power of two, and not close to a norm of 1: the same for the next centroids of a spherical clustering.
        missing = torch.ldexp(torch.ones_like(norms[:1]), exponent) - norms
        parts = []
        # The square of a float32 is exact in double, and 2^-23 of what is missing remains after each.
        for _ in range(3):
            part = missing.sqrt().float()
            part = torch.where(part.double().square() > missing, torch.nextafter(part, torch.zeros_like(part)), part)
            missing = missing - part.double().square()
            parts.append(part)
        return torch.cat([vectors, torch.stack(parts, 1)], 1)

    @staticmethod
    def _scores(rows: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        products = rows.new_zeros(rows.shape[0], dtype=torch.float64)
        step = max(1, _BLOCK_BYTES // (16 * rows.shape[1]))
        for start in range(0, rows.shape[0], step):
            own = labels[start : start + step]
            factor = vectors[own.clamp(min=0)].double()
            product = (rows[start : start + step].double() * factor).sum(1)
            products[start : start + step] = torch.where(own < 0, 0, product)
        return products

    @staticmethod
    def _ordered(labels: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Distances of the lengthened vectors leave open what they round away.
        order = labels.argsort(stable=True, dim=1)
        worst_last = torch.where(labels < 0, -torch.inf, scores).gather(1, order)
        order = order.gather(1, worst_last.argsort(stable=True, dim=1, descending=True))
        return labels.gather(1, order), scores.gather(1, order)


def squared_distances(x: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """D64 of every row to one point of shape (1, d): (n,) float64."""
    return ops.point_distances(x, point, torch.zeros(x.shape[0], dtype=torch.int64, device=x.device))


def _neighbours(x: torch.Tensor, vectors: torch.Tensor, k: int) -> torch.Tensor:
    """Labels (n, k) of the smallest D64, lower labels first among equals; -1 as `ops.assign` gives it."""
    if k == 1:
        return ops.assign(x, vectors)[:, None]
    found = torch.full((x.shape[0], k), -1, dtype=torch.int64, device=x.device)
    sound = torch.nonzero(vectors.isfinite().all(1))[:, 0]
    vectors = vectors[sound]
    n, d = vectors.shape
    if n == 0:
        return found
    shift = vectors.double().mean(0)
    shifted = vectors.double() - shift
    norms = shifted.square().sum(1)
    step = max(1, _BLOCK_BYTES // (8 * n))
    for start in range(0, x.shape[0], step):
        block = x[start : start + step]
        usable = torch.nonzero(block.isfinite().all(1))[:, 0]
        block = block[usable]
        if n <= k:
            nearest = _by_distance(block, vectors, torch.arange(n, device=x.device).expand(block.shape[0], n))
        else:
            rows = block.double() - shift
            values, candidates = torch.topk(norms / 2 - rows @ shifted.T, k + 1, dim=1, largest=False)
            nearest = _by_distance(block, vectors, candidates[:, :k])
            # (d + 8) 2^-53 R^2 bounds the error of a score, whatever the order of its sum, and of half of D64; where
            # the next score lies four of them away, the k best scores are the k smallest D64.
            reach = rows.square().sum(1).sqrt() + norms.max().sqrt()
            proved = values[:, k] - values[:, k - 1] > 4 * (d + 8) * 2.0**-53 * reach.square()
            for row in torch.nonzero(~proved)[:, 0].tolist():
                everyone = squared_distances(vectors, block[row : row + 1])
                nearest[row] = everyone.sort(stable=True).indices[:k]
        found[start + usable[:, None], torch.arange(nearest.shape[1], device=x.device)] = sound[nearest]
    return found


def _by_distance(x: torch.Tensor, vectors: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Each row's candidates, (n, m), sorted by D64, then by label."""
    candidates = candidates.sort(1).values
    distances = torch.stack([ops.point_distances(x, vectors, label) for label in candidates.unbind(1)], 1)
    return candidates.gather(1, distances.sort(stable=True, dim=1).indices)
