"""accumulate and means: exact sums per cluster, and the centroids they round to."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dcfast.ops import _registry, _validate, csr
from dcfast.ops.accumulate.grid import Grid, check_grid, check_weight, grid_of, range_op, sum_grid
from dcfast.ops.csr import Csr

__all__ = [
    "ClusterSums",
    "Grid",
    "RunningSums",
    "accumulate",
    "check_grid",
    "check_weight",
    "column_range",
    "grid_of",
    "means",
    "sum_grid",
]

_NOT_FINITE = "x has non-finite rows with a label: give them the label -1, as assign does"


class ClusterSums(NamedTuple):
    """Exact sums of the members of every cluster.

    Attributes
    ----------
    words : Tensor of shape (k, n_words, d) or (B, k, n_words, d), int64
        The sum of column i is the sum over w of words[:, w, i] * 2^(grid.low[i] + 40 w). All but the top word
        lie in [0, 2^40), so equal sums have equal words.
    counts : Tensor of shape (k,) or (B, k), int64
        Members of positive weight.
    total : Tensor of shape (k,) or (B, k), float64
        RN64 of the exact sum of the members' weights; the counts without weights.
    grid : Grid
        Units of the words.
    """

    words: torch.Tensor
    counts: torch.Tensor
    total: torch.Tensor
    grid: Grid


def _check_accumulate(
    x: torch.Tensor,
    labels: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> None:
    _validate.points(x, "x")
    _validate.integers(labels, "labels", x.shape[:-1])
    _validate.same_device(labels, "labels", x)
    if n_clusters < 1:
        raise ValueError(f"n_clusters={n_clusters}: expected at least 1")
    if sample_weight is not None:
        check_weight(sample_weight, x)
    check_grid(low, n_words, x)


def _fake_accumulate(
    x: torch.Tensor,
    labels: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, d = x.shape[:-2], x.shape[-1]
    words = x.new_empty((*batch, n_clusters, n_words, d), dtype=torch.int64)
    return words, x.new_empty((*batch, n_clusters), dtype=torch.int64)


_accumulate = _registry.define(
    "accumulate",
    "(Tensor x, Tensor labels, int n_clusters, Tensor? sample_weight, Tensor low, int n_words) -> (Tensor, Tensor)",
    package=__name__,
    check=_check_accumulate,
    fake=_fake_accumulate,
    native_cpu=("accumulate",),
    native_cuda=("accumulate",),
)


def _check_moves(
    words: torch.Tensor,
    counts: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    previous: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
) -> None:
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: accumulate_moves takes one problem, of shape (N, d)")
    _validate.sums(words, counts)
    _check_accumulate(x, labels, words.shape[0], sample_weight, low, words.shape[1])
    _validate.integers(words, "words", (*words.shape[:2], x.shape[1]))
    _validate.integers(previous, "previous", labels.shape)


_accumulate_moves = _registry.define(
    "accumulate_moves",
    "(Tensor(a!) words, Tensor(b!) counts, Tensor x, Tensor labels, Tensor previous, Tensor? sample_weight, Tensor low)"
    " -> ()",
    package=__name__,
    check=_check_moves,
    fake=lambda words, counts, x, labels, previous, sample_weight, low: None,
    native_cpu=("accumulate",),
    native_cuda=("accumulate",),
)


def _check_means(words: torch.Tensor, low: torch.Tensor, total: torch.Tensor, previous: torch.Tensor) -> None:
    _validate.points(previous, "previous")
    expected = (*previous.shape[:-1], words.shape[-2] if words.dim() >= 2 else 1, previous.shape[-1])
    _validate.integers(words, "words", expected)
    _validate.integers(low, "low", (previous.shape[-1],))
    if total.dtype != torch.float64 or total.shape != previous.shape[:-1]:
        raise ValueError(f"total is {total.dtype} {tuple(total.shape)}: expected float64 {tuple(previous.shape[:-1])}")


_means = _registry.define(
    "means",
    "(Tensor words, Tensor low, Tensor total, Tensor previous) -> Tensor",
    package=__name__,
    check=_check_means,
    fake=lambda words, low, total, previous: torch.empty_like(previous, memory_format=torch.contiguous_format),
    native_cpu=("means",),
    native_cuda=("means",),
)


def accumulate(
    x: torch.Tensor | Csr,
    labels: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None = None,
    grid: Grid | None = None,
) -> ClusterSums:
    """Sum the rows of every cluster exactly.

    The sum of a cluster is the real number sum_i RN64(w_i x_i) over its members, not rounded: whatever the order,
    the threads, the chunks or the device, the words are the same.

    Parameters
    ----------
    x : Tensor of shape (N, d) or (B, N, d)
        float32, float64, float16 or bfloat16. Or Csr of shape (N, d).
    labels : Tensor of shape (N,) or (B, N), int64
        Rows whose label is outside [0, n_clusters) are left out.
    n_clusters : int
        k, at least 1.
    sample_weight : Tensor of shape (N,) or (B, N), float64, optional
        Finite and non-negative.
    grid : Grid, optional
        From `sum_grid`; found from `x` (a pass over it, and on a GPU a synchronisation) if not given. With a grid
        of the caller's, rows with a label must be finite and fit it.

    Returns
    -------
    ClusterSums
        Words, counts, total weights and the grid.

    Raises
    ------
    ValueError
        If shapes do not fit, if a labelled row is not finite, or if float64 data lies beyond 2^+-480.
    TypeError
        If a dtype is not one of those above.

    Notes
    -----
    O(N d) operations; 8 n_words bytes per element of the result, twice that for few columns and two threads.
    """
    if isinstance(x, Csr):
        if grid is None:
            grid = grid_of(*column_range(x, sample_weight), x.dtype, x.shape[0], sample_weight is not None)
            owner = labels.repeat_interleave(x.indptr.diff())
            if not bool(x.values.isfinite()[(owner >= 0) & (owner < n_clusters)].all()):
                raise ValueError(_NOT_FINITE)
        running = RunningSums(n_clusters, grid, None if sample_weight is None else sum_grid(sample_weight[:, None]))
        running.move(x, labels, torch.full_like(labels, -1), sample_weight)
        return running.sums()
    if grid is None:
        _validate.points(x, "x")
        grid = sum_grid(x, sample_weight)
        inside = (labels >= 0) & (labels < n_clusters)
        if inside.shape == x.shape[:-1] and not bool(x.isfinite().all(-1)[inside].all()):
            raise ValueError(_NOT_FINITE)
    words, counts = _accumulate(x, labels, n_clusters, sample_weight, *grid)
    if sample_weight is None:
        return ClusterSums(words, counts, counts.double(), grid)
    column = sample_weight[..., None]
    weight_grid = sum_grid(column)
    total_words, _ = _accumulate(column, labels, n_clusters, None, *weight_grid)
    return ClusterSums(words, counts, _rounded(total_words, weight_grid), grid)


def column_range(x: torch.Tensor | Csr, sample_weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest non-zero and the largest magnitude in every column of w x, over the finite elements.

    Parameters
    ----------
    x : Tensor of shape (N, d) or (B, N, d), or Csr of shape (N, d)
    sample_weight : Tensor of shape (N,) or (B, N), float64, optional

    Returns
    -------
    smallest, largest : Tensor of shape (d,), float64
        Infinity and 0 where a column has no such element. Ranges of parts combine by minimum and maximum.
    """
    return csr.column_range(x, sample_weight) if isinstance(x, Csr) else range_op(x, sample_weight)


def _rounded(words: torch.Tensor, grid: Grid) -> torch.Tensor:
    """RN64 of sums of one column: (..., k, n_words, 1) -> (..., k)."""
    one = torch.ones(*words.shape[:-2], 1, dtype=torch.float64, device=words.device)
    return _means(words, grid.low, one[..., 0], one)[..., 0]


class RunningSums:
    """Exact sums that follow the labels: only the rows that changed their cluster are added and subtracted.

    Parameters
    ----------
    n_clusters : int
    grid : Grid
        `sum_grid` of all rows.
    weight_grid : Grid, optional
        That of the weights, as a column, where rows have weights.
    device : torch.device
    """

    def __init__(
        self, n_clusters: int, grid: Grid, weight_grid: Grid | None = None, device: torch.device | None = None
    ) -> None:
        self.grid, self.weight_grid = grid, weight_grid
        d = grid.low.shape[0]
        self.words = torch.zeros(n_clusters, grid.n_words, d, dtype=torch.int64, device=device)
        self.counts = torch.zeros(n_clusters, dtype=torch.int64, device=device)
        if weight_grid is not None:
            self.weight_words = torch.zeros(n_clusters, weight_grid.n_words, 1, dtype=torch.int64, device=device)

    def move(
        self,
        x: torch.Tensor | Csr,
        labels: torch.Tensor,
        previous: torch.Tensor,
        sample_weight: torch.Tensor | None = None,
    ) -> None:
        """Move the rows of `x` (N, d) from the clusters `previous` (N,) to `labels` (N,); -1 is none.

        Parts of the data may be moved one after the other. Costs O(moved rows d + k d); of sparse rows their non-zeros.

        Raises
        ------
        ValueError
            If shapes do not fit, or if there are weights without a `weight_grid` or the other way round.
        """
        if (sample_weight is None) != (self.weight_grid is None):
            given, missing = (
                ("weight_grid", "sample_weight") if sample_weight is None else ("sample_weight", "weight_grid")
            )
            raise ValueError(f"{given} is given and {missing} is not: rows with weights need both")
        if isinstance(x, Csr):
            csr.accumulate_moves(self.words, self.counts, x, labels, previous, sample_weight, self.grid.low)
        else:
            _accumulate_moves(self.words, self.counts, x, labels, previous, sample_weight, self.grid.low)
        if self.weight_grid is not None and sample_weight is not None:
            unused = torch.zeros_like(self.counts)
            column = sample_weight[:, None]
            _accumulate_moves(self.weight_words, unused, column, labels, previous, None, self.weight_grid.low)

    def sums(self) -> ClusterSums:
        """What `accumulate` returns for the labels as they are; the words are those that later moves change."""
        total = self.counts.double() if self.weight_grid is None else _rounded(self.weight_words, self.weight_grid)
        return ClusterSums(self.words, self.counts, total, self.grid)


def means(sums: ClusterSums, previous: torch.Tensor) -> torch.Tensor:
    """Centroids: RN_T(RN64(S) / RN64(W)) of exact sums S and weights W.

    Parameters
    ----------
    sums : ClusterSums
        From `accumulate`.
    previous : Tensor of shape (k, d) or (B, k, d)
        Its dtype T is the result's; its rows stay where a cluster's weight is 0.

    Returns
    -------
    Tensor of the shape and dtype of `previous`

    Raises
    ------
    ValueError
        If `previous` does not have a row for every cluster.
    """
    return _means(sums.words, sums.grid.low, sums.total, previous)
