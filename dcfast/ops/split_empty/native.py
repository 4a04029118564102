"""Launches csrc/cpu/split_empty.cpp and csrc/cuda/split_empty.cu."""

from __future__ import annotations

import torch

from dcfast.ops import _native


def split_empty(
    centroids: torch.Tensor, counts: torch.Tensor, seed: torch.Tensor, iteration: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    k = centroids.shape[-2]
    problems = counts.numel() // k
    counts = counts.clone(memory_format=torch.contiguous_format)
    if centroids.dtype in (torch.float32, torch.float64):
        wide = centroids.clone(memory_format=torch.contiguous_format)
    else:
        wide = centroids.float().contiguous()
    run = _on_cuda if wide.is_cuda else _on_cpu
    run(wide, counts, problems, seed.expand(problems), iteration.expand(problems))
    return wide.to(centroids.dtype), counts


def _on_cpu(
    centroids: torch.Tensor, counts: torch.Tensor, problems: int, seeds: torch.Tensor, iterations: torch.Tensor
) -> None:
    """Change centroids (problems x k x d) and counts in place."""
    k, d = centroids.shape[-2:]
    keys = seeds.tolist(), iterations.tolist()
    each = zip(centroids.view(problems, k, d), counts.view(problems, k), *keys, strict=True)
    for centroid, count, seed, iteration in each:
        _native.cpu().split_empty(
            _native.DTYPES[centroid.dtype], centroid.data_ptr(), count.data_ptr(), k, d, seed, iteration
        )


def _on_cuda(
    centroids: torch.Tensor, counts: torch.Tensor, problems: int, seeds: torch.Tensor, iterations: torch.Tensor
) -> None:
    if counts.numel() == 0:
        return
    seeds, iterations = (key.to(centroids.device).contiguous() for key in (seeds, iterations))
    with _native.device_of(centroids):
        _native.cuda().split_empty(
            _native.DTYPES[centroids.dtype],
            centroids.data_ptr(),
            counts.data_ptr(),
            problems,
            *centroids.shape[-2:],
            seeds.data_ptr(),
            iterations.data_ptr(),
            _native.stream(centroids.device),
        )
