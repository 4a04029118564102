"""bisect: 2-means of some of the rows, which splits them in two."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops.accumulate import Grid, check_grid, check_weight, sum_grid


class Bisection(NamedTuple):
    """Two clusters of m rows.

    Attributes
    ----------
    centroids : Tensor of shape (2, d)
    rows : Tensor of shape (m,), int64
        The numbers of the rows of the first cluster, then of the second, each in the order given; rows that are not
        finite, which belong to neither, last.
    sizes : Tensor of shape (2,), int64
        How many rows each has.
    inertia : Tensor of shape (), float64
    inertias : Tensor of shape (2,), float64
        Of each cluster.
    """

    centroids: torch.Tensor
    rows: torch.Tensor
    sizes: torch.Tensor
    inertia: torch.Tensor
    inertias: torch.Tensor


def _check(
    x: torch.Tensor,
    rows: torch.Tensor,
    centroids: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
    max_iter: int,
    tol: float,
) -> None:
    _validate.points(x, "x")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x has dtype {x.dtype}: expected float32 or float64; use .float()")
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (N, d)")
    _validate.integers(rows, "rows", rows.shape[:1])
    _validate.same_device(rows, "rows", x)
    if not 1 <= rows.shape[0] <= _MAX_ROWS:
        raise ValueError(f"rows has shape {tuple(rows.shape)}: expected 1 to {_MAX_ROWS} numbers; KMeans takes more")
    if rows.device.type == "cpu" and not isinstance(rows, torch._subclasses.FakeTensor):
        least, most = (int(number) for number in rows.aminmax())
        if least < 0 or most >= x.shape[0]:
            raise ValueError(f"rows has numbers from {least} to {most}: expected 0 to {x.shape[0] - 1}, the rows of x")
    _validate.points_like(centroids, "centroids", x)
    if centroids.shape[0] != 2:
        raise ValueError(f"centroids has shape {tuple(centroids.shape)}: expected (2, {x.shape[1]})")
    if sample_weight is not None:
        check_weight(sample_weight, x)
    check_grid(low, n_words, x)
    if max_iter < 0:
        raise ValueError(f"max_iter={max_iter}: expected 0 or more")


_MAX_ROWS = 2**22

_op = _registry.define(
    "bisect",
    "(Tensor x, Tensor rows, Tensor centroids, Tensor? sample_weight, Tensor low, int n_words, int max_iter, float tol)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    package=__name__,
    check=_check,
    fake=lambda x, rows, centroids, *rest: (
        torch.empty_like(centroids, memory_format=torch.contiguous_format),
        torch.empty_like(rows, memory_format=torch.contiguous_format),
        rows.new_empty(2),
        x.new_empty((), dtype=torch.float64),
        x.new_empty(2, dtype=torch.float64),
    ),
    native_cpu=("bisect_workspace", "bisect"),
)


def bisect(
    x: torch.Tensor,
    rows: torch.Tensor,
    centroids: torch.Tensor,
    sample_weight: torch.Tensor | None = None,
    *,
    grid: Grid | None = None,
    max_iter: int = 300,
    tol: float = 0.0,
) -> Bisection:
    """Split rows in two by Lloyd's iteration: a step of bisecting k-means (Steinbach et al. 2000).

    The clusters are those of `lloyd` for the rows alone, with ``empty="farthest"``.

    Parameters
    ----------
    x : Tensor of shape (N, d)
        float32 or float64.
    rows : Tensor of shape (m,), int64
        The numbers of the rows to split, 1 to 2^22 of them.
    centroids : Tensor of shape (2, d)
        Where the run starts; of the dtype and device of `x`.
    sample_weight : Tensor of shape (N,), float64, optional
        Finite and non-negative.
    grid : Grid, optional
        `sum_grid` of `x`, with its weights, where the caller has it.
    max_iter : int
    tol : float
        The run ends when the squared Frobenius norm of the centroids' step is at most this.

    Returns
    -------
    Bisection

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes, devices or values do not fit.

    Notes
    -----
    O(m d) operations for an iteration. On the CPU one native call, whose memory beyond the results is about
    (8 d + 60) bytes per row that is split; meant for rows that fit a processor's caches, as `lloyd`.
    """
    return Bisection(*_op(x, rows, centroids, sample_weight, *(grid or sum_grid(x, sample_weight)), max_iter, tol))
