"""Launches csrc/cpu/minibatch_step.cpp."""

from __future__ import annotations

import torch

from dcfast.ops import _native
from dcfast.ops.minibatch_step import step

# Operations of the largest batch that one call takes, some 0.1 s: larger ones are left to the other ops, which can be
# interrupted, and whose own calls cost nothing beside the work.
_CALL_OPERATIONS = 5e8


def minibatch_step(
    x: torch.Tensor,
    centroids: torch.Tensor,
    seen: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    core, (n, d), k = _native.cpu(), x.shape, centroids.shape[0]
    operations = 2.0 * n * k * d + 4.0 * max(n, k) * d * n_words
    if x.dtype not in (torch.float32, torch.float64) or operations > _CALL_OPERATIONS:
        return step.minibatch_step(x, centroids, seen, sample_weight, low, n_words)
    dtype, n_threads = _native.DTYPES[x.dtype], _native.threads(operations)
    x = _native.with_adjacent_columns(x)
    centroids, seen = (a.clone(memory_format=torch.contiguous_format) for a in (centroids, seen))
    weight = None if sample_weight is None else sample_weight.contiguous()
    low, scale = low.contiguous(), torch.exp2(-low.double()).contiguous()
    size = torch.empty(1, dtype=torch.int64)
    core.minibatch_step_workspace(dtype, n, d, k, n_words, n_threads, size.data_ptr())
    workspace = torch.empty(int(size), dtype=torch.uint8)
    inertia = torch.empty((), dtype=torch.float64)
    core.minibatch_step(
        dtype,
        x.data_ptr(),
        x.stride(0),
        n,
        d,
        _native.pointer(weight),
        low.data_ptr(),
        scale.data_ptr(),
        n_words,
        workspace.data_ptr(),
        centroids.data_ptr(),
        seen.data_ptr(),
        k,
        inertia.data_ptr(),
        n_threads,
    )
    return centroids, seen, inertia
