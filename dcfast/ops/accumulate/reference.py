"""Exact sums and their means in plain torch (sums) and Python integers (means)."""

from __future__ import annotations

import torch

from dcfast.ops.accumulate.grid import DIGIT, carry_
from dcfast.ops.accumulate.moves import accumulate_moves

__all__ = ["accumulate", "accumulate_moves", "column_range", "means"]


def accumulate(
    x: torch.Tensor,
    labels: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    if x.dim() == 3:
        weights = [None] * x.shape[0] if sample_weight is None else list(sample_weight)
        parts = [accumulate(*a, low, n_words) for a in zip(x, labels, [n_clusters] * x.shape[0], weights, strict=True)]
        words = x.new_zeros((x.shape[0], n_clusters, n_words, x.shape[-1]), dtype=torch.int64)
        counts = x.new_zeros((x.shape[0], n_clusters), dtype=torch.int64)
        for b, part in enumerate(parts):
            words[b], counts[b] = part
        return words, counts
    member = (labels >= 0) & (labels < n_clusters)
    if sample_weight is not None:
        member &= sample_weight != 0
    index = labels[member]
    rest = x[member].double()
    if sample_weight is not None:
        rest = rest * sample_weight[member, None]
    rest = rest * torch.exp2(-low.double())
    words = x.new_zeros((n_clusters, n_words, x.shape[-1]), dtype=torch.int64)
    for w in reversed(range(n_words)):
        unit = 2.0 ** (DIGIT * w)
        digit = torch.round(rest / unit)
        rest = rest - digit * unit
        words[:, w].index_add_(0, index, digit.long())
    carry_(words)
    counts = x.new_zeros(n_clusters, dtype=torch.int64)
    counts.index_add_(0, index, torch.ones_like(index))
    return words, counts


def column_range(x: torch.Tensor, sample_weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    magnitude = x.double().flatten(0, -2).abs()
    if sample_weight is not None:
        magnitude = magnitude * sample_weight.flatten()[:, None]
    some = magnitude.isfinite() & (magnitude > 0)
    edge = x.new_full((1, x.shape[-1]), torch.inf, dtype=torch.float64)
    smallest = torch.cat([edge, magnitude.where(some, torch.inf)]).amin(0)
    return smallest, torch.cat([torch.zeros_like(edge), magnitude.where(some, 0)]).amax(0)


def means(words: torch.Tensor, low: torch.Tensor, total: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    n_words, d = words.shape[-2:]
    sums = []
    for row in words.flatten(0, -3).tolist():
        for i, unit in enumerate(low.tolist()):
            exact = sum(row[w][i] << (DIGIT * w) for w in range(n_words))
            # Both round to nearest even, once: int -> float, and int / int.
            sums.append(float(exact << unit) if unit >= 0 else exact / (1 << -unit))
    rounded = torch.tensor(sums, dtype=torch.float64).reshape(*words.shape[:-2], d).to(words.device)
    mean = (rounded / total[..., None]).to(previous.dtype)
    return torch.where(total[..., None] > 0, mean, previous)
