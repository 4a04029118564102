"""assign and reassign: the label of the nearest centroid, from scratch and after the centroids have moved."""

from __future__ import annotations

import torch

from dcfast.ops import _registry, _validate, csr
from dcfast.ops.csr import Csr


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
    native_cuda=("assign_workspace", "assign"),
)


# As in csrc/cpu/assign_prepare.h.
_NARROW, _MAX_GROUPS, _GROUP_STEP, _MAX_GROUPED = 16, 7, 16, 512


def group_size(k: int) -> int:
    """Centroids that share a column of `distance_bounds`: the column of centroid j is j // group_size(k)."""
    groups = _MAX_GROUPS if k <= _MAX_GROUPED else 1
    return -(-k // (groups * _GROUP_STEP)) * _GROUP_STEP


def _n_kept(d: int, device: torch.device) -> int:
    # With few columns a scan costs less than the bounds; on a GPU none are kept.
    return 0 if device.type != "cpu" or d <= _NARROW else _MAX_GROUPS + 1


def _check_reassign(
    x: torch.Tensor,
    centroids: torch.Tensor,
    previous: torch.Tensor,
    labels: torch.Tensor,
    bounds: torch.Tensor,
    out: torch.Tensor,
) -> None:
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
    shape = (x.shape[0], _n_kept(x.shape[1], x.device))
    if bounds.dtype != torch.float32 or bounds.shape != shape or not bounds.is_contiguous():
        raise ValueError(
            f"bounds is {bounds.dtype} {tuple(bounds.shape)}: expected what distance_bounds makes, contiguous "
            f"torch.float32 {shape}"
        )
    _validate.same_device(bounds, "bounds", x)
    _validate.integers(out, "out", x.shape[:-1])
    _validate.same_device(out, "out", x)
    if not out.is_contiguous():
        raise ValueError(f"out has strides {out.stride()}: expected a contiguous tensor")


_reassign_op = _registry.define(
    "reassign",
    "(Tensor x, Tensor centroids, Tensor previous, Tensor labels, Tensor(a!) bounds, Tensor(b!) out) -> Tensor",
    package=__name__,
    check=_check_reassign,
    fake=lambda x, centroids, previous, labels, bounds, out: x.new_empty((), dtype=torch.int64),
    native_cpu=("assign_workspace", "assign_prepare", "assign_scratch", "assign"),
    native_cuda=("assign_workspace", "assign"),
)


def assign(x: torch.Tensor | Csr, centroids: torch.Tensor) -> torch.Tensor:
    """Label every row with its nearest centroid.

    The label of a row x_i is the j that minimises D64(x_i, c_j), the lowest on ties, where D64 sums the squared
    differences of the elements in order, in IEEE double, each operation rounded on its own. Every backend returns
    this label; how it finds it differs.

    Parameters
    ----------
    x : Tensor of shape (N, d) or (B, N, d)
        float32, float64, float16 or bfloat16 (the latter two widened exactly). Any strides. Or Csr of shape (N, d).
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
    O(N k d) operations (for sparse rows O(k) per non-zero, and O(k d)) and O(N + k d) memory: no N x k matrix.

    Examples
    --------
    >>> import torch, dcfast
    >>> dcfast.ops.assign(torch.tensor([[0.0], [0.9]]), torch.tensor([[0.0], [1.0]]))
    tensor([0, 1])
    """
    return csr.assign(x, centroids) if isinstance(x, Csr) else _op(x, centroids)


def distance_bounds(n: int, d: int, device: torch.device) -> torch.Tensor:
    """What `reassign` keeps from one call to the next, for rows of which nothing is known yet.

    Parameters
    ----------
    n, d : int
        Numbers of rows and columns.
    device : torch.device

    Returns
    -------
    Tensor of shape (N, 8), float32
        Zeros. In column g comes at most the distance (not squared) from row i to every centroid of group g but its own,
        in the last one at least that to its own. Which centroids form a group only `reassign` knows. Of shape (N, 0)
        where no bounds are kept: for d <= 16 and on a GPU. They stay zeros where centroids are so few that a scan costs
        less (`is_narrow` in csrc/cpu/assign_prepare.h).
    """
    return torch.zeros(n, _n_kept(d, device), dtype=torch.float32, device=device)


def reassign(
    x: torch.Tensor | Csr,
    centroids: torch.Tensor,
    previous: torch.Tensor,
    labels: torch.Tensor,
    bounds: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    """`assign(x, centroids)`, found sooner from what the iteration before has left.

    A row is not compared with centroids of which its bounds say that they are farther than its own one, nor with those
    that did not change if its own one did not move away from it. Late in a run of k-means few comparisons are left.

    Parameters
    ----------
    x : Tensor of shape (N, d), or Csr of that shape
        As for `assign`. Sparse rows are compared with every centroid.
    centroids, previous : Tensor of shape (k, d)
        Now and before, of the dtype and device of `x`.
    labels : Tensor of shape (N,), int64
        `assign(x, previous)`, or -1 where it is not known. With any other labels the result is not defined.
    bounds : Tensor of shape (N, 8) or (N, 0), float32
        From `distance_bounds` at first, then as the call with `previous` left them. Updated in place.
    out : Tensor of shape (N,), int64
        Receives what `assign(x, centroids)` returns, whatever the backend; only the native one looks at labels and
        bounds. Other memory than `labels`.

    Returns
    -------
    Tensor of shape (), int64
        Rows whose label in `out` differs from that in `labels`.

    Raises
    ------
    TypeError, ValueError
        As `assign`, and if `previous`, `labels`, `bounds` or `out` do not fit.

    Notes
    -----
    The bounds are those of Hamerly (2010) and of Ding et al., "Yinyang K-Means" (2015), for groups by index.
    """
    if isinstance(x, Csr):
        out.copy_(csr.assign(x, centroids))
        return torch.count_nonzero(out != labels)
    return _reassign_op(x, centroids, previous, labels, bounds, out)
