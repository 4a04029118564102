"""Launches csrc/cpu/assign.cpp (prepares the centroids once, then hands it slices of rows) and csrc/cuda/assign.cu."""

from __future__ import annotations

import torch

from dcfast.ops import _native
from dcfast.ops._dtypes import wide_dtype
from dcfast.ops.assign import anew

# Every block of packed rows but the last of a slice is full.
_BLOCK_ROWS = 96


def assign(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    if not x.is_cuda:
        return _assign_on_cpu(x, centroids)
    return assign_on_cuda(x, centroids, torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device))


def assign_on_cuda(x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Fill and return `labels`."""
    if labels.numel() == 0:
        return labels
    rows, columns = (x[None], centroids[None]) if x.dim() == 2 else (x, centroids)
    (problems, n, d), k = rows.shape, columns.shape[1]
    dtype = _native.DTYPES[x.dtype]
    with _native.device_of(x):
        core = _native.cuda()
        size = torch.zeros(1, dtype=torch.int64)
        core.assign_workspace(dtype, problems, n, k, d, size.data_ptr())
        workspace = torch.empty(int(size), dtype=torch.uint8, device=x.device)
        core.assign(
            dtype,
            rows.data_ptr(),
            *rows.stride(),
            columns.data_ptr(),
            *columns.stride(),
            problems,
            n,
            k,
            d,
            workspace.data_ptr(),
            labels.data_ptr(),
            _native.stream(x.device),
        )
    return labels


def _assign_on_cpu(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    labels = _native.empty(x.shape[:-1], torch.int64)
    if x.dim() == 2:
        _assign(x, centroids, labels)
    else:
        for problem in range(x.shape[0]):
            _assign(x[problem], centroids[problem], labels[problem])
    return labels


def reassign(
    x: torch.Tensor,
    centroids: torch.Tensor,
    previous: torch.Tensor,
    labels: torch.Tensor,
    bounds: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    if x.is_cuda:
        return anew.count_moved(assign_on_cuda(x, centroids, out), labels)
    if bounds.shape[1]:
        return _assign(x, centroids, out, labels.contiguous(), previous, bounds)
    return _assign(x, centroids, out, labels.contiguous())


def _assign(
    x: torch.Tensor,
    centroids: torch.Tensor,
    labels: torch.Tensor,
    before: torch.Tensor | None = None,
    previous: torch.Tensor | None = None,
    bounds: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fill `labels`; return how many differ from `before`, which like `bounds` belongs to the centroids `previous`."""
    core, (n, d), k = _native.cpu(), x.shape, centroids.shape[0]
    n_threads = _native.threads(2.0 * n * k * d)
    # float16 and bfloat16 are exact in float32.
    wide = wide_dtype(x.dtype)
    centroids = centroids.to(wide).contiguous()
    previous = None if previous is None else previous.to(wide).contiguous()
    old = _native.pointer(previous)
    dtype = _native.DTYPES[wide]
    sizes = torch.zeros(2, dtype=torch.int64)
    core.assign_workspace(dtype, k, d, previous is not None, before is not None, sizes[0:].data_ptr())
    core.assign_scratch(dtype, k, d, sizes[1:].data_ptr())
    workspace_bytes, scratch_bytes = sizes.tolist()
    workspace = torch.empty(workspace_bytes, dtype=torch.uint8)
    scratch = torch.empty(scratch_bytes * n_threads, dtype=torch.uint8)
    counts = torch.zeros(2, dtype=torch.int64)
    core.assign_prepare(dtype, centroids.data_ptr(), k, d, old, before is not None, workspace.data_ptr(), n_threads)
    for start, stop in _native.slices(n, 2.0 * k * d, _BLOCK_ROWS * n_threads):
        rows = _native.with_adjacent_columns(x[start:stop].to(wide))
        core.assign(
            dtype,
            rows.data_ptr(),
            rows.stride(0),
            stop - start,
            d,
            centroids.data_ptr(),
            k,
            old,
            workspace.data_ptr(),
            scratch.data_ptr(),
            _native.pointer(before, start),
            _native.pointer(bounds, start),
            labels[start:stop].data_ptr(),
            counts.data_ptr(),
            n_threads,
        )
    return counts[1].clone()  # an op returns no part of a tensor
