"""Launches csrc/cpu/split_empty.cpp."""

from __future__ import annotations

import torch

from dcfast.ops import _native

_DTYPES = {torch.float32: 0, torch.float64: 1}


def split_empty(
    centroids: torch.Tensor, counts: torch.Tensor, seed: torch.Tensor, iteration: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    k, d = centroids.shape[-2:]
    problems = counts.numel() // k
    counts = counts.clone(memory_format=torch.contiguous_format)
    if centroids.dtype in _DTYPES:
        wide = centroids.clone(memory_format=torch.contiguous_format)
    else:
        wide = centroids.float().contiguous()
    seeds, iterations = seed.expand(problems).tolist(), iteration.expand(problems).tolist()
    for b, (centroid, count) in enumerate(zip(wide.view(problems, k, d), counts.view(problems, k), strict=True)):
        _native.cpu().split_empty(
            _DTYPES[wide.dtype], centroid.data_ptr(), count.data_ptr(), k, d, seeds[b], iterations[b]
        )
    return wide.to(centroids.dtype), counts
