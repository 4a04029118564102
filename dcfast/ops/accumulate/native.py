"""Launches csrc/cpu/accumulate.cpp, and csrc/cuda/accumulate.cu, means.cu and column_range.cu."""

from __future__ import annotations

import torch

from dcfast.ops import _native
from dcfast.ops._dtypes import wide_dtype

# Threads share the columns in parts of at least this many, then the rows.
_MIN_COLUMNS = 16
# Threads that share the rows have sums of their own, as long as those stay below this; else they share the columns.
_COPY_BYTES = 2**24
# Rows that may be added before the digits must be carried, which each native call does at its end.
_MAX_ROWS = 2**22
# Rows of all problems in one call on a GPU.
_MAX_CUDA_ROWS = 2**29


def accumulate(
    x: torch.Tensor,
    labels: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    if x.is_cuda:
        return _accumulate_on_cuda(x, labels, n_clusters, sample_weight, low, n_words)
    batch, d = x.shape[:-2], x.shape[-1]
    words = torch.zeros((*batch, n_clusters, n_words, d), dtype=torch.int64)
    counts = torch.zeros((*batch, n_clusters), dtype=torch.int64)
    if x.dim() == 2:
        _accumulate(words, counts, x, labels, None, sample_weight, low)
    else:
        for b in range(batch[0]):
            weight = None if sample_weight is None else sample_weight[b]
            _accumulate(words[b], counts[b], x[b], labels[b], None, weight, low)
    return words, counts


def accumulate_moves(
    words: torch.Tensor,
    counts: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    previous: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
) -> None:
    if x.is_cuda:
        _add_on_cuda(words, counts, x, labels, previous, sample_weight, low, fresh=False)
    else:
        _accumulate(words, counts, x, labels, previous, sample_weight, low)


def _accumulate_on_cuda(
    x: torch.Tensor,
    labels: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, d = x.shape[:-2], x.shape[-1]
    make = torch.empty if labels.numel() > 0 else torch.zeros
    words = make((*batch, n_clusters, n_words, d), dtype=torch.int64, device=x.device)
    counts = make((*batch, n_clusters), dtype=torch.int64, device=x.device)
    _add_on_cuda(words, counts, x, labels, None, sample_weight, low, fresh=True)
    return words, counts


def _add_on_cuda(
    words: torch.Tensor,
    counts: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    previous: torch.Tensor | None,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    *,
    fresh: bool,
) -> None:
    """Add to words and counts, which hold nothing yet if `fresh`, some rows of every problem at a time."""
    if labels.numel() == 0:
        return
    x = _native.with_adjacent_columns(x)
    if x.dim() == 2:
        x, labels = x[None], labels[None]
        previous = None if previous is None else previous[None]
        sample_weight = None if sample_weight is None else sample_weight[None]
    (problems, n, d), (k, n_words) = x.shape, (counts.shape[-1], words.shape[-2])
    low = low.to(x.device).contiguous()
    step = max(1, _MAX_CUDA_ROWS // problems)
    size = torch.empty(1, dtype=torch.int64)
    for start in range(0, n, step):
        at = slice(start, start + step)
        rows, own = x[:, at], labels[:, at].contiguous()
        before = None if previous is None else previous[:, at].contiguous()
        weight = None if sample_weight is None else sample_weight[:, at].contiguous()
        arguments = (
            _native.DTYPES[x.dtype],
            rows.data_ptr(),
            rows.stride(0),
            rows.stride(1),
            problems,
            rows.shape[1],
            d,
            own.data_ptr(),
            _native.pointer(before),
            k,
            _native.pointer(weight),
            low.data_ptr(),
            n_words,
            fresh and start == 0,
            words.data_ptr(),
            counts.data_ptr(),
        )
        with _native.device_of(x):
            stream = _native.stream(x.device)
            _native.cuda().accumulate(*arguments, 0, size.data_ptr(), stream)
            workspace = torch.empty(int(size), dtype=torch.uint8, device=x.device)
            _native.cuda().accumulate(*arguments, workspace.data_ptr(), 0, stream)


def _accumulate(
    words: torch.Tensor,
    counts: torch.Tensor,
    x: torch.Tensor,
    labels: torch.Tensor,
    previous: torch.Tensor | None,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
) -> None:
    (n, d), (k, n_words) = x.shape, words.shape[:2]
    n_threads = _native.threads(4.0 * n * d * n_words)
    more_copies = _COPY_BYTES // (words.element_size() * max(1, words.numel()))
    copies = max(1, min(n_threads // max(1, d // _MIN_COLUMNS), 1 + more_copies))
    partial = torch.zeros((copies - 1, k, n_words, d), dtype=torch.int64)
    partial_counts = torch.zeros((copies - 1, k), dtype=torch.int64)
    scale = torch.exp2(-low.double())
    wide = wide_dtype(x.dtype)
    labels = labels.contiguous()
    previous = None if previous is None else previous.contiguous()
    weight = None if sample_weight is None else sample_weight.contiguous()
    for first, last in _native.slices(n, 4.0 * d * n_words):
        for start in range(first, last, _MAX_ROWS):
            stop = min(last, start + _MAX_ROWS)
            rows = _native.with_adjacent_columns(x[start:stop].to(wide))
            _native.cpu().accumulate(
                _native.DTYPES[wide],
                rows.data_ptr(),
                rows.stride(0),
                stop - start,
                d,
                labels[start:stop].data_ptr(),
                _native.pointer(previous, start),
                k,
                _native.pointer(weight, start),
                scale.data_ptr(),
                n_words,
                words.data_ptr(),
                counts.data_ptr(),
                partial.data_ptr(),
                partial_counts.data_ptr(),
                copies,
                n_threads,
            )


def column_range(x: torch.Tensor, sample_weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    d = x.shape[-1]
    x = x.flatten(0, -2)
    weight = None if sample_weight is None else sample_weight.flatten().contiguous()
    if x.is_cuda:
        return _column_range_on_cuda(x, weight)
    n_threads = _native.threads(2.0 * x.numel())
    smallest = torch.full((n_threads, d), torch.inf, dtype=torch.float64)
    largest = torch.zeros((n_threads, d), dtype=torch.float64)
    wide = wide_dtype(x.dtype)
    for start, stop in _native.slices(x.shape[0], 2.0 * d):
        rows = _native.with_adjacent_columns(x[start:stop].to(wide))
        _native.cpu().column_range(
            _native.DTYPES[wide],
            rows.data_ptr(),
            rows.stride(0),
            stop - start,
            d,
            _native.pointer(weight, start),
            smallest.data_ptr(),
            largest.data_ptr(),
            n_threads,
            n_threads,
        )
    return smallest.amin(0), largest.amax(0)


def _column_range_on_cuda(x: torch.Tensor, weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    n, d = x.shape
    x = _native.with_adjacent_columns(x)
    smallest = torch.full((d,), torch.inf, dtype=torch.float64, device=x.device)
    largest = torch.zeros(d, dtype=torch.float64, device=x.device)
    if n > 0:
        with _native.device_of(x):
            _native.cuda().column_range(
                _native.DTYPES[x.dtype],
                x.data_ptr(),
                x.stride(0),
                n,
                d,
                _native.pointer(weight),
                smallest.data_ptr(),
                largest.data_ptr(),
                _native.stream(x.device),
            )
    return smallest, largest


def means(words: torch.Tensor, low: torch.Tensor, total: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    wide = wide_dtype(previous.dtype)
    previous_wide = previous.to(wide).contiguous()
    low = low.to(words.device).contiguous()
    run = _means_on_cuda if words.is_cuda else _means_on_cpu
    return run(words.contiguous(), low, total.contiguous(), previous_wide).to(previous.dtype)


def _means_on_cpu(words: torch.Tensor, low: torch.Tensor, total: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    n_words, d = words.shape[-2:]
    out = torch.empty(previous.shape, dtype=previous.dtype)
    _native.cpu().means(
        _native.DTYPES[out.dtype],
        words.data_ptr(),
        total.numel(),
        n_words,
        d,
        low.data_ptr(),
        total.data_ptr(),
        previous.data_ptr(),
        out.data_ptr(),
        _native.threads(10.0 * out.numel()),
    )
    return out


def _means_on_cuda(words: torch.Tensor, low: torch.Tensor, total: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    n_words, d = words.shape[-2:]
    out = torch.empty(previous.shape, dtype=previous.dtype, device=words.device)
    if out.numel() > 0:
        with _native.device_of(words):
            _native.cuda().means(
                _native.DTYPES[out.dtype],
                words.data_ptr(),
                total.numel(),
                n_words,
                d,
                low.data_ptr(),
                total.data_ptr(),
                previous.data_ptr(),
                out.data_ptr(),
                _native.stream(words.device),
            )
    return out
