"""draw_rows: where k-means starts, drawn as NumPy draws, for many problems at once."""

from __future__ import annotations

import torch

from dcfast.ops import _registry


def _check(
    seeds: torch.Tensor, offsets: torch.Tensor, shares: torch.Tensor | None, n_rows: int, n_uniform: int, n_runs: int
) -> None:
    for name, value in (("seeds", seeds), ("offsets", offsets)):
        if value.dtype != torch.int64 or value.dim() != 1 or value.device.type != "cpu":
            raise ValueError(
                f"{name} is {value.dtype} {tuple(value.shape)} on {value.device}: expected int64 on the CPU"
            )
    if offsets.shape[0] != seeds.shape[0] + 1:
        raise ValueError(
            f"offsets has shape {tuple(offsets.shape)}: expected ({seeds.shape[0] + 1},), one more than seeds"
        )
    if min(n_rows, n_uniform) < 0 or n_runs < 1:
        raise ValueError(f"n_rows={n_rows}, n_uniform={n_uniform}, n_runs={n_runs}: expected 0, 0 and 1 or more")
    if shares is not None and (shares.dtype != torch.float64 or shares.dim() != 1):
        raise ValueError(f"shares is {shares.dtype} {tuple(shares.shape)}: expected float64 of shape (total,)")
    if isinstance(seeds, torch._subclasses.FakeTensor):
        return  # shapes without values
    if bool((seeds < 0).any()) or bool((seeds >= 2**32).any()):
        raise ValueError(f"seeds go from {int(seeds.min())} to {int(seeds.max())}: expected 0 to 2^32 - 1")
    usable = offsets.diff()
    if int(offsets[0]) != 0 or bool((usable < 0).any()):
        raise ValueError(f"offsets must rise from 0: it goes from {int(offsets[0])}, by {int(usable.min())} at least")
    if shares is not None:
        if shares.shape[0] != int(offsets[-1]):
            raise ValueError(f"shares has shape {tuple(shares.shape)}: expected ({int(offsets[-1])},)")
        unusable = int(torch.count_nonzero(~((shares >= 0) & (shares <= 1))))
        if unusable:
            raise ValueError(f"shares has {unusable} element(s) outside 0 to 1: divide the weights by their sum")
        counts = torch.nn.functional.pad((shares > 0).long().cumsum(0), (1, 0))
        usable = counts[offsets].diff()
    if bool((usable < n_rows).any()):
        raise ValueError(
            f"offsets has a problem of {int(usable.min())} row(s) of positive share: n_rows={n_rows} different "
            "ones cannot be drawn from it"
        )


def _fake(
    seeds: torch.Tensor, offsets: torch.Tensor, shares: torch.Tensor | None, n_rows: int, n_uniform: int, n_runs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (seeds.shape[0], n_runs)
    return seeds.new_empty(*shape, n_rows), seeds.new_empty(*shape, n_uniform, dtype=torch.float64)


_op = _registry.define(
    "draw_rows",
    "(Tensor seeds, Tensor offsets, Tensor? shares, int n_rows, int n_uniform, int n_runs) -> (Tensor, Tensor)",
    package=__name__,
    check=_check,
    fake=_fake,
    native_cpu=("draw_rows",),
)


def draw_rows(
    seeds: torch.Tensor,
    offsets: torch.Tensor,
    n_rows: int,
    *,
    shares: torch.Tensor | None = None,
    n_uniform: int = 0,
    n_runs: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `numpy.random.RandomState(seed)` draws for each of B problems, in one call.

    Every run is ``choice(n, size=n_rows, replace=False, p=shares)``, n being the rows of the problem, and then
    ``uniform(size=n_uniform)``; the runs of a problem follow one another in its stream.

    Parameters
    ----------
    seeds : Tensor of shape (B,), int64, on the CPU
        In [0, 2^32).
    offsets : Tensor of shape (B + 1,), int64, on the CPU
        Problem b has the rows offsets[b] to offsets[b + 1].
    n_rows, n_uniform, n_runs : int
    shares : Tensor of shape (total,), float64, on the CPU, optional
        Those of a problem are finite, non-negative and sum to 1, n_rows at least being positive. All the same if not
        given.

    Returns
    -------
    rows : Tensor of shape (B, n_runs, n_rows), int64
        Counted from the first row of the problem.
    uniform : Tensor of shape (B, n_runs, n_uniform), float64

    Raises
    ------
    ValueError
        If shapes, dtypes or values do not fit.
    """
    return _op(seeds, offsets, shares, n_rows, n_uniform, n_runs)
