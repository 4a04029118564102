"""Launches csrc/cpu/inertia.cpp and csrc/cuda/inertia.cu."""

from __future__ import annotations

import torch

from dcfast.ops import _native
from dcfast.ops._dtypes import wide_dtype

_SUM_WORDS = 80


def point_distances(
    x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None
) -> torch.Tensor:
    if x.is_cuda:
        return _point_distances_on_cuda(x, centroids, labels, sample_weight)
    out = _native.empty(x.shape[:-1], torch.float64)
    if x.dim() == 2:
        _point_distances(x, centroids, labels, sample_weight, out)
    else:
        for b in range(x.shape[0]):
            weight = None if sample_weight is None else sample_weight[b]
            _point_distances(x[b], centroids[b], labels[b], weight, out[b])
    return out


def _point_distances_on_cuda(
    x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None
) -> torch.Tensor:
    out = torch.empty(x.shape[:-1], dtype=torch.float64, device=x.device)
    if out.numel() == 0:
        return out
    x = _native.with_adjacent_columns(x)
    if x.dim() == 2:
        x = x[None]
    labels, centroids = labels.contiguous(), centroids.contiguous()
    weight = None if sample_weight is None else sample_weight.contiguous()
    with _native.device_of(x):
        _native.cuda().point_distances(
            _native.DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            x.stride(1),
            *x.shape,
            centroids.data_ptr(),
            centroids.shape[-2],
            labels.data_ptr(),
            _native.pointer(weight),
            out.data_ptr(),
            _native.stream(x.device),
        )
    return out


def _point_distances(
    x: torch.Tensor,
    centroids: torch.Tensor,
    labels: torch.Tensor,
    sample_weight: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    (n, d), n_threads = x.shape, _native.threads(3.0 * x.numel())
    wide = wide_dtype(x.dtype)
    centroids, labels = centroids.to(wide).contiguous(), labels.contiguous()
    weight = None if sample_weight is None else sample_weight.contiguous()
    for start, stop in _native.slices(n, 3.0 * d):
        rows = _native.with_adjacent_columns(x[start:stop].to(wide))
        _native.cpu().point_distances(
            _native.DTYPES[wide],
            rows.data_ptr(),
            rows.stride(0),
            stop - start,
            d,
            centroids.data_ptr(),
            centroids.shape[0],
            labels[start:stop].data_ptr(),
            _native.pointer(weight, start),
            out[start:stop].data_ptr(),
            n_threads,
        )


def _exact_sum_on_cuda(values: torch.Tensor) -> torch.Tensor:
    out = torch.empty(values.shape[:-1], dtype=torch.float64, device=values.device)
    if out.numel() > 0:
        values = values.contiguous()
        words = torch.zeros(out.numel(), _SUM_WORDS, dtype=torch.int64, device=values.device)
        with _native.device_of(values):
            _native.cuda().exact_sum(
                values.data_ptr(),
                out.numel(),
                values.shape[-1],
                words.data_ptr(),
                out.data_ptr(),
                _native.stream(values.device),
            )
    return out


def exact_sum(values: torch.Tensor) -> torch.Tensor:
    if values.is_cuda:
        return _exact_sum_on_cuda(values)
    out = torch.empty(values.shape[:-1], dtype=torch.float64)
    n_threads = _native.threads(10.0 * values.shape[-1])
    flat = out.view(-1)
    for row, one in enumerate(values.reshape(flat.numel(), values.shape[-1]).contiguous()):
        words = torch.zeros(n_threads * _SUM_WORDS, dtype=torch.int64)
        for start, stop in _native.slices(one.shape[0], 10.0):
            _native.cpu().exact_sum_add(one[start:stop].data_ptr(), stop - start, words.data_ptr(), n_threads)
        _native.cpu().exact_sum_round(words.data_ptr(), n_threads, flat[row:].data_ptr())
    return out
