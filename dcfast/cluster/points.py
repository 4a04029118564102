"""The rows that k-means reads: in order, in dense blocks of bounded size, wherever they come from."""

from __future__ import annotations

import copy
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import scipy.sparse
import torch

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.cluster.ranks import Ranks
from dcfast.ops.accumulate.grid import carry_

# Multiply-adds per iteration up to which a problem, alone or among many, is run by one call; and, alone, elements of
# rows, 16 more each for what a row costs anyway. Beyond, the bounds of `reassign` save more than ops of their own cost,
# and caches do not hold what a run keeps. Measured on two cores, from 300,000 x 2 to 2,000 x 100.
_FEW_OPERATIONS, _MANY_OPERATIONS = 3 * 2**24, 2**26
_FEW_ELEMENTS = 5 * 2**19
# A fused run holds whole blocks of 256 rows, however few there are: at so many columns 1 MiB, as much as L2 holds.
_FEW_COLUMNS = 2**10
# Cached properties of points.
_GRIDS = ("row_grid", "grid", "weight_grid")


class Points(ABC):
    """Rows of shape (n_samples, n_features) and their weights, read block by block as often as asked.

    Attributes
    ----------
    n_samples, n_features : int
    dtype : torch.dtype
        float32, float64, float16 or bfloat16: that of every block.
    device : torch.device
    sample_weight : Tensor of shape (n_samples,), float64, or None
    source : object
        Where the rows come from, if that is more than a tensor: a CSR matrix, a memory map, a function of chunks.
    answer : callable
        Turns a tensor into the kind of array that the caller gave, or that the first of the chunks is.
    ranks : Ranks
        The processes that have other rows. The rows of all count in the order of the ranks: `total` of them, of which
        the first here is number `offset`. Where a method speaks of numbers of rows, they are this process's own.
    """

    n_samples: int
    n_features: int
    dtype: torch.dtype
    device: torch.device
    sample_weight: torch.Tensor | None = None
    source: Any = None
    answer: Callable[[torch.Tensor], Any] = staticmethod(arrays.to_numpy)

    # Whether the rows lie in memory in the form that the ops read.
    resident = False
    ranks = Ranks()
    offset = 0
    _total: int | None = None

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return self.n_samples if self._total is None else self._total

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Which rows, and the rows: a tensor that is valid until the next block is asked for."""

    def operands(self) -> Iterator[tuple[slice, torch.Tensor | ops.Csr]]:
        """The blocks in the form that the ops read: dense, or sparse where the rows are."""
        return self.blocks()

    @abstractmethod
    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers (m,), in their order: a tensor of shape (m, n_features)."""

    def subset(self, rows: torch.Tensor) -> Points:
        """The rows of these numbers, and their weights, as points."""
        part = self._part(rows)
        part.sample_weight = None if self.sample_weight is None else self.sample_weight[rows]
        part.answer = self.answer
        # What sums of all rows fit, sums of some do.
        part.__dict__.update({name: self.__dict__[name] for name in _GRIDS if name in self.__dict__})
        return part

    def _part(self, rows: torch.Tensor) -> Points:
        """`subset` without the weights."""
        return InMemory(self.take(rows))

    def select(self, rows: torch.Tensor) -> torch.Tensor | ops.Csr:
        """The rows of these numbers in the form that the ops read."""
        return self.take(rows)

    def weight(self, at: slice) -> torch.Tensor | None:
        """The weights of a block."""
        return None if self.sample_weight is None else self.sample_weight[at]

    @functools.cached_property
    def row_grid(self) -> ops.Grid:
        """That of the sums of the rows without their weights (see `dcfast.ops.sum_grid`)."""
        return self._grid(None)

    @functools.cached_property
    def grid(self) -> ops.Grid:
        """That of the sums of the rows times their weights."""
        return self.row_grid if self.sample_weight is None else self._grid(self.sample_weight)

    @functools.cached_property
    def weight_grid(self) -> ops.Grid | None:
        """That of the sums of the weights, where there are any."""
        if self.sample_weight is None:
            return None
        smallest, largest = ops.column_range(self.sample_weight[:, None])
        return self._common_grid(smallest, largest, torch.float64, weighted=False)

    def _grid(self, weight: torch.Tensor | None) -> ops.Grid:
        smallest = torch.full((self.n_features,), torch.inf, dtype=torch.float64, device=self.device)
        largest = torch.zeros_like(smallest)
        with self.ranks.together():
            for at, rows in self.operands():
                low, high = ops.column_range(rows, None if weight is None else weight[at])
                smallest, largest = torch.minimum(smallest, low), torch.maximum(largest, high)
        return self._common_grid(smallest, largest, self.dtype, weight is not None)

    def _common_grid(
        self, smallest: torch.Tensor, largest: torch.Tensor, dtype: torch.dtype, weighted: bool
    ) -> ops.Grid:
        return ops.grid_of(self.ranks.minimum(smallest), self.ranks.maximum(largest), dtype, self.total, weighted)

    def fetch(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers among those of all ranks, on every rank."""
        if self.ranks.size == 1:
            return self.take(rows)
        own = torch.nonzero((rows >= self.offset) & (rows < self.offset + self.n_samples))[:, 0]
        out = torch.zeros(len(rows), self.n_features, dtype=self.dtype, device=self.device)
        with self.ranks.together():
            out[own.to(self.device)] = self.take(rows[own] - self.offset)
        # Bytes, one rank's and zeros, add up to the same bytes: as numbers -0.0 would become 0.0.
        return self.ranks.sum(out.view(torch.uint8)).view(self.dtype)

    def total_sums(self, running: ops.RunningSums) -> ops.ClusterSums:
        """The sums of all ranks."""
        if self.ranks.size == 1:
            return running.sums()
        everywhere = copy.copy(running)
        everywhere.words, everywhere.counts = self.ranks.sum(running.words), self.ranks.sum(running.counts)
        carry_(everywhere.words)
        if running.weight_grid is not None:
            everywhere.weight_words = self.ranks.sum(running.weight_words)
            carry_(everywhere.weight_words)
        return everywhere.sums()

    def assign(self, centroids: torch.Tensor) -> torch.Tensor:
        """The label of every row: (n_samples,) int64."""
        labels = torch.empty(self.n_samples, dtype=torch.int64, device=self.device)
        with self.ranks.together():
            for at, rows in self.operands():
                labels[at] = ops.assign(rows, centroids)
        return labels

    def distances(self, centroids: torch.Tensor, labels: torch.Tensor, *, weighted: bool = False) -> torch.Tensor:
        """D64 of every row and the centroid of its label, times its weight if so asked: (n_samples,) float64."""
        out = torch.empty(self.n_samples, dtype=torch.float64, device=self.device)
        with self.ranks.together():
            for at, rows in self.operands():
                out[at] = ops.point_distances(rows, centroids, labels[at], self.weight(at) if weighted else None)
        return out

    def closer(self, candidates: torch.Tensor, potential: torch.Tensor | None) -> torch.Tensor:
        """The potential RN64(w D64) of every row if each of the candidates (m, d) joins the centroids: (m, N)."""
        count, d = candidates.shape
        out = torch.empty(count, self.n_samples, dtype=torch.float64, device=self.device)
        with self.ranks.together():
            for at, rows in self.blocks():
                n, weight = rows.shape[0], self.weight(at)
                labels = torch.zeros(1, 1, dtype=torch.int64, device=rows.device).expand(count, n)
                weight = None if weight is None else weight.expand(count, n)
                out[:, at] = ops.point_distances(rows.expand(count, n, d), candidates[:, None], labels, weight)
        return out if potential is None else torch.minimum(out, potential, out=out)

    def inertia(self, centroids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The weighted sum of squared distances of the rows of all ranks, rounded once: () float64."""
        return self.ranks.exact_sum(self.distances(centroids, labels, weighted=True))

    def mean(self, *, weighted: bool = True) -> torch.Tensor:
        """The exact mean of the rows of all ranks, rounded to their dtype: (n_features,)."""
        grids = (self.grid, self.weight_grid) if weighted else (self.row_grid, None)
        sums = ops.RunningSums(1, *grids, self.device)
        with self.ranks.together():
            for at, rows in self.operands():
                first = torch.zeros(rows.shape[0], dtype=torch.int64, device=self.device)
                sums.move(rows, first, first - 1, self.weight(at) if weighted else None)
        zero = torch.zeros(1, self.n_features, dtype=self.dtype, device=self.device)
        return ops.means(self.total_sums(sums), zero)[0]

    @functools.cached_property
    def mean_variance(self) -> float:
        """The mean over the features of their variance among the rows of all ranks, without weights."""
        labels = torch.zeros(self.n_samples, dtype=torch.int64, device=self.device)
        squares = self.distances(self.mean(weighted=False)[None], labels)
        return float(self.ranks.exact_sum(squares)) / (self.total * self.n_features)

    def check_finite(self) -> None:
        """Raise ValueError with the number of NaN and infinite elements, and where the first is."""
        count, first = 0, None
        for at, rows in self.blocks():
            found, where = arrays.non_finite(rows)
            if found and first is None:
                first = (at.start + where[0], *where[1:])
            count += found
        if first is not None:
            raise ValueError(arrays.not_finite("X", count, first))


class InMemory(Points):
    """The rows of a tensor of shape (n_samples, n_features), as one block."""

    resident = True

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.n_samples, self.n_features = x.shape
        self.dtype, self.device = x.dtype, x.device

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        yield slice(0, self.n_samples), self.x

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        return self.x.index_select(0, rows.to(self.device))  # several times as fast as x[rows]

    def _part(self, rows: torch.Tensor) -> InMemory:
        part = InMemory(self.take(rows))
        if scipy.sparse.issparse(self.source):  # which a callable `init` is given
            part.source = self.source[rows.cpu().numpy()]
        return part

    def assign(self, centroids: torch.Tensor) -> torch.Tensor:
        with self.ranks.together():
            return ops.assign(self.x, centroids)

    @property
    def offsets(self) -> torch.Tensor:
        """The offsets of the one problem, for ops that take many."""
        return torch.tensor([0, self.n_samples], device="cpu")

    def is_small(self, n_clusters: int, *, n_problems: int = 1, n_samples: int | None = None) -> bool:
        """Whether `ops.lloyd` makes a whole run sooner than one op after the other does.

        Of problems of at most `n_samples` rows, by default one of all rows. An iteration by ops costs some 0.5 ms
        whatever the size; where there are more problems, every thread has its own.
        """
        n_samples = n_samples or self.n_samples
        most = _FEW_OPERATIONS if n_problems == 1 else _MANY_OPERATIONS
        served = self.device.type == "cpu" and self.dtype in (torch.float32, torch.float64) and self.ranks.size == 1
        elements = n_samples * (self.n_features + 16)
        few = n_problems > 1 or (elements <= _FEW_ELEMENTS and self.n_features <= _FEW_COLUMNS)
        return served and few and n_samples * self.n_features * n_clusters <= most and n_samples <= 2**22
