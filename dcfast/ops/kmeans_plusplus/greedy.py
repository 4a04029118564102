"""Greedy k-means++ over whole vectors of potentials, and of one problem after the other, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def greedy(
    potentials: Callable[[torch.Tensor], torch.Tensor],
    exact_sum: Callable[[torch.Tensor], torch.Tensor],
    n_rows: int,
    first: int,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """The chosen rows; `potentials` gives RN64(w D64) of every row to the rows asked for, (rows, N) float64."""
    chosen = [first]
    potential = potentials(torch.tensor([first]))[0]
    bits = 62 - math.ceil(math.log2(max(2, n_rows)))
    scale = torch.exp2(bits - torch.frexp(potential.max()).exponent.double())
    for trials in uniform.tolist():
        cumulative = (potential * scale).floor().long().cumsum(0)
        total = int(cumulative[-1])
        thresholds = torch.tensor([int(u * 2.0**53) * total >> 53 for u in trials], device=potential.device)
        rows = torch.searchsorted(cumulative, thresholds, right=True).clamp(max=n_rows - 1)
        closer = torch.minimum(potential, potentials(rows))
        best = int(torch.argmin(exact_sum(closer)))
        potential = closer[best]
        chosen.append(int(rows[best]))
    return torch.tensor(chosen, device=potential.device)


def kmeans_plusplus_batch(
    x: torch.Tensor,
    offsets: torch.Tensor,
    sample_weight: torch.Tensor | None,
    first: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    chosen = torch.empty(uniform.shape[0], uniform.shape[1] + 1, dtype=torch.int64, device=x.device)
    cuts = offsets.tolist()
    for b, at in enumerate(map(slice, cuts[:-1], cuts[1:])):
        weight = None if sample_weight is None else sample_weight[at]
        chosen[b] = torch.ops.dcfast.kmeans_plusplus(x[at], weight, int(first[b]), uniform[b])
    return chosen
