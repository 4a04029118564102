"""split_empty: give every empty cluster half of a larger one."""

from __future__ import annotations

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops._scalar import scalar


def _check(centroids: torch.Tensor, counts: torch.Tensor, seed: torch.Tensor, iteration: torch.Tensor) -> None:
    _validate.points(centroids, "centroids")
    if centroids.shape[-2] == 0:
        raise ValueError(f"centroids has shape {tuple(centroids.shape)}: expected at least one cluster")
    _validate.integers(counts, "counts", centroids.shape[:-1])
    _validate.same_device(counts, "counts", centroids)
    for name, value in (("seed", seed), ("iteration", iteration)):
        if value.dtype != torch.int64:
            raise TypeError(f"{name} has dtype {value.dtype}: expected int64; use .long()")
        if value.shape not in ((), centroids.shape[:-2]):
            raise ValueError(f"{name} has shape {tuple(value.shape)}: expected () or one for every problem")


def _fake(
    centroids: torch.Tensor, counts: torch.Tensor, seed: torch.Tensor, iteration: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(centroids, memory_format=torch.contiguous_format), torch.empty_like(counts)


_op = _registry.define(
    "split_empty",
    "(Tensor centroids, Tensor counts, Tensor seed, Tensor iteration) -> (Tensor, Tensor)",
    package=__name__,
    check=_check,
    fake=_fake,
    native_cpu=("split_empty",),
    native_cuda=("split_empty",),
)


def split_empty(
    centroids: torch.Tensor, counts: torch.Tensor, seed: int | torch.Tensor, iteration: int | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split large clusters until none is empty.

    For each empty cluster in order: a donor is drawn with probability proportional to its count - 1; its centroid
    is copied; even dimensions of the copy are multiplied by 1 + 1/1024 and odd ones by 1 - 1/1024, the donor's
    the other way round; the copy takes half of the donor's count (rounded down). The draw is mulhi64 of 64 bits
    of Philox4x32-10, keyed by (seed, iteration, cluster), and the total of count - 1: a pure function of its
    arguments, the same on every device.

    Parameters
    ----------
    centroids : Tensor of shape (k, d) or (B, k, d)
        float32, float64, float16 or bfloat16 (the latter two widened to float32 and rounded at the end).
    counts : Tensor of shape (k,) or (B, k), int64
        Members; 0 means empty.
    seed, iteration : int or Tensor of shape () or (B,), int64
        Tensors on the device of `centroids` are read there, so that a captured graph draws anew.

    Returns
    -------
    centroids, counts : Tensor
        New tensors. Clusters stay empty only where no cluster holds two members.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices do not fit.

    Notes
    -----
    O(k + e (k + d)) operations for e empty clusters.
    """
    device = centroids.device
    return _op(
        centroids,
        counts,
        scalar(seed, torch.int64, device),
        scalar(iteration, torch.int64, device),
    )
