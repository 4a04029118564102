"""assign: the label of the nearest centroid."""

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
