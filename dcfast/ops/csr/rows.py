"""The rows that the ops of this folder read."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Csr:
    """Sparse rows on the CPU, over memory that other objects may share.

    Attributes
    ----------
    indptr : Tensor of shape (N + 1,), int64
        Row i holds the elements indptr[i] to indptr[i + 1] of the other two.
    indices : Tensor of shape (nnz,), int64 or int32
        Their columns: within [0, n_features), and ascending in every row without a repetition. That is not checked;
        the ops would read and write elsewhere.
    values : Tensor of shape (nnz,), float32 or float64
    n_features : int

    Notes
    -----
    `assign`, `reassign`, `accumulate`, `RunningSums.move`, `column_range`, `minibatch_step`, `point_distances` and
    `inertia` take it in the place of the rows and return what they return for its dense form.
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor
    n_features: int

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """`indptr`, `indices` and `values`."""
        return self.indptr, self.indices, self.values

    @property
    def shape(self) -> tuple[int, int]:
        """(N, n_features)."""
        return self.indptr.shape[0] - 1, self.n_features

    @property
    def dtype(self) -> torch.dtype:
        """That of the values."""
        return self.values.dtype

    def __getitem__(self, rows: torch.Tensor) -> Csr:
        """The rows of these numbers (m,), in their order."""
        begin = self.indptr[rows]
        length = self.indptr[rows + 1] - begin
        indptr = torch.zeros(len(rows) + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(length, 0, out=indptr[1:])
        at = torch.arange(int(indptr[-1]), device="cpu") + (begin - indptr[:-1]).repeat_interleave(length)
        return Csr(indptr, self.indices[at], self.values[at], self.n_features)

    def to(self, dtype: torch.dtype) -> Csr:
        """The same rows with values of that dtype."""
        return Csr(self.indptr, self.indices, self.values.to(dtype), self.n_features)

    def part(self, at: slice) -> Csr:
        """Rows that follow one another, over the same memory."""
        return Csr(self.indptr[at.start : at.stop + 1], self.indices, self.values, self.n_features)

    def dense(self) -> torch.Tensor:
        """The rows as a tensor of shape (N, n_features)."""
        out = self.values.new_zeros(self.shape)
        own = slice(int(self.indptr[0]), int(self.indptr[-1]))
        row = torch.arange(self.shape[0], device="cpu").repeat_interleave(self.indptr.diff())
        out[row, self.indices[own].long()] = self.values[own]
        return out
