"""What goes in and out: rows as float32 tensors, and the C++ vectors that faiss's Python shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dcfast.cluster import arrays


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
