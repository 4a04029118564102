"""Launches csrc/cpu/inertia.cpp."""

from __future__ import annotations

import torch

from dcfast.ops import _native

_DTYPES = {torch.float32: 0, torch.float64: 1}
_SUM_WORDS = 80


def point_distances(
    x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None
) -> torch.Tensor:
    out = _native.empty(x.shape[:-1], torch.float64)
    if x.dim() == 2:
        _point_distances(x, centroids, labels, sample_weight, out)
    else:
        for b in range(x.shape[0]):
            weight = None if sample_weight is None else sample_weight[b]
            _point_distances(x[b], centroids[b], labels[b], weight, out[b])
    return out


def _point_distances(
    x: torch.Tensor,
    centroids: torch.Tensor,
    labels: torch.Tensor,
    sample_weight: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    (n, d), n_threads = x.shape, _native.threads(3.0 * x.numel())
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    centroids, labels = centroids.to(wide).contiguous(), labels.contiguous()
    weight = None if sample_weight is None else sample_weight.contiguous()
    for start, stop in _native.slices(n, 3.0 * d):
        rows = x[start:stop].to(wide)
        if rows.stride(-1) != 1:
            rows = rows.contiguous()
        _native.cpu().point_distances(
            _DTYPES[wide],
            rows.data_ptr(),
            rows.stride(0),
            stop - start,
            d,
            centroids.data_ptr(),
            centroids.shape[0],
            labels[start:stop].data_ptr(),
            0 if weight is None else weight[start:stop].data_ptr(),
            out[start:stop].data_ptr(),
            n_threads,
        )


def exact_sum(values: torch.Tensor) -> torch.Tensor:
    out = torch.empty(values.shape[:-1], dtype=torch.float64)
    n_threads = _native.threads(10.0 * values.shape[-1])
    flat = out.view(-1)
    for row, one in enumerate(values.reshape(flat.numel(), values.shape[-1]).contiguous()):
        words = torch.zeros(n_threads * _SUM_WORDS, dtype=torch.int64)
        for start, stop in _native.slices(one.shape[0], 10.0):
            _native.cpu().exact_sum_add(one[start:stop].data_ptr(), stop - start, words.data_ptr(), n_threads)
        _native.cpu().exact_sum_round(words.data_ptr(), n_threads, flat[row:].data_ptr())
    return out
