"""Rows divided by their norms, for spherical k-means."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.cluster.points import Points

# Elements of rows that are divided by their norms at once.
_UNIT_ELEMENTS = 2**18


class OnSphere(Points):
    """The rows of other points, each divided by its norm (see `unit`).

    Raises
    ------
    ValueError
        From `blocks` and `take`, if the square of a norm leaves the range of doubles.
    """

    def __init__(self, points: Points) -> None:
        self.points = points
        self.n_samples, self.n_features = points.n_samples, points.n_features
        self.dtype, self.device = points.dtype, points.device
        self.source, self.answer = points.source, points.answer

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for at, rows in self.points.blocks():
            yield at, unit(rows)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        return unit(self.points.take(rows))

    def check_finite(self) -> None:
        self.points.check_finite()


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Every row divided by its norm: RN_T(x / RN64(sqrt(D64(x, 0)))). Rows of zeros stay.

    Raises
    ------
    ValueError
        If the square of a norm leaves the range of doubles.
    """
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    origin = torch.zeros_like(rows[:1])
    step = max(1, _UNIT_ELEMENTS // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        labels = torch.zeros(part.shape[0], dtype=torch.int64, device=part.device)
        squares = ops.point_distances(part, origin, labels)
        extreme = (squares > 2.0**960) | ((squares < 2.0**-960) & part.any(1))
        norms = norms_from(squares, extreme & part.isfinite().all(1))
        out[start : start + step] = part.double() / norms[:, None]
    return out


def norms_from(squares: torch.Tensor, extreme: torch.Tensor) -> torch.Tensor:
    """What rows of these squares are divided by: 1 for those of zeros. ValueError if one is extreme."""
    if bool(extreme.any()):
        raise ValueError("X has rows of a norm beyond 2^480 or below 2^-480: rescale them")
    return torch.where(squares > 0, arrays.square_root(squares), 1.0)
