"""minibatch_step: centroids move to the means of all rows that they were ever given, a batch at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops.accumulate import Grid, accumulate, check_grid, check_weight, sum_grid
from dcfast.ops.assign import assign
from dcfast.ops.csr import Csr
from dcfast.ops.inertia import inertia
from dcfast.ops.minibatch_step.step import averaged, rounded


class Step(NamedTuple):
    """What a batch changes.

    Attributes
    ----------
    centroids : Tensor of shape (k, d)
        RN_T(RN64(RN64(c W) + S) / W_new), where S is the rounded exact sum of the batch's members; c itself where they
        weigh nothing.
    seen : Tensor of shape (k,), float64
        W_new, the rounded sum of W and the weight of the batch's members.
    inertia : Tensor of shape (), float64
        Of the batch, for the centroids as they were.
    """

    centroids: torch.Tensor
    seen: torch.Tensor
    inertia: torch.Tensor


def _check(
    x: torch.Tensor,
    centroids: torch.Tensor,
    seen: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> None:
    _validate.points(x, "x")
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: minibatch_step takes one batch, of shape (N, d)")
    _validate.points_like(centroids, "centroids", x)
    _check_seen(seen, centroids)
    if sample_weight is not None:
        check_weight(sample_weight, x)
    check_grid(low, n_words, x)


def _check_seen(seen: torch.Tensor, centroids: torch.Tensor) -> None:
    if centroids.shape[0] == 0:
        raise ValueError("centroids has 0 rows: there must be at least one centroid")
    if seen.dtype != torch.float64 or seen.shape != centroids.shape[:1] or seen.device != centroids.device:
        raise ValueError(
            f"seen is {seen.dtype} {tuple(seen.shape)} on {seen.device}: expected float64 of shape "
            f"({centroids.shape[0]},) on {centroids.device}"
        )


_op = _registry.define(
    "minibatch_step",
    "(Tensor x, Tensor centroids, Tensor seen, Tensor? sample_weight, Tensor low, int n_words) "
    "-> (Tensor, Tensor, Tensor)",
    package=__name__,
    check=_check,
    fake=lambda x, centroids, seen, sample_weight, low, n_words: (
        torch.empty_like(centroids, memory_format=torch.contiguous_format),
        torch.empty_like(seen, memory_format=torch.contiguous_format),
        seen.new_empty(()),
    ),
    native_cpu=("minibatch_step_workspace", "minibatch_step"),
)


def minibatch_step(
    x: torch.Tensor | Csr,
    centroids: torch.Tensor,
    seen: torch.Tensor,
    sample_weight: torch.Tensor | None = None,
    grid: Grid | None = None,
) -> Step:
    """Take one step of mini-batch k-means (Sculley 2010, algorithm 1), with exact sums.

    Every row of the batch joins the cluster of its nearest centroid (see `assign`); then each centroid becomes the
    mean of all rows that it was ever given.

    Parameters
    ----------
    x : Tensor of shape (N, d), or Csr of that shape
        The batch: float32, float64, float16 or bfloat16.
    centroids : Tensor of shape (k, d)
        c, of the dtype and device of `x`.
    seen : Tensor of shape (k,), float64
        W, the weight of the rows that the centroids are the means of.
    sample_weight : Tensor of shape (N,), float64, optional
        Finite and non-negative.
    grid : Grid, optional
        `sum_grid` of data that has the batch's rows, with their weights, where the caller has it.

    Returns
    -------
    Step

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes, devices or values do not fit.

    Notes
    -----
    O(N k d) operations, as `assign`. Small batches of float32 and float64 on the CPU cost one native call.
    """
    if isinstance(x, Csr):
        _check_seen(seen, centroids)
        labels = assign(x, centroids)
        sums = accumulate(x, labels, centroids.shape[0], sample_weight, grid)
        added = rounded(sums.words, sums.grid.low)
        moved, after = averaged(added, sums.counts, sums.total, centroids, seen)
        return Step(moved, after, inertia(x, centroids, labels, sample_weight))
    return Step(*_op(x, centroids, seen, sample_weight, *(grid or sum_grid(x, sample_weight))))
