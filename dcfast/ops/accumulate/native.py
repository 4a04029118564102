"""Launches csrc/cpu/accumulate.cpp."""

from __future__ import annotations

import torch

from dcfast.ops import _native

_DTYPES = {torch.float32: 0, torch.float64: 1}
# Threads share the columns in parts of at least this many, then the rows.
_MIN_COLUMNS = 16
# Threads that share the rows have sums of their own, as long as those stay below this; else they share the columns.
_COPY_BYTES = 2**24
# Rows that may be added before the digits must be carried, which each native call does at its end.
_MAX_ROWS = 2**22


def accumulate(
    x: torch.Tensor,
    labels: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> tuple[torch.Tensor, torch.Tensor]:
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
    _accumulate(words, counts, x, labels, previous, sample_weight, low)


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
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    labels = labels.contiguous()
    previous = None if previous is None else previous.contiguous()
    weight = None if sample_weight is None else sample_weight.contiguous()
    for first, last in _native.slices(n, 4.0 * d * n_words):
        for start in range(first, last, _MAX_ROWS):
            stop = min(last, start + _MAX_ROWS)
            rows = x[start:stop].to(wide)
            if rows.stride(-1) != 1:
                rows = rows.contiguous()
            _native.cpu().accumulate(
                _DTYPES[wide],
                rows.data_ptr(),
                rows.stride(0),
                stop - start,
                d,
                labels[start:stop].data_ptr(),
                0 if previous is None else previous[start:stop].data_ptr(),
                k,
                0 if weight is None else weight[start:stop].data_ptr(),
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
    folds = 1
    if weight is None and d < _MIN_COLUMNS and x.is_contiguous():
        # Short rows side by side fill the lanes: columns i, i + d, ... are the same column.
        folds = _MIN_COLUMNS * 4 // d
        whole = x.shape[0] // folds * folds
        rest, x = x[whole:], x[:whole].view(-1, folds * d)
    n_threads = _native.threads(2.0 * x.numel())
    smallest = torch.full((n_threads, folds, d), torch.inf, dtype=torch.float64)
    largest = torch.zeros((n_threads, folds, d), dtype=torch.float64)
    _column_range(x, weight, smallest, largest)
    low, high = smallest.amin((0, 1)), largest.amax((0, 1))
    if folds > 1 and rest.shape[0] > 0:
        smallest, largest = low.expand(n_threads, d).contiguous(), high.expand(n_threads, d).contiguous()
        _column_range(rest, None, smallest, largest)
        low, high = smallest.amin(0), largest.amax(0)
    return low, high


def _column_range(x: torch.Tensor, weight: torch.Tensor | None, smallest: torch.Tensor, largest: torch.Tensor) -> None:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    n_threads = smallest.shape[0]
    for start, stop in _native.slices(x.shape[0], 2.0 * x.shape[1]):
        rows = x[start:stop].to(wide)
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        _native.cpu().column_range(
            _DTYPES[wide],
            rows.data_ptr(),
            rows.stride(0),
            stop - start,
            x.shape[1],
            0 if weight is None else weight[start:stop].data_ptr(),
            smallest.data_ptr(),
            largest.data_ptr(),
            n_threads,
            n_threads,
        )


def means(words: torch.Tensor, low: torch.Tensor, total: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    n_words, d = words.shape[-2:]
    wide = torch.float64 if previous.dtype == torch.float64 else torch.float32
    previous_wide = previous.to(wide).contiguous()
    out = torch.empty(previous.shape, dtype=wide)
    words, total, low = words.contiguous(), total.contiguous(), low.contiguous()
    _native.cpu().means(
        _DTYPES[wide],
        words.data_ptr(),
        total.numel(),
        n_words,
        d,
        low.data_ptr(),
        total.data_ptr(),
        previous_wide.data_ptr(),
        out.data_ptr(),
        _native.threads(10.0 * out.numel()),
    )
    return out.to(previous.dtype)
