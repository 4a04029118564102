"""Launches csrc/cpu/accumulate.cpp."""

from __future__ import annotations

import torch

from dcfast.ops import _native

_DTYPES = {torch.float32: 0, torch.float64: 1}
# Threads share the columns in parts of at least this many, then the rows.
_MIN_COLUMNS = 16
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
    n_threads = _native.threads()
    copies = max(1, n_threads // max(1, d // _MIN_COLUMNS))
    # The threads' copies come first, so that the result, copy 0, is a view without gaps.
    words = torch.zeros((copies, *batch, n_clusters, n_words, d), dtype=torch.int64)
    counts = torch.zeros((copies, *batch, n_clusters), dtype=torch.int64)
    scale = torch.exp2(-low.double())
    if x.dim() == 2:
        _accumulate(x, labels, n_clusters, sample_weight, scale, n_words, words, counts, n_threads)
    else:
        for b in range(batch[0]):
            weight = None if sample_weight is None else sample_weight[b]
            own_words, own_counts = words[:, b].contiguous(), counts[:, b].contiguous()
            _accumulate(x[b], labels[b], n_clusters, weight, scale, n_words, own_words, own_counts, n_threads)
            words[0, b], counts[0, b] = own_words[0], own_counts[0]
    return words[0].clone() if copies > 1 else words[0], counts[0].clone() if copies > 1 else counts[0]


def _accumulate(
    x: torch.Tensor,
    labels: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None,
    scale: torch.Tensor,
    n_words: int,
    words: torch.Tensor,
    counts: torch.Tensor,
    n_threads: int,
) -> None:
    n, d = x.shape
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    labels = labels.contiguous()
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
                n_clusters,
                0 if weight is None else weight[start:stop].data_ptr(),
                scale.data_ptr(),
                n_words,
                words.data_ptr(),
                counts.data_ptr(),
                words.shape[0],
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
    )
    return out.to(previous.dtype)
