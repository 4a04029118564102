"""assign and reassign: the label of the nearest centroid, from scratch and after the centroids have moved."""

from __future__ import annotations

import torch

from dcfast.ops import _registry, _validate


def _check(x: torch.Tensor, centroids: torch.Tensor) -> None:
    _validate.points(x, "x")
    _validate.points_like(centroids, "centroids", x)
    if centroids.shape[-2] == 0:
        raise ValueError("centroids has 0 rows: there must be at least one centroid")


def _fake(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.int64)


_op = _registry.define(
    "assign",
    "(Tensor x, Tensor centroids) -> Tensor",
    package=__name__,
    check=_check,
    fake=_fake,
    native_cpu=("assign_workspace", "assign_prepare", "assign_scratch", "assign"),
)


def _check_reassign(x: torch.Tensor, centroids: torch.Tensor, previous: torch.Tensor, labels: torch.Tensor) -> None:
    _check(x, centroids)
    if x.dim() != 2:
        raise ValueError(f"x has shape {tuple(x.shape)}: reassign takes one problem, of shape (N, d)")
    if previous.shape != centroids.shape or previous.dtype != centroids.dtype or previous.device != x.device:
        raise ValueError(
            f"previous is {previous.dtype} {tuple(previous.shape)} on {previous.device}: expected the dtype, shape and "
            f"device of centroids, {centroids.dtype} {tuple(centroids.shape)} on {x.device}"
        )
    _validate.integers(labels, "labels", x.shape[:-1])
    _validate.same_device(labels, "labels", x)


_reassign_op = _registry.define(
    "reassign",
    "(Tensor x, Tensor centroids, Tensor previous, Tensor labels) -> Tensor",
    package=__name__,
    check=_check_reassign,
    fake=lambda x, centroids, previous, labels: _fake(x, centroids),
    native_cpu=("assign_workspace", "assign_prepare", "assign_scratch", "assign"),
)


def assign(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    """Label every row with its nearest centroid.

    The label of a row x_i is the j that minimises D64(x_i, c_j), the lowest on ties, where D64 sums the squared
    differences of the elements in order, in IEEE double, each operation rounded on its own. Every backend returns
    this label; how it finds it differs.

    Parameters
    ----------
    x : Tensor of shape (N, d) or (B, N, d)
        float32, float64, float16 or bfloat16 (the latter two widened exactly). Any strides.
    centroids : Tensor of shape (k, d) or (B, k, d)
        Of the dtype and device of `x`.

    Returns
    -------
    Tensor of shape (N,) or (B, N), int64
        A centroid with a NaN or an infinity is never chosen; a row with one, or no finite centroid, gives -1.

    Raises
    ------
    TypeError
        If a dtype is not one of those above.
    ValueError
        If shapes, dtypes or devices do not fit each other.

    Notes
    -----
    O(N k d) operations and O(N + k d) memory: no N x k matrix.

    Examples
    --------
    >>> import torch, dcfast
    >>> dcfast.ops.assign(torch.tensor([[0.0], [0.9]]), torch.tensor([[0.0], [1.0]]))
    tensor([0, 1])
    """
    return _op(x, centroids)


def reassign(x: torch.Tensor, centroids: torch.Tensor, previous: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """`assign(x, centroids)`, found sooner from the labels for the centroids of the iteration before.

    A centroid that did not change cannot beat a row's own one unless that moved away from the row, so most rows need
    only be compared with the centroids that did change. Late in a run of k-means that is a few of them.

    Parameters
    ----------
    x : Tensor of shape (N, d)
        As for `assign`.
    centroids, previous : Tensor of shape (k, d)
        Now and before, of the dtype and device of `x`.
    labels : Tensor of shape (N,), int64
        `assign(x, previous)`. With any other labels the result is not defined.

    Returns
    -------
    Tensor of shape (N,), int64
        What `assign(x, centroids)` returns, whatever the backend; only the native one looks at the labels.

    Raises
    ------
    TypeError, ValueError
        As `assign`, and if `previous` or `labels` do not fit.
    """
    return _reassign_op(x, centroids, previous, labels)
