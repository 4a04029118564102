"""Rows in CSR: what the dense ops do for k-means, from the non-zeros alone."""

from __future__ import annotations

import torch

from dcfast.ops import _registry, _validate
from dcfast.ops.csr.rows import Csr

__all__ = ["Csr", "accumulate_moves", "assign", "column_range", "csr_closer", "point_distances"]


def _check_rows(indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor) -> None:
    if indptr.dim() != 1 or indptr.shape[0] == 0:
        raise ValueError(f"indptr has shape {tuple(indptr.shape)}: expected (N + 1,)")
    _validate.integers(indptr, "indptr", indptr.shape)
    if indices.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"indices has dtype {indices.dtype}: expected int64 or int32")
    if values.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"values has dtype {values.dtype}: expected float32 or float64")
    if values.dim() != 1 or indices.shape != values.shape:
        raise ValueError(
            f"indices has shape {tuple(indices.shape)} and values {tuple(values.shape)}: expected (nnz,) for both"
        )
    for name, tensor in (("indptr", indptr), ("indices", indices), ("values", values)):
        if not tensor.is_contiguous():
            raise ValueError(f"{name} has strides {tensor.stride()}: expected a contiguous tensor")
        _validate.same_device(tensor, name, values, "values")


def _check_centroids(centroids: torch.Tensor, values: torch.Tensor, name: str = "centroids") -> None:
    if centroids.dtype != values.dtype:
        raise ValueError(f"{name} has dtype {centroids.dtype} and values {values.dtype}: convert one to the other's")
    if centroids.dim() != 2 or 0 in centroids.shape:
        raise ValueError(f"{name} has shape {tuple(centroids.shape)}: expected (k, d), both at least 1")
    _validate.same_device(centroids, name, values, "values")


def _check_assign(indptr: torch.Tensor, indices: torch.Tensor, values: torch.Tensor, centroids: torch.Tensor) -> None:
    _check_rows(indptr, indices, values)
    _check_centroids(centroids, values)


_assign = _registry.define(
    "csr_assign",
    "(Tensor indptr, Tensor indices, Tensor values, Tensor centroids) -> (Tensor, Tensor)",
    package=__name__,
    check=_check_assign,
    fake=lambda indptr, indices, values, centroids: (
        indptr.new_empty(indptr.shape[0] - 1),
        indptr.new_empty(()),
    ),
    native_cpu=("csr_assign_workspace", "csr_assign_prepare", "csr_assign"),
)


def _check_moves(
    words: torch.Tensor,
    counts: torch.Tensor,
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    labels: torch.Tensor,
    previous: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
) -> None:
    _check_rows(indptr, indices, values)
    rows = indptr.shape[0] - 1
    _validate.sums(words, counts)
    _validate.integers(labels, "labels", (rows,))
    _validate.integers(previous, "previous", (rows,))
    _validate.integers(low, "low", words.shape[2:])
    _validate.row_weights(sample_weight, (rows,), values, "values")


_accumulate_moves = _registry.define(
    "csr_accumulate_moves",
    "(Tensor(a!) words, Tensor(b!) counts, Tensor indptr, Tensor indices, Tensor values, Tensor labels, "
    "Tensor previous, Tensor? sample_weight, Tensor low) -> ()",
    package=__name__,
    check=_check_moves,
    fake=lambda *_: None,
    native_cpu=("csr_accumulate",),
)


def _check_range(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    n_features: int,
    sample_weight: torch.Tensor | None,
) -> None:
    _check_rows(indptr, indices, values)
    if n_features < 1:
        raise ValueError(f"n_features={n_features}: expected at least 1")
    _validate.row_weights(sample_weight, (indptr.shape[0] - 1,), values, "values")


_column_range = _registry.define(
    "csr_column_range",
    "(Tensor indptr, Tensor indices, Tensor values, int n_features, Tensor? sample_weight) -> (Tensor, Tensor)",
    package=__name__,
    check=_check_range,
    fake=lambda indptr, indices, values, n_features, sample_weight: (
        values.new_empty(n_features, dtype=torch.float64),
        values.new_empty(n_features, dtype=torch.float64),
    ),
    native_cpu=("csr_column_range",),
)


def _check_distances(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    centroids: torch.Tensor,
    labels: torch.Tensor,
    sample_weight: torch.Tensor | None,
) -> None:
    _check_assign(indptr, indices, values, centroids)
    rows = (indptr.shape[0] - 1,)
    _validate.integers(labels, "labels", rows)
    _validate.row_weights(sample_weight, rows, values, "values")


_point_distances = _registry.define(
    "csr_point_distances",
    "(Tensor indptr, Tensor indices, Tensor values, Tensor centroids, Tensor labels, Tensor? sample_weight) -> Tensor",
    package=__name__,
    check=_check_distances,
    fake=lambda indptr, indices, values, centroids, labels, sample_weight: values.new_empty(
        indptr.shape[0] - 1, dtype=torch.float64
    ),
    native_cpu=("csr_point_distances",),
)


def _check_closer(
    indptr: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    candidates: torch.Tensor,
    closest: torch.Tensor | None,
    sample_weight: torch.Tensor | None,
) -> None:
    _check_rows(indptr, indices, values)
    _check_centroids(candidates, values, "candidates")
    rows = (indptr.shape[0] - 1,)
    _validate.row_weights(sample_weight, rows, values, "values")
    _validate.row_weights(closest, rows, values, "values", name="closest")


_closer = _registry.define(
    "csr_closer",
    "(Tensor indptr, Tensor indices, Tensor values, Tensor candidates, Tensor? closest, Tensor? sample_weight)"
    " -> Tensor",
    package=__name__,
    check=_check_closer,
    fake=lambda indptr, indices, values, candidates, closest, sample_weight: values.new_empty(
        candidates.shape[0], indptr.shape[0] - 1, dtype=torch.float64
    ),
    native_cpu=("csr_closer",),
)


def assign(x: Csr, centroids: torch.Tensor) -> torch.Tensor:
    """`dcfast.ops.assign` of the dense form of `x`.

    Parameters
    ----------
    x : Csr
        N rows of d columns.
    centroids : Tensor of shape (k, d)
        Of the dtype of `x.values`.

    Returns
    -------
    Tensor of shape (N,), int64

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit.

    Notes
    -----
    O(nnz k + d k) operations, and O(d) for every candidate of a row that is not decided by bounds; O(d k) memory.
    """
    return _assign(*_tensors(x, centroids), centroids)[0]


def accumulate_moves(
    words: torch.Tensor,
    counts: torch.Tensor,
    x: Csr,
    labels: torch.Tensor,
    previous: torch.Tensor,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
) -> None:
    """Move rows from cluster to cluster in exact sums (see `RunningSums.move`): O(their non-zeros + k d)."""
    if words.shape[-1] != x.n_features:
        raise ValueError(f"words has shape {tuple(words.shape)}: expected {x.n_features} columns, as x has")
    _accumulate_moves(words, counts, *x.tensors, labels, previous, sample_weight, low)


def column_range(x: Csr, sample_weight: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """`dcfast.ops.column_range` of the dense form of `x`: O(nnz + d)."""
    return _column_range(*x.tensors, x.n_features, sample_weight)


def point_distances(
    x: Csr, centroids: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """`dcfast.ops.point_distances` of the dense form of `x`: O(N d), since D64 takes the elements in order."""
    return _point_distances(*_tensors(x, centroids), centroids, labels, sample_weight)


def csr_closer(
    x: Csr,
    candidates: torch.Tensor,
    closest: torch.Tensor | None = None,
    sample_weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """The potential of every row if a candidate joins the centroids: the step of k-means++ on sparse rows.

    Parameters
    ----------
    x : Csr
        N rows of d columns.
    candidates : Tensor of shape (m, d)
        Of the dtype of `x.values`; sparse, or there is nothing to gain.
    closest : Tensor of shape (N,), float64, optional
        The potentials so far.
    sample_weight : Tensor of shape (N,), float64, optional

    Returns
    -------
    Tensor of shape (m, N), float64
        The lesser of closest_i and RN64(w_i D64(x_i, candidate)).

    Raises
    ------
    TypeError, ValueError
        If dtypes or shapes do not fit.

    Notes
    -----
    O(m nnz + m d) operations, and O(non-zeros of both) for every row that a bound does not exclude.
    """
    return _closer(*_tensors(x, candidates, "candidates"), candidates, closest, sample_weight)


def _tensors(x: Csr, others: torch.Tensor, name: str = "centroids") -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the ops take, whose number of columns is that of the rows that they are compared with."""
    if others.shape[-1:] != (x.n_features,):
        raise ValueError(f"{name} has shape {tuple(others.shape)}: expected {x.n_features} columns, as x has")
    return x.tensors
