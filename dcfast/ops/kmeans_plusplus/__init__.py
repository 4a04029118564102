"""kmeans_plusplus: rows that lie far apart, to start k-means from; of one problem or of many."""

from __future__ import annotations

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops.accumulate import check_weight
from dcfast.ops.lloyd import check_offsets


def _check(x: torch.Tensor, sample_weight: torch.Tensor | None, first: int, uniform: torch.Tensor) -> None:
    _validate.points(x, "x")
    if x.dim() != 2 or x.shape[0] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (N, d) with at least one row")
    if sample_weight is not None:
        check_weight(sample_weight, x)
    if not 0 <= first < x.shape[0]:
        raise ValueError(f"first={first}: expected a row of x, 0 to {x.shape[0] - 1}")
    if uniform.dtype != torch.float64 or uniform.dim() != 2 or uniform.shape[1] == 0 or uniform.device.type != "cpu":
        raise ValueError(
            f"uniform is {uniform.dtype} {tuple(uniform.shape)} on {uniform.device}: expected float64 of shape "
            "(centroids - 1, trials) on the CPU"
        )


_op = _registry.define(
    "kmeans_plusplus",
    "(Tensor x, Tensor? sample_weight, int first, Tensor uniform) -> Tensor",
    package=__name__,
    check=_check,
    fake=lambda x, sample_weight, first, uniform: x.new_empty(uniform.shape[0] + 1, dtype=torch.int64),
    native_cpu=("kmeans_plusplus_workspace", "kmeans_plusplus"),
    native_cuda=("kmeans_plusplus",),
)


def _check_batch(
    x: torch.Tensor,
    offsets: torch.Tensor,
    sample_weight: torch.Tensor | None,
    first: torch.Tensor,
    uniform: torch.Tensor,
) -> None:
    _validate.points(x, "x")
    check_offsets(offsets, x)
    if sample_weight is not None:
        check_weight(sample_weight, x)
    problems = offsets.shape[0] - 1
    _validate.integers(first, "first", (problems,))
    if uniform.dtype != torch.float64 or uniform.dim() != 3 or uniform.shape[0] != problems or uniform.shape[2] == 0:
        raise ValueError(
            f"uniform is {uniform.dtype} {tuple(uniform.shape)}: expected float64 of shape ({problems}, centroids - 1, "
            "trials)"
        )
    if first.device.type != "cpu" or uniform.device.type != "cpu":
        raise ValueError(f"first is on {first.device} and uniform on {uniform.device}: expected both on the CPU")
    if isinstance(first, torch._subclasses.FakeTensor):
        return  # shapes without values
    if bool((first < 0).any()) or bool((first >= offsets.diff()).any()):
        raise ValueError("first has a row that its problem has not: expected 0 to offsets[b + 1] - offsets[b] - 1")


_batch_op = _registry.define(
    "kmeans_plusplus_batch",
    "(Tensor x, Tensor offsets, Tensor? sample_weight, Tensor first, Tensor uniform) -> Tensor",
    package=__name__,
    check=_check_batch,
    fake=lambda x, offsets, weight, first, uniform: x.new_empty(
        uniform.shape[0], uniform.shape[1] + 1, dtype=torch.int64
    ),
    native_cpu=("kmeans_plusplus_workspace", "kmeans_plusplus_batch"),
    native_cuda=("kmeans_plusplus",),
)


def kmeans_plusplus(
    x: torch.Tensor, sample_weight: torch.Tensor | None, first: int, uniform: torch.Tensor
) -> torch.Tensor:
    """Greedy k-means++ (Arthur & Vassilvitskii 2007, with the trials of their section 4), its random numbers given.

    Every further centroid is the best of some rows drawn in proportion to their potential, RN64(w D64) to the closest
    centroid so far: that which leaves the smallest potential in all, the first on ties. Sums of potentials are exact,
    rounded once; draws count in integers, floor(potential * 2^(61 - e)), where 2^e exceeds the potentials' sum so far
    (e is 1024 + ceil(log2 N) where that is beyond doubles), so that the choice depends on no order of summation: the
    number u draws the first row whose cumulative count exceeds floor(u 2^53) total / 2^53, or row 0 if none does.
    Potentials that no double holds count nothing.

    Parameters
    ----------
    x : Tensor of shape (N, d)
        float32, float64, float16 or bfloat16; finite.
    sample_weight : Tensor of shape (N,), float64, optional
    first : int
        The row of the first centroid.
    uniform : Tensor of shape (k - 1, n_trials), float64, on the CPU
        In [0, 1).

    Returns
    -------
    Tensor of shape (k,), int64
        The chosen rows, on the device of `x`.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or `first` do not fit.

    Notes
    -----
    O(N d k n_trials) operations on int16 (on a GPU in float32) and O(N d n_trials log k) in double; 36 bytes per row,
    and 2 bytes per element of `x` where those are at most 60 MiB. On a GPU 18 bytes per row, x is read once per
    centroid for every 16 trials, and nothing waits for the device.
    """
    return _op(x, sample_weight, first, uniform)


def kmeans_plusplus_batch(
    x: torch.Tensor,
    offsets: torch.Tensor,
    sample_weight: torch.Tensor | None,
    first: torch.Tensor,
    uniform: torch.Tensor,
) -> torch.Tensor:
    """`kmeans_plusplus` of each of B problems: on the CPU one thread for each, on a GPU one after the other.

    Parameters
    ----------
    x : Tensor of shape (total, d)
        The rows of problem b are offsets[b] to offsets[b + 1].
    offsets : Tensor of shape (B + 1,), int64, on the CPU
    sample_weight : Tensor of shape (total,), float64, optional
    first : Tensor of shape (B,), int64, on the CPU
        The row of the first centroid, counted from the first of the problem.
    uniform : Tensor of shape (B, k - 1, n_trials), float64, on the CPU

    Returns
    -------
    Tensor of shape (B, k), int64
        The chosen rows, each counted from the first of its problem, on the device of `x`.

    Raises
    ------
    ValueError, TypeError
        If shapes, dtypes or values do not fit.
    """
    return _batch_op(x, offsets, sample_weight, first, uniform)
