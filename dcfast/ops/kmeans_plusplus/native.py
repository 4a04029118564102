"""Launches csrc/cpu/kmeans_plusplus.cpp, a few centroids or problems at a time, and csrc/cuda/kmeans_plusplus.cu."""

from __future__ import annotations

import functools

import torch

from dcfast.ops import _native
from dcfast.ops._dtypes import wide_dtype
from dcfast.ops.kmeans_plusplus import greedy

# The rows as int16 are kept up to this size, with which a fit stays within its 64 MiB and 64 bytes per row: read from
# memory once per centroid, instead of the rows themselves, which would be rounded every time.
_CACHE_BYTES = 60 * 2**20
# On a GPU: candidates that a row has a word of marks for, rows of a total of the draws, words of an exact sum.
_MARKS = 16
_DRAWN_TOGETHER = 1024
_SUM_WORDS = 80


def kmeans_plusplus(
    x: torch.Tensor, sample_weight: torch.Tensor | None, first: int, uniform: torch.Tensor
) -> torch.Tensor:
    if x.is_cuda:
        return _on_cuda(x, sample_weight, first, uniform)
    core, n_threads = _native.cpu(), _native.threads()
    wide = wide_dtype(x.dtype)
    rows = _native.with_adjacent_columns(x.to(wide))
    weight = None if sample_weight is None else sample_weight.contiguous()
    uniform = uniform.contiguous()
    (n, d), (steps, trials) = x.shape, uniform.shape
    cached = 2 * n * d <= _CACHE_BYTES
    bytes_ = torch.zeros(1, dtype=torch.int64)
    core.kmeans_plusplus_workspace(_native.DTYPES[wide], n, d, trials, cached, n_threads, bytes_.data_ptr())
    workspace = torch.empty(int(bytes_), dtype=torch.uint8)
    chosen = torch.empty(steps + 1, dtype=torch.int64)
    chosen[0] = first

    def run(start: int, stop: int, first: int) -> None:
        core.kmeans_plusplus(
            _native.DTYPES[wide],
            rows.data_ptr(),
            rows.stride(0),
            n,
            d,
            _native.pointer(weight),
            trials,
            cached,
            first,
            uniform[start:].data_ptr() if start < steps else 0,
            stop - start,
            workspace.data_ptr(),
            chosen[start + 1 :].data_ptr() if start < steps else 0,
            n_threads,
        )

    run(0, 0, first)
    for start, stop in _native.slices(steps, 2.0 * n * d * trials):
        run(start, stop, -1)
    return chosen


def _on_cuda(x: torch.Tensor, sample_weight: torch.Tensor | None, first: int, uniform: torch.Tensor) -> torch.Tensor:
    x = _native.with_adjacent_columns(x)
    weight = None if sample_weight is None else sample_weight.contiguous()
    (n, d), (steps, trials), device = x.shape, uniform.shape, x.device
    integers = functools.partial(torch.zeros, dtype=torch.int64, device=device)
    potential = torch.ops.dcfast.point_distances(x, x[first : first + 1], integers(n), weight)
    scale = torch.empty(1, dtype=torch.float64, device=device)
    numerators = greedy.numerators_of(uniform, device).contiguous()
    nearer = torch.zeros(-(-trials // _MARKS), n, dtype=torch.int16, device=device)
    totals, words = integers(-(-n // _DRAWN_TOGETHER)), integers(trials, _SUM_WORDS)
    sums = torch.empty(trials, dtype=torch.float64, device=device)
    rows, chosen = torch.full((trials,), first, device=device), integers(steps + 1)
    with _native.device_of(x):
        _native.cuda().kmeans_plusplus(
            _native.DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            n,
            d,
            _native.pointer(weight),
            trials,
            numerators.data_ptr(),
            steps,
            scale.data_ptr(),
            potential.data_ptr(),
            nearer.data_ptr(),
            totals.data_ptr(),
            words.data_ptr(),
            sums.data_ptr(),
            rows.data_ptr(),
            chosen.data_ptr(),
            _native.stream(device),
        )
    return chosen


def kmeans_plusplus_batch(
    x: torch.Tensor,
    offsets: torch.Tensor,
    sample_weight: torch.Tensor | None,
    first: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    if x.is_cuda:
        return greedy.kmeans_plusplus_batch(x, offsets, sample_weight, first, uniform)
    core = _native.cpu()
    wide = wide_dtype(x.dtype)
    rows = _native.with_adjacent_columns(x.to(wide))
    weight = None if sample_weight is None else sample_weight.contiguous()
    offsets, first, uniform = offsets.contiguous(), first.contiguous(), uniform.contiguous()
    (problems, steps, trials), d = uniform.shape, x.shape[1]
    chosen = torch.empty(problems, steps, dtype=torch.int64)
    if problems > 0 and steps > 0:
        n, n_threads = int(offsets.diff().max()), min(problems, _native.threads())
        size = torch.empty(1, dtype=torch.int64)
        core.kmeans_plusplus_workspace(_native.DTYPES[wide], n, d, trials, True, 1, size.data_ptr())
        bytes_ = int(size)
        workspace = torch.empty(n_threads * bytes_, dtype=torch.uint8)
        for start, stop in _native.slices(problems, 2.0 * n * d * trials * steps, n_threads):
            core.kmeans_plusplus_batch(
                _native.DTYPES[wide],
                rows.data_ptr(),
                rows.stride(0),
                offsets[start:].data_ptr(),
                stop - start,
                d,
                _native.pointer(weight),
                trials,
                first[start:].data_ptr(),
                uniform[start:].data_ptr(),
                steps,
                workspace.data_ptr(),
                bytes_,
                chosen[start:].data_ptr(),
                n_threads,
            )
    return torch.cat([first[:, None], chosen], 1)
