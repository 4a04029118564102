"""The grid of a fixed-point sum: the unit of every column, and how many words its sums need."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from dcfast.ops import _registry, _validate

# Bits of every word but the top one; csrc/cpu/fixed.h has the same number and its reason.
DIGIT = 40
# An element is split into words by adding 1.5 * 2^52, so its part in the top word must stay below 2^51; the sum
# in the top word must stay below 2^62.
_ELEMENT_BITS = 51
_SUM_BITS = 62


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


def carry_(words: torch.Tensor) -> None:
    """Bring all but the top word of sums (..., n_words, d) into [0, 2^40), in place."""
    for w in range(words.shape[-2] - 1):
        up = words[..., w, :] >> DIGIT
        words[..., w, :] -= up << DIGIT
        words[..., w + 1, :] += up


def check_weight(sample_weight: torch.Tensor, x: torch.Tensor) -> None:
    """`sample_weight` is float64, one for every row of `x`."""
    _validate.row_weights(sample_weight, x.shape[:-1], x)


def check_grid(low: torch.Tensor, n_words: int, x: torch.Tensor) -> None:
    """`low` and `n_words` are a grid of the columns of `x`."""
    _validate.integers(low, "low", (x.shape[-1],))
    # From 2^-480 to 2^480 and 53 bits are 1,013, of which 26 words hold the sums of 2^49 rows.
    if not 1 <= n_words <= 26:
        raise ValueError(f"n_words={n_words}: expected 1 to 26; take the grid from sum_grid")


def _check_range(x: torch.Tensor, sample_weight: torch.Tensor | None) -> None:
    _validate.points(x, "x")
    if sample_weight is not None:
        check_weight(sample_weight, x)


def _fake_range(x: torch.Tensor, sample_weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape[-1], dtype=torch.float64), x.new_empty(x.shape[-1], dtype=torch.float64)


range_op = _registry.define(
    "column_range",
    "(Tensor x, Tensor? sample_weight) -> (Tensor, Tensor)",
    package="dcfast.ops.accumulate",
    check=_check_range,
    fake=_fake_range,
    native_cpu=("column_range",),
    native_cuda=("column_range",),
)


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
    smallest, largest = range_op(x, sample_weight)
    return grid_of(smallest, largest, x.dtype, n_rows or x.shape[-2], sample_weight is not None)


def grid_of(smallest: torch.Tensor, largest: torch.Tensor, dtype: torch.dtype, n_rows: int, weighted: bool) -> Grid:
    """The grid of data that comes in parts, from the ranges of its columns.

    Parameters
    ----------
    smallest, largest : Tensor of shape (d,), float64
        From `column_range`, combined over the parts.
    dtype : torch.dtype
        That of the rows.
    n_rows : int
        Of all parts.
    weighted : bool
        Whether the ranges are those of w x.

    Returns
    -------
    Grid
        `sum_grid` of the whole.

    Raises
    ------
    ValueError
        As `sum_grid`.
    """
    bits = 53 if dtype == torch.float64 or weighted else 24
    smallest = torch.where(smallest.isinf(), 1, smallest)
    # |v| = m 2^e with m in [1/2, 1): v is a multiple of 2^(e - bits) and below 2^e.
    low = torch.frexp(smallest).exponent.long() - bits
    high = torch.maximum(torch.frexp(largest).exponent.long(), low)
    if n_rows == 0:
        return Grid(low, 1)
    lowest, highest, span = torch.stack([low.amin(), high.amax(), (high - low).amax()]).tolist()
    _validate.exact_range(lowest + bits, highest)
    count = max(1, math.ceil(math.log2(max(2, n_rows))))
    need = max(span - _ELEMENT_BITS, span + count - _SUM_BITS)
    return Grid(low, 1 + max(0, -(-need // DIGIT)))
