"""The definition: the dense ops, on blocks of rows made dense."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dcfast.ops.csr.rows import Csr

# Elements of a block.
_BLOCK_ELEMENTS = 2**22


def _blocks(
    indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, d: int
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Which rows, and the rows."""
    n, step = indptr.shape[0] - 1, max(1, _BLOCK_ELEMENTS // d)
    for start in range(0, n, step):
        at = slice(start, min(n, start + step))
        yield at, Csr(indptr, indices, values, d).part(at).dense()


def csr_assign(
    indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, centroids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.empty(indptr.shape[0] - 1, dtype=torch.int64)
    for at, rows in _blocks(indptr, indices, values, centroids.shape[1]):
        labels[at] = torch.ops.dcfast.assign(rows, centroids)
    return labels, torch.tensor(labels.shape[0])


def csr_accumulate_moves(
    words: torch.Tensor,
    counts: torch.Tensor,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    labels: torch.Tensor,
    previous: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
) -> None:
    for at, rows in _blocks(indptr, indices, values, words.shape[2]):
        weight = None if sample_weight is None else sample_weight[at]
        torch.ops.dcfast.accumulate_moves(words, counts, rows, labels[at], previous[at], weight, low)


def csr_column_range(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    n_features: int,
    sample_weight: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    smallest = torch.full((n_features,), torch.inf, dtype=torch.float64)
    largest = torch.zeros_like(smallest)
    for at, rows in _blocks(indptr, indices, values, n_features):
        low, high = torch.ops.dcfast.column_range(rows, None if sample_weight is None else sample_weight[at])
        smallest, largest = torch.minimum(smallest, low), torch.maximum(largest, high)
    return smallest, largest


def csr_point_distances(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    centroids: torch.Tensor,
    labels: torch.Tensor,
    sample_weight: torch.Tensor | None,
) -> torch.Tensor:
    out = torch.empty(indptr.shape[0] - 1, dtype=torch.float64)
    for at, rows in _blocks(indptr, indices, values, centroids.shape[1]):
        weight = None if sample_weight is None else sample_weight[at]
        out[at] = torch.ops.dcfast.point_distances(rows, centroids, labels[at], weight)
    return out


def csr_closer(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    candidates: torch.Tensor,
    closest: torch.Tensor | None,
    sample_weight: torch.Tensor | None,
) -> torch.Tensor:
    n = indptr.shape[0] - 1
    out = torch.empty(candidates.shape[0], n, dtype=torch.float64)
    for c in range(candidates.shape[0]):
        labels = torch.full((n,), c)
        out[c] = csr_point_distances(indptr, indices, values, candidates, labels, sample_weight)
    return out if closest is None else torch.minimum(out, closest)
