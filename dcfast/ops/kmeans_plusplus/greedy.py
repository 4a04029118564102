"""Greedy k-means++ over whole vectors of potentials, and of one problem after the other, on any device."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def share(numerator: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """floor(numerator total / 2^53) for numerator < 2^53 and total <= 2^62: a product of 115 bits, in parts of 58."""
    high, low = numerator >> 27, numerator & (2**27 - 1)
    total_high, total_low = total >> 31, total & (2**31 - 1)
    above, below = high * total_low, low * total_high  # in units of 2^27 and of 2^31
    rest = ((above & (2**26 - 1)) << 27) + ((below & (2**22 - 1)) << 31) + low * total_low
    return (high * total_high << 5) + (above >> 26) + (below >> 22) + (rest >> 53)


def numerators_of(uniform: torch.Tensor, device: torch.device) -> torch.Tensor:
    """floor(uniform 2^53) on the device; it goes to a GPU from pinned memory, which waits for nothing."""
    numerators = (uniform * 2.0**53).long()
    return numerators.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else numerators


def draw_scale(total: torch.Tensor, n_rows: int) -> torch.Tensor:
    """The power of two by which `n_rows` potentials of that sum, rounded once, become integers to draw by.

    Those sum to at most 2^61. Taken of the sum and anew for every draw: beside a single row far out the largest
    potential, or the sum before that row was chosen, would leave the others no digits.
    """
    most = 1024 + math.ceil(math.log2(max(2, n_rows)))  # where the sum is beyond doubles
    exponent = torch.where(total.isfinite(), torch.frexp(total.nan_to_num()).exponent.long(), most)
    # 2^(61 - e) by its bits: exact on every device. A double, however small the sum.
    return ((61 - exponent).clamp(max=1023) + 1023 << 52).view(torch.float64)


def draw_units(potential: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The integers that draws count in; 0 for potentials that no double holds."""
    units = (potential * scale).floor_()
    return torch.where(units < 2.0**62, units, 0.0).long()


def greedy(
    potentials: Callable[[torch.Tensor], torch.Tensor],
    exact_sum: Callable[[torch.Tensor], torch.Tensor],
    n_rows: int,
    first: int,
    uniform: torch.Tensor,
    device: torch.device,
) -> torch.Tensor:
    """The chosen rows; `potentials` gives RN64(w D64) of every row to the rows asked for, (rows, N) float64.

    Nothing is read back from the device before the end.
    """
    numerators = numerators_of(uniform, device)
    chosen = [torch.full((1,), first, device=device)]
    potential = potentials(chosen[0])[0]
    total = exact_sum(potential[None])
    for numerator in numerators.unbind():
        cumulative = draw_units(potential, draw_scale(total, n_rows)).cumsum(0)
        thresholds = share(numerator, cumulative[-1])
        rows = torch.searchsorted(cumulative, thresholds, right=True)
        rows = torch.where(rows < n_rows, rows, 0)  # of which there is none where nothing is left to draw
        closer = torch.minimum(potential, potentials(rows))
        totals = exact_sum(closer)
        best = totals.argmin(0, keepdim=True)
        potential, total = closer.index_select(0, best)[0], totals.index_select(0, best)
        chosen.append(rows.index_select(0, best))
    return torch.cat(chosen)


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
