"""Donors for empty clusters, in Python integers and plain torch."""

from __future__ import annotations

import torch

_WORD = 0xFFFFFFFF


def philox(seed: int, iteration: int, cluster: int) -> int:
    """64 random bits: Philox4x32-10 with the seed as key and (iteration, cluster) as counter."""
    c = [iteration & _WORD, iteration >> 32 & _WORD, cluster & _WORD, cluster >> 32 & _WORD]
    key = [seed & _WORD, seed >> 32 & _WORD]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ key[0], b & _WORD, a >> 32 ^ c[3] ^ key[1], a & _WORD]
        key = [key[0] + 0x9E3779B9 & _WORD, key[1] + 0xBB67AE85 & _WORD]
    return c[1] << 32 | c[0]


def split_empty(
    centroids: torch.Tensor, counts: torch.Tensor, seed: torch.Tensor, iteration: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = centroids.dtype
    if dtype in (torch.float16, torch.bfloat16):
        split, counts = split_empty(centroids.float(), counts, seed, iteration)
        return split.to(dtype), counts
    centroids, counts = centroids.clone(memory_format=torch.contiguous_format), counts.clone()
    if centroids.dim() == 3:
        for b in range(centroids.shape[0]):
            key = (seed.expand(centroids.shape[0])[b], iteration.expand(centroids.shape[0])[b])
            centroids[b], counts[b] = split_empty(centroids[b], counts[b], *key)
        return centroids, counts
    even = torch.arange(centroids.shape[1], device=centroids.device) % 2 == 0
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    for empty in torch.nonzero(counts == 0)[:, 0].tolist():
        spare = (counts - 1).clamp(min=0)
        total = int(spare.sum())
        if total == 0:
            break
        draw = philox(int(seed), int(iteration), empty) * total >> 64
        donor = int((spare.cumsum(0) <= draw).sum())
        source = centroids[donor].clone()
        centroids[empty] = torch.where(even, source * up, source * down)
        centroids[donor] = torch.where(even, source * down, source * up)
        counts[empty] = counts[donor] // 2
        counts[donor] -= counts[empty]
    return centroids, counts
