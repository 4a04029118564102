"""Launches csrc/cpu/csr.cpp."""

from __future__ import annotations

import torch

from dcfast.ops import _native

# Rows that a thread takes at once.
_BLOCK_ROWS = 64
# Rows that may be added before the digits must be carried, which each native call does at its end.
_MAX_ROWS = 2**22
_LANES = 4  # candidates side by side
# Elements of a thread's scratch in point_distances.
_SCRATCH = 2**14


def _kind(indices: torch.Tensor, values: torch.Tensor) -> tuple[int, bool]:
    """The first two arguments of every function."""
    return _native.DTYPES[values.dtype], indices.dtype == torch.int64


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _mean_length(indptr: torch.Tensor) -> float:
    """Non-zeros per row, for the slices."""
    return float(indptr[-1] - indptr[0]) / max(1, indptr.shape[0] - 1) + 1.0


def csr_assign(
    indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, centroids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    core, centroids = _native.cpu(), centroids.contiguous()
    n, (k, d), (dtype, wide) = indptr.shape[0] - 1, centroids.shape, _kind(indices, values)
    labels, rechecked = torch.empty(n, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    per_row = 2.0 * k * _mean_length(indptr)
    n_threads = _native.threads(per_row * n + float(d) * k)
    sizes = torch.zeros(2, dtype=torch.int64)
    core.csr_assign_workspace(dtype, k, d, sizes.data_ptr())
    workspace = torch.empty(int(sizes[0]), dtype=torch.uint8)
    scratch = torch.zeros(int(sizes[1]) * n_threads, dtype=torch.uint8)
    core.csr_assign_prepare(dtype, centroids.data_ptr(), k, d, workspace.data_ptr(), n_threads)
    for start, stop in _native.slices(n, per_row, _BLOCK_ROWS * n_threads):
        core.csr_assign(
            dtype,
            wide,
            indptr[start:].data_ptr(),
            indices.data_ptr(),
            values.data_ptr(),
            stop - start,
            d,
            centroids.data_ptr(),
            k,
            workspace.data_ptr(),
            scratch.data_ptr(),
            labels[start:].data_ptr(),
            rechecked.data_ptr(),
            n_threads,
        )
    return labels, rechecked[0].clone()  # an op returns no part of a tensor


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
    n, (k, n_words, d) = indptr.shape[0] - 1, words.shape
    labels, previous, weight = labels.contiguous(), previous.contiguous(), _contiguous(sample_weight)
    scale = torch.exp2(-low.double())
    per_row = 8.0 * n_words * _mean_length(indptr)
    n_threads = _native.threads(per_row * n + words.numel())
    for first, last in _native.slices(n, per_row):
        for start in range(first, last, _MAX_ROWS):
            _native.cpu().csr_accumulate(
                *_kind(indices, values),
                indptr[start:].data_ptr(),
                indices.data_ptr(),
                values.data_ptr(),
                min(last, start + _MAX_ROWS) - start,
                d,
                labels[start:].data_ptr(),
                previous[start:].data_ptr(),
                k,
                _native.pointer(weight, start),
                scale.data_ptr(),
                n_words,
                words.data_ptr(),
                counts.data_ptr(),
                n_threads,
            )


def csr_column_range(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    n_features: int,
    sample_weight: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    n, per_row, weight = indptr.shape[0] - 1, 4.0 * _mean_length(indptr), _contiguous(sample_weight)
    n_threads = _native.threads(per_row * n)
    smallest = torch.full((n_threads, n_features), torch.inf, dtype=torch.float64)
    largest = torch.zeros_like(smallest)
    for start, stop in _native.slices(n, per_row):
        _native.cpu().csr_column_range(
            *_kind(indices, values),
            indptr[start:].data_ptr(),
            indices.data_ptr(),
            values.data_ptr(),
            stop - start,
            n_features,
            _native.pointer(weight, start),
            smallest.data_ptr(),
            largest.data_ptr(),
            n_threads,
        )
    return smallest.amin(0), largest.amax(0)


def csr_point_distances(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    centroids: torch.Tensor,
    labels: torch.Tensor,
    sample_weight: torch.Tensor | None,
) -> torch.Tensor:
    n, (k, d) = indptr.shape[0] - 1, centroids.shape
    centroids, labels, weight = centroids.contiguous(), labels.contiguous(), _contiguous(sample_weight)
    out = _native.empty((n,), torch.float64)
    n_threads = _native.threads(3.0 * n * d)
    scratch = torch.zeros(n_threads, _SCRATCH, dtype=values.dtype)
    order = torch.argsort(labels)
    for start, stop in _native.slices(n, float(d), _BLOCK_ROWS * n_threads):
        _native.cpu().csr_point_distances(
            *_kind(indices, values),
            indptr.data_ptr(),
            indices.data_ptr(),
            values.data_ptr(),
            order[start:].data_ptr(),
            stop - start,
            d,
            centroids.data_ptr(),
            k,
            labels.data_ptr(),
            _native.pointer(weight, 0),
            scratch.data_ptr(),
            out.data_ptr(),
            n_threads,
        )
    return out


def csr_closer(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    candidates: torch.Tensor,
    closest: torch.Tensor | None,
    sample_weight: torch.Tensor | None,
) -> torch.Tensor:
    n, (m, d) = indptr.shape[0] - 1, candidates.shape
    closest, weight = _contiguous(closest), _contiguous(sample_weight)
    out = torch.empty(m, n, dtype=torch.float64)
    # The candidates in CSR as well, and as columns side by side.
    row, column = candidates.nonzero(as_tuple=True)
    own_indptr = torch.zeros(m + 1, dtype=torch.int64)
    torch.cumsum(torch.bincount(row, minlength=m), 0, out=own_indptr[1:])
    own_values = candidates[row, column]
    width = -(-m // _LANES) * _LANES
    columns = torch.zeros(d, width, dtype=torch.float64)
    columns[column, row] = own_values.double()
    squares = torch.zeros(width, dtype=torch.float64).index_add_(0, row, own_values.double().square())
    per_row = 4.0 * width * _mean_length(indptr)
    n_threads = _native.threads(per_row * n)
    for start, stop in _native.slices(n, per_row, _BLOCK_ROWS * n_threads):
        _native.cpu().csr_closer(
            *_kind(indices, values),
            indptr[start:].data_ptr(),
            indices.data_ptr(),
            values.data_ptr(),
            stop - start,
            d,
            own_indptr.data_ptr(),
            column.data_ptr(),
            own_values.data_ptr(),
            m,
            width,
            columns.data_ptr(),
            squares.data_ptr(),
            _native.pointer(weight, start),
            _native.pointer(closest, start),
            out[:, start:].data_ptr(),
            n,
            n_threads,
        )
    return out
