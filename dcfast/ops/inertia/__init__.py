"""inertia: the exact sum of the weighted squared distances to the own centroid, and its two parts."""

from __future__ import annotations

import torch

from dcfast.ops import _registry, _validate, csr
from dcfast.ops.accumulate import check_weight
from dcfast.ops.csr import Csr


def _check_distances(
    x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None
) -> None:
    _validate.points(x, "x")
    _validate.points_like(centroids, "centroids", x)
    _validate.integers(labels, "labels", x.shape[:-1])
    _validate.same_device(labels, "labels", x)
    if centroids.shape[-2] == 0:
        raise ValueError("centroids has 0 rows: there must be at least one centroid")
    if sample_weight is not None:
        check_weight(sample_weight, x)


_point_distances = _registry.define(
    "point_distances",
    "(Tensor x, Tensor centroids, Tensor labels, Tensor? sample_weight) -> Tensor",
    package=__name__,
    check=_check_distances,
    fake=lambda x, centroids, labels, sample_weight: x.new_empty(x.shape[:-1], dtype=torch.float64),
    native_cpu=("point_distances",),
    native_cuda=("point_distances",),
)


def _check_values(values: torch.Tensor) -> None:
    if values.dtype != torch.float64:
        raise TypeError(f"values has dtype {values.dtype}: expected float64; use .double()")
    if values.dim() == 0:
        raise ValueError("values has no dimension: expected (N,) or (..., N)")


_exact_sum = _registry.define(
    "exact_sum",
    "(Tensor values) -> Tensor",
    package=__name__,
    check=_check_values,
    fake=lambda values: values.new_empty(values.shape[:-1]),
    native_cpu=("exact_sum_add", "exact_sum_round"),
    native_cuda=("exact_sum",),
)


def point_distances(
    x: torch.Tensor | Csr, centroids: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Squared distance of every row to the centroid of its label.

    Parameters
    ----------
    x : Tensor of shape (N, d) or (B, N, d)
        float32, float64, float16 or bfloat16. Or Csr of shape (N, d).
    centroids : Tensor of shape (k, d) or (B, k, d)
        Of the dtype and device of `x`.
    labels : Tensor of shape (N,) or (B, N), int64
        A label outside [0, k) gives the distance 0.
    sample_weight : Tensor of shape (N,) or (B, N), float64, optional

    Returns
    -------
    Tensor of shape (N,) or (B, N), float64
        RN64(w_i D64(x_i, c_label)); see `assign` for D64.

    Raises
    ------
    TypeError, ValueError
        If dtypes, shapes or devices do not fit.
    """
    if isinstance(x, Csr):
        return csr.point_distances(x, centroids, labels, sample_weight)
    return _point_distances(x, centroids, labels, sample_weight)


def exact_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum along the last dimension, rounded once: RN64 of the exact real sum.

    Parameters
    ----------
    values : Tensor of shape (..., N), float64
        An infinity or a NaN makes the sum what IEEE addition makes of it.

    Returns
    -------
    Tensor of shape (...), float64
    """
    return _exact_sum(values)


def inertia(
    x: torch.Tensor | Csr, centroids: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Sum over the rows of RN64(w_i D64(x_i, c_label)), rounded once.

    Parameters
    ----------
    x, centroids, labels, sample_weight
        As for `point_distances`.

    Returns
    -------
    Tensor of shape () or (B,), float64

    Notes
    -----
    O(N d) operations and 8 bytes per row.
    """
    return _exact_sum(point_distances(x, centroids, labels, sample_weight))
