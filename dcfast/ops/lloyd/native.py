"""Launches csrc/cpu/lloyd.cpp, some problems at a time."""

from __future__ import annotations

import torch

from dcfast.ops import _native, _validate

_EMPTY = {"farthest": 0, "split": 1, "keep": 2}
_RUNNING = 3
# Operations of one call for a problem: those of a large one are left for the calls after it.
_CALL_OPERATIONS = 5e8


def lloyd(
    x: torch.Tensor,
    offsets: torch.Tensor,
    centroids: torch.Tensor,
    sample_weight: torch.Tensor | None,
    max_iter: int,
    tol: torch.Tensor,
    relative_tol: bool,
    empty: str,
    seed: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    core = _native.cpu()
    (problems, k, d), dtype = centroids.shape, _native.DTYPES[x.dtype]
    x = _native.with_adjacent_columns(x)
    centroids = centroids.clone(memory_format=torch.contiguous_format)
    labels = torch.full((x.shape[0],), -1, dtype=torch.int64)
    inertia = torch.empty(problems, dtype=torch.float64)
    n_iter, status = torch.zeros(problems, dtype=torch.int64), torch.full((problems,), _RUNNING)
    if problems == 0:
        return centroids, labels, inertia, n_iter, status
    offsets, tol, seed = offsets.contiguous(), tol.contiguous(), seed.contiguous()
    weight = None if sample_weight is None else sample_weight.contiguous()
    low, scale, n_words = _grid(x, weight)
    rows = low, scale, n_words
    if relative_tol and weight is not None:
        rows = _grid(x, None)
    row_words = rows[2] if relative_tol else 0
    n = int(offsets.diff().max())
    step = 2.0 * n * k * d
    n_threads = min(problems, _native.threads())
    # Threads that share a problem; an iteration is some four pieces of work, each shared on its own.
    team = _native.threads(step / 4) if n_threads == 1 else 1
    size = torch.empty(1, dtype=torch.int64)
    core.lloyd_workspace(dtype, n, d, k, n_words, row_words, weight is not None, team, size.data_ptr())
    bytes_ = int(size)
    workspace = _native.empty((n_threads * bytes_,), torch.uint8)
    iterations = max(1, int(_CALL_OPERATIONS / step))
    for start, stop in _native.slices(problems, step * max(1, min(max_iter, iterations)), n_threads):
        while bool((status[start:stop] == _RUNNING).any()):
            core.lloyd(
                dtype,
                x.data_ptr(),
                x.stride(0),
                offsets[start:].data_ptr(),
                stop - start,
                d,
                k,
                _native.pointer(weight),
                low.data_ptr(),
                scale.data_ptr(),
                n_words,
                rows[0].data_ptr() if relative_tol else 0,
                rows[1].data_ptr() if relative_tol else 0,
                row_words,
                max_iter,
                iterations,
                tol[start:].data_ptr(),
                _EMPTY[empty],
                seed[start:].data_ptr(),
                workspace.data_ptr(),
                bytes_,
                centroids[start:].data_ptr(),
                labels.data_ptr(),
                inertia[start:].data_ptr(),
                n_iter[start:].data_ptr(),
                status[start:].data_ptr(),
                n_threads,
                team,
            )
    return centroids, labels, inertia, n_iter, status


def _grid(x: torch.Tensor, weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor, int]:
    """`sum_grid` of the rows, with 2^-low."""
    n, d = x.shape
    n_threads = _native.threads(2.0 * x.numel())
    ranges = torch.empty(2 * n_threads * d, dtype=torch.float64)
    low, scale = torch.empty(d, dtype=torch.int64), torch.empty(d, dtype=torch.float64)
    found = torch.empty(3, dtype=torch.int64)
    _native.cpu().sum_grid(
        _native.DTYPES[x.dtype],
        x.data_ptr(),
        x.stride(0),
        n,
        d,
        _native.pointer(weight),
        n_threads,
        ranges.data_ptr(),
        low.data_ptr(),
        scale.data_ptr(),
        found.data_ptr(),
        n_threads,
    )
    n_words, lowest, highest = found.tolist()
    _validate.exact_range(lowest, highest)
    return low, scale, n_words
