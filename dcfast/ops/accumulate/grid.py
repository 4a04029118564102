"""The grid of a fixed-point sum: the unit of every column, and how many words its sums need."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

# Bits of every word but the top one; csrc/cpu/fixed.h has the same number and its reason.
DIGIT = 40
# An element is split into words by adding 1.5 * 2^52, so its part in the top word must stay below 2^51; the sum
# in the top word must stay below 2^62.
_ELEMENT_BITS = 51
_SUM_BITS = 62
# Exponents beyond which float64 data is refused: products and squares would overflow or lose bits.
_MAX_EXPONENT = 480
_BLOCK_ELEMENTS = 2**22


class Grid(NamedTuple):
    """Units and length of exact sums.

    Attributes
    ----------
    low : Tensor of shape (d,), int64
        The lowest word of column i counts units of 2^low[i]; the words above, 2^40 times as much each.
    n_words : int
        Words per sum.
    """

    low: torch.Tensor
    n_words: int


def sum_grid(x: torch.Tensor, sample_weight: torch.Tensor | None = None, n_rows: int | None = None) -> Grid:
    """The grid on which the rows of `x` (times their weights) sum without rounding.

    Parameters
    ----------
    x : Tensor of shape (N, d) or (B, N, d)
        Non-finite elements are ignored: their rows belong to no cluster.
    sample_weight : Tensor of shape (N,) or (B, N), float64, optional
        The summands are then RN64(w x).
    n_rows : int, optional
        Rows that will be summed, if more than those of `x` (chunks of a larger set).

    Returns
    -------
    Grid
        A column's unit is the last place of its smallest non-zero summand: a bound of the lowest set bit that
        needs one pass of minima and maxima.

    Raises
    ------
    ValueError
        If a float64 summand lies beyond 2^480 or below 2^-480 in magnitude.
    """
    d = x.shape[-1]
    bits = 53 if x.dtype == torch.float64 or sample_weight is not None else 24
    wide = torch.float64 if bits == 53 else torch.float32
    smallest = torch.full((d,), torch.inf, dtype=wide, device=x.device)
    largest = torch.zeros(d, dtype=wide, device=x.device)
    rows = max(1, _BLOCK_ELEMENTS // max(1, d * x.shape[:-2].numel()))
    for start in range(0, x.shape[-2], rows):
        block = x[..., start : start + rows, :].to(wide)
        if sample_weight is not None:
            block = block * sample_weight[..., start : start + rows, None]
        magnitude = block.abs().flatten(0, -2)
        magnitude = torch.where(magnitude.isfinite(), magnitude, 0)
        largest = torch.maximum(largest, magnitude.amax(0))
        smallest = torch.minimum(smallest, torch.where(magnitude == 0, torch.inf, magnitude).amin(0))
    smallest = torch.where(smallest.isinf(), 1, smallest)
    # |v| = m 2^e with m in [1/2, 1): v is a multiple of 2^(e - bits) and below 2^e.
    low = torch.frexp(smallest).exponent.long() - bits
    high = torch.maximum(torch.frexp(largest).exponent.long(), low)
    if x.numel() == 0:
        return Grid(low, 1)
    lowest, highest, span = torch.stack([low.amin(), high.amax(), (high - low).amax()]).tolist()
    if highest > _MAX_EXPONENT or lowest + bits < -_MAX_EXPONENT:
        raise ValueError(
            f"x (times sample_weight) has elements of magnitude 2^{highest} or 2^{lowest + bits}: sums are exact "
            f"between 2^-{_MAX_EXPONENT} and 2^{_MAX_EXPONENT}; rescale the data"
        )
    count = max(1, math.ceil(math.log2(max(2, n_rows or x.shape[-2]))))
    need = max(span - _ELEMENT_BITS, span + count - _SUM_BITS)
    return Grid(low, 1 + max(0, -(-need // DIGIT)))
