"""What goes in and out: rows as float32 tensors, and the C++ vectors that faiss's Python shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dcfast.cluster import arrays
from dcfast.cluster.neighbours import BLOCK_BYTES, squared_distances


def as_float32(array: Any) -> torch.Tensor:
    """Tensors and arrays of other libraries where they are; numpy's and what it reads converted as faiss does."""
    if hasattr(array, "__dlpack__") and not isinstance(array, np.ndarray):
        return arrays.as_tensor(array).to(torch.float32)
    return arrays.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def as_rows(x: Any, d: int, name: str = "x") -> torch.Tensor:
    """`x` of shape (n, d) as a float32 tensor: a view of it where it is float32 already.

    Raises
    ------
    ValueError
        If `x` has another shape or cannot be read as numbers.
    """
    rows = as_float32(x)
    if rows.dim() != 2 or rows.shape[1] != d:
        raise ValueError(f"{name} has shape {tuple(rows.shape)}: expected (n, {d}), {d} being the d given at first")
    return rows


def of_unit_length(rows: torch.Tensor) -> torch.Tensor:
    """Copies of the rows, divided by their lengths in double; rows of zeros or with NaN as they are."""
    norms = arrays.square_root(squared_distances(rows, rows.new_zeros(1, rows.shape[1])))
    return (rows.double() / torch.where(norms > 0, norms, 1)[:, None]).float()


def normalize_L2(x: Any) -> None:
    """Divide the rows of `x` by their lengths, in place.

    Parameters
    ----------
    x : numpy array or tensor of shape (n, d), float32
        Rows of zeros, or with NaN, stay as they are. Lengths are computed in double: no row is too short or too long.

    Raises
    ------
    TypeError
        If `x` is something else: nothing else can be changed in place.
    ValueError
        If it has another shape, or is read-only.
    """
    if not isinstance(x, (np.ndarray, torch.Tensor)) or x.dtype not in (np.float32, torch.float32):
        kind = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"x is {kind}: expected a numpy array or a tensor of float32, to be changed in place")
    if isinstance(x, np.ndarray) and not x.flags.writeable:
        raise ValueError("x is read-only: it is changed in place, so pass a copy")
    rows = arrays.as_tensor(x)
    if rows.dim() != 2:
        raise ValueError(f"x has shape {tuple(rows.shape)}: expected (n, d)")
    for block in rows.split(max(1, BLOCK_BYTES // (8 * max(1, rows.shape[1])))):
        block.copy_(of_unit_length(block))


class Vector:
    """A std::vector as faiss's Python shows it: `size()` and `at(i)`."""

    def __init__(self, items: Sequence[Any] | np.ndarray) -> None:
        self._items: Any = items

    def __repr__(self) -> str:
        return f"Vector({self._items!r})"

    def size(self) -> int:
        """Number of elements."""
        return len(self._items)

    def at(self, i: int) -> Any:
        """Element `i`."""
        return self._items[i]


def vector_to_array(v: Vector) -> np.ndarray:
    """A copy of a vector of numbers as a one-dimensional numpy array.

    Raises
    ------
    TypeError
        If `v` is no vector, or one of other things than numbers.
    """
    if not isinstance(v, Vector) or not isinstance(v._items, np.ndarray):
        raise TypeError(f"v is {v!r}: expected a vector of numbers, such as Clustering.centroids")
    return v._items.copy()


vector_float_to_array = vector_to_array


def copy_array_to_vector(a: np.ndarray, v: Vector) -> None:
    """Replace what a vector holds by a copy of the one-dimensional array `a`.

    Raises
    ------
    TypeError
        If `v` is no vector of numbers.
    ValueError
        If `a` has more than one dimension.
    """
    dtype = vector_to_array(v).dtype
    array = np.array(a, dtype=dtype)
    if array.ndim != 1:
        raise ValueError(f"a has shape {array.shape}: expected one dimension; use a.ravel()")
    v._items = array
