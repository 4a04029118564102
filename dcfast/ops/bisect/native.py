"""Launches csrc/cpu/bisect.cpp, some iterations at a time."""

from __future__ import annotations

import torch

from dcfast.ops import _native

_RUNNING = 3
# Operations of one call.
_CALL_OPERATIONS = 5e8


def bisect(
    x: torch.Tensor,
    rows: torch.Tensor,
    centroids: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
    max_iter: int,
    tol: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    core, m, d, dtype = _native.cpu(), rows.shape[0], x.shape[1], _native.DTYPES[x.dtype]
    x = _native.with_adjacent_columns(x)
    rows, centroids = rows.contiguous(), centroids.clone(memory_format=torch.contiguous_format)
    weight = None if sample_weight is None else sample_weight.contiguous()
    low, scale = low.contiguous(), torch.exp2(-low.double()).contiguous()
    step = 4.0 * m * d
    # An iteration is some four pieces of work, each shared on its own.
    n_threads = _native.threads(step / 4)
    size = torch.empty(1, dtype=torch.int64)
    core.bisect_workspace(dtype, m, d, n_words, weight is not None, n_threads, size.data_ptr())
    workspace = _native.empty((int(size),), torch.uint8)
    labels = torch.full((m,), -1, dtype=torch.int64)
    order, sizes = torch.empty_like(rows), torch.empty(2, dtype=torch.int64)
    inertia, inertias = torch.empty((), dtype=torch.float64), torch.empty(2, dtype=torch.float64)
    progress = torch.tensor([0, _RUNNING])
    while int(progress[1]) == _RUNNING:
        core.bisect(
            dtype,
            x.data_ptr(),
            x.stride(0),
            rows.data_ptr(),
            m,
            d,
            _native.pointer(weight),
            low.data_ptr(),
            scale.data_ptr(),
            n_words,
            max_iter,
            max(1, int(_CALL_OPERATIONS / step)),
            tol,
            workspace.data_ptr(),
            centroids.data_ptr(),
            labels.data_ptr(),
            progress[:1].data_ptr(),
            progress[1:].data_ptr(),
            order.data_ptr(),
            sizes.data_ptr(),
            inertia.data_ptr(),
            inertias.data_ptr(),
            n_threads,
        )
    return centroids, order, sizes, inertia, inertias
