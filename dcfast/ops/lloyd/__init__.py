"""lloyd: whole runs of Lloyd's iteration for many small problems at once."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops._scalar import scalar
from dcfast.ops.accumulate import check_weight

EMPTY = ("farthest", "split", "keep")
_MAX_ROWS = 2**22


class Runs(NamedTuple):
    """What the runs of B problems found.

    Attributes
    ----------
    centroids : Tensor of shape (B, k, d)
    labels : Tensor of shape (total,), int64
        The nearest of the problem's own centroids.
    inertia : Tensor of shape (B,), float64
    n_iter : Tensor of shape (B,), int64
        Updates of the centroids.
    ended : Tensor of shape (B,), int64
        0 at `max_iter`, 1 where labels and centroids stood still, 2 where the step was at most `tol`.
    """

    centroids: torch.Tensor
    labels: torch.Tensor
    inertia: torch.Tensor
    n_iter: torch.Tensor
    ended: torch.Tensor


def check_offsets(offsets: torch.Tensor, x: torch.Tensor) -> None:
    """`offsets` cuts the rows of `x` into problems of at least one row."""
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (total, d), the rows of all problems")
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or offsets.numel() < 1 or offsets.device.type != "cpu":
        raise ValueError(
            f"offsets is {offsets.dtype} {tuple(offsets.shape)} on {offsets.device}: expected int64 of shape (B + 1,) "
            "on the CPU"
        )
    if torch.compiler.is_compiling() or isinstance(offsets, torch._subclasses.FakeTensor):
        return  # shapes without values
    sizes = offsets.diff()
    if int(offsets[0]) != 0 or int(offsets[-1]) != x.shape[0] or bool((sizes < 1).any()):
        raise ValueError(
            f"offsets must rise from 0 to the {x.shape[0]} rows of x, by at least 1 each time: it goes from "
            f"{int(offsets[0])} to {int(offsets[-1])}, and {int((sizes < 1).sum())} of its steps are below 1"
        )
    if sizes.numel() and int(sizes.max()) > _MAX_ROWS:
        raise ValueError(f"offsets has a problem of {int(sizes.max())} rows: at most {_MAX_ROWS}; KMeans takes more")


def _check(
    x: torch.Tensor,
    offsets: torch.Tensor,
    centroids: torch.Tensor,
    sample_weight: torch.Tensor | None,
    max_iter: int,
    tol: torch.Tensor,
    relative_tol: bool,
    empty: str,
    seed: torch.Tensor,
) -> None:
    _validate.points(x, "x")
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"x has dtype {x.dtype}: expected float32 or float64; use .float()")
    check_offsets(offsets, x)
    problems = offsets.shape[0] - 1
    if centroids.dim() != 3 or centroids.shape[0] != problems or centroids.shape[1] < 1:
        raise ValueError(f"centroids has shape {tuple(centroids.shape)}: expected ({problems}, k, {x.shape[1]}), k > 0")
    _validate.points_like(centroids[:1].flatten(0, 1), "centroids", x)
    if sample_weight is not None:
        check_weight(sample_weight, x)
    if max_iter < 0:
        raise ValueError(f"max_iter={max_iter}: expected 0 or more")
    if empty not in EMPTY:
        raise ValueError(f"empty={empty!r}: expected one of {EMPTY}")
    _validate.integers(seed, "seed", (problems,))
    if tol.dtype != torch.float64 or tol.shape != (problems,):
        raise ValueError(f"tol is {tol.dtype} {tuple(tol.shape)}: expected float64 of shape ({problems},)")


def _fake(
    x: torch.Tensor, offsets: torch.Tensor, centroids: torch.Tensor, *rest: object
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    problems = offsets.shape[0] - 1
    return (
        torch.empty_like(centroids, memory_format=torch.contiguous_format),
        x.new_empty(x.shape[0], dtype=torch.int64),
        x.new_empty(problems, dtype=torch.float64),
        x.new_empty(problems, dtype=torch.int64),
        x.new_empty(problems, dtype=torch.int64),
    )


_op = _registry.define(
    "lloyd",
    "(Tensor x, Tensor offsets, Tensor centroids, Tensor? sample_weight, int max_iter, Tensor tol, bool relative_tol, "
    "str empty, Tensor seed) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    package=__name__,
    check=_check,
    fake=_fake,
    native_cpu=("sum_grid", "lloyd_workspace", "lloyd"),
)


def lloyd(
    x: torch.Tensor,
    offsets: torch.Tensor,
    centroids: torch.Tensor,
    *,
    sample_weight: torch.Tensor | None = None,
    max_iter: int = 300,
    tol: torch.Tensor | float = 0.0,
    relative_tol: bool = False,
    empty: str = "farthest",
    seed: torch.Tensor | int = 0,
) -> Runs:
    """Alternate labels and means (Lloyd 1982) in each of B problems until it has converged.

    Labels are those of `assign`, means those of `accumulate` and `means`, inertia that of `inertia`. A problem's result
    is a pure function of its own rows, weights, centroids, tolerance and seed: the others change no bit of it.

    Parameters
    ----------
    x : Tensor of shape (total, d)
        float32 or float64: the rows of problem b are offsets[b] to offsets[b + 1], at most 2^22.
    offsets : Tensor of shape (B + 1,), int64, on the CPU
    centroids : Tensor of shape (B, k, d)
        Where the runs start; of the dtype and device of `x`.
    sample_weight : Tensor of shape (total,), float64, optional
        Finite and non-negative.
    max_iter : int
        With 0, labels and inertia for the centroids as they are.
    tol : Tensor of shape (B,), float64, or float
        A run ends when the squared Frobenius norm of the centroids' step is at most this.
    relative_tol : bool
        Whether `tol` counts in mean variances of the problem's columns (without weights), as in scikit-learn.
    empty : {'farthest', 'split', 'keep'}
        What becomes of a cluster without weight: it takes the row farthest from its centroid (where all are at
        theirs, or that row has no weight, the centroid of the heaviest cluster); it splits a larger
        cluster (`split_empty`); it keeps its centroid.
    seed : Tensor of shape (B,), int64, or int
        Of the draws of 'split'.

    Returns
    -------
    Runs

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes, devices or values do not fit, or if float64 data lies beyond 2^+-480.

    Notes
    -----
    O(n d k) operations for an iteration of a problem of n rows, by a thread; all threads share a problem that is alone.
    Memory beyond the results is about (4 d + 40) bytes per row of the largest problem, for each problem at work. Meant
    for problems that fit a processor's caches; larger ones are better served by one op after the other, which keep
    bounds between iterations, as `dcfast.KMeans` does.
    """
    problems = offsets.shape[0] - 1
    tol, seed = scalar(tol, torch.float64, x.device), scalar(seed, torch.int64, x.device)
    for name, value in (("tol", tol), ("seed", seed)):
        if value.shape not in ((), (problems,)):
            raise ValueError(f"{name} has shape {tuple(value.shape)}: expected () or ({problems},), one per problem")
    tol, seed = tol.expand(problems), seed.expand(problems)
    return Runs(*_op(x, offsets, centroids, sample_weight, max_iter, tol, relative_tol, empty, seed))
