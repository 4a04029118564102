"""Rows of a scipy CSR matrix, which stay sparse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.cluster.blocks import block_rows
from dcfast.cluster.points import Points
from dcfast.cluster.sphere import norms_from

# An element of a dense row takes a tenth to a twentieth of the time of a non-zero: its products are int16, it is read
# in order, and bounds spare it. A dense matrix that cannot stay in memory would have to be made anew in every pass.
_LARGEST_DENSITY, _LARGEST_DENSITY_IN_BLOCKS = 0.05, 0.25
# Smaller matrices are made dense in no time, and the ops for small problems want them so.
_FEW_ELEMENTS = 2**19
# Values that are divided by the norms of their rows at once.
_UNIT_VALUES = 2**20


def pays(matrix: Any, dtype: torch.dtype, max_memory: int) -> bool:
    """Whether the rows of a CSR matrix had better stay sparse. No result depends on it."""
    elements = matrix.shape[0] * matrix.shape[1]
    in_blocks = elements * dtype.itemsize > max_memory
    largest = _LARGEST_DENSITY_IN_BLOCKS if in_blocks else _LARGEST_DENSITY
    return elements > _FEW_ELEMENTS and matrix.nnz <= largest * elements


class Sparse(Points):
    """The rows of a CSR matrix: every pass reads the non-zeros only, but for the distances that end a fit.

    Parameters
    ----------
    source : scipy CSR matrix or array of shape (n_samples, n_features)
        Never changed. Where its rows are not sorted, or hold a column twice, a copy in order is read, the elements of
        one column added up as `toarray` adds them.
    dtype : torch.dtype
        float32 or float64; values of another type are converted as a whole.
    max_memory : int
        Bytes: a block of `blocks`, which are dense, takes a quarter of them.

    Raises
    ------
    ValueError
        If indices lie outside the matrix.
    """

    resident = True
    device = torch.device("cpu")

    def __init__(self, source: Any, dtype: torch.dtype, max_memory: int) -> None:
        self.source, self.dtype, self.max_memory = source, dtype, max_memory
        self.n_samples, self.n_features = source.shape
        # Of its own, over the same memory: what scipy finds out about it is not noted in the caller's.
        matrix = scipy.sparse.csr_array((source.data, source.indices, source.indptr), source.shape)
        matrix.check_format(full_check=True)
        if not matrix.has_canonical_format:
            # Both conversions keep the order of the elements of one place, which sorting would not.
            matrix = matrix.tocsc().tocsr()
            matrix.sum_duplicates()
        self.csr = ops.Csr(
            arrays.from_numpy(np.ascontiguousarray(matrix.indptr, np.int64)),
            arrays.from_numpy(np.ascontiguousarray(matrix.indices)),
            arrays.from_numpy(np.ascontiguousarray(matrix.data, arrays.NUMPY[dtype])),
            self.n_features,
        )

    def _like(self, csr: ops.Csr, source: Any) -> Sparse:
        """Other rows, in order as well."""
        other = object.__new__(Sparse)
        other.source, other.dtype, other.max_memory, other.csr = source, self.dtype, self.max_memory, csr
        other.n_samples, other.n_features = csr.shape
        other.answer = self.answer
        return other

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        step = block_rows(self.n_features, self.dtype, self.max_memory)
        for start in range(0, self.n_samples, step):
            at = slice(start, min(self.n_samples, start + step))
            yield at, self.csr.part(at).dense()

    def operands(self) -> Iterator[tuple[slice, ops.Csr]]:
        yield slice(0, self.n_samples), self.csr

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        return self.csr[rows].dense()

    def select(self, rows: torch.Tensor) -> ops.Csr:
        return self.csr[rows]

    def _part(self, rows: torch.Tensor) -> Sparse:
        csr = self.csr[rows]
        indptr, indices, values = (tensor.numpy() for tensor in csr.tensors)
        return self._like(csr, type(self.source)((values, indices, indptr), csr.shape))

    def closer(self, candidates: torch.Tensor, potential: torch.Tensor | None) -> torch.Tensor:
        with self.ranks.together():
            return ops.csr_closer(self.csr, candidates, potential, self.sample_weight)

    def on_sphere(self) -> Sparse:
        """The rows divided by their norms (see `dcfast.cluster.sphere.unit`)."""
        csr = self.csr
        squares = ops.csr_closer(csr, torch.zeros(1, self.n_features, dtype=self.dtype, device="cpu"))[0]
        small = torch.nonzero(squares < 2.0**-960)[:, 0]
        norms = norms_from(squares, torch.cat([squares > 2.0**960, csr[small].values != 0]))
        values = torch.empty_like(csr.values)
        step = max(1, _UNIT_VALUES * self.n_samples // max(1, len(values)))
        for start in range(0, self.n_samples, step):
            part = csr.indptr[start : start + step + 1]
            own = slice(int(part[0]), int(part[-1]))
            values[own] = csr.values[own].double() / norms[start : start + step].repeat_interleave(part.diff())
        return self._like(ops.Csr(csr.indptr, csr.indices, values, csr.n_features), self.source)

    def check_finite(self) -> None:
        bad = torch.nonzero(~self.csr.values.isfinite())[:, 0]
        if len(bad):
            row = int(torch.searchsorted(self.csr.indptr, bad[0], right=True)) - 1
            raise ValueError(arrays.not_finite("X", len(bad), (row, int(self.csr.indices[bad[0]]))))
