"""Rows that are read, converted or made dense a block at a time, from arrays of any kind or from streams."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch

from dcfast.cluster import arrays
from dcfast.cluster.points import Points


class Sliced(Points):
    """Rows that are read, converted or made dense a block at a time.

    Sparse rows come this way where they are too dense for `Sparse` to pay, or another device works on them.

    Parameters
    ----------
    source : Tensor, numpy array, memory map or CSR matrix of shape (n_samples, n_features)
    dtype : torch.dtype
        Of the blocks.
    max_memory : int
        Bytes: a block takes a quarter of them, so that there is room for the one before it and for what it is made of.
    """

    def __init__(self, source: Any, dtype: torch.dtype, max_memory: int) -> None:
        self.source = source
        self.n_samples, self.n_features = source.shape
        self.dtype, self.max_memory = dtype, max_memory
        self.device = source.device if isinstance(source, torch.Tensor) else torch.device("cpu")
        self.block_rows = block_rows(self.n_features, dtype, max_memory)

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for start in range(0, self.n_samples, self.block_rows):
            at = slice(start, min(self.n_samples, start + self.block_rows))
            yield at, _dense(self.source[at], self.dtype)
            _forget_pages(self.source)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        index = rows.to(self.device) if isinstance(self.source, torch.Tensor) else rows.cpu().numpy()
        return _dense(self.source[index], self.dtype)

    def _part(self, rows: torch.Tensor) -> Points:
        if not scipy.sparse.issparse(self.source):
            return super()._part(rows)
        return Sliced(self.source[rows.cpu().numpy()], self.dtype, self.max_memory)


class Streamed(Points):
    """Rows that a function gives anew in every pass: it returns an iterator of 2-D arrays.

    Parameters
    ----------
    source : callable
        Without arguments. Every call must give the same rows, however they are cut into chunks.
    at_least : torch.dtype, optional
        The rows are of the widest dtype of the chunks and this.
    max_memory : int
        Bytes: as for `Sliced`; the chunks themselves are the caller's.

    Raises
    ------
    ValueError
        If the chunks are not two-dimensional with one number of columns; from `blocks`, if their rows are not as many
        as in the first pass.
    """

    def __init__(self, source: Callable[[], Any], max_memory: int, at_least: torch.dtype | None = None) -> None:
        self.source = source
        self.n_samples, self.n_features = 0, 0
        dtype, device = at_least, None
        for chunk in source():
            chunk = _as_rows(chunk)
            if len(chunk.shape) != 2 or chunk.shape[1] == 0 or (device and chunk.shape[1] != self.n_features):
                columns = self.n_features if device else "n_features"
                raise ValueError(f"X gave a chunk of shape {tuple(chunk.shape)}: expected (rows, {columns})")
            self.n_samples += chunk.shape[0]
            self.n_features = chunk.shape[1]
            if device is None:
                self.answer = arrays.answer_like(chunk)
            device = device or (chunk.device if isinstance(chunk, torch.Tensor) else torch.device("cpu"))
            own = arrays.float_dtype(chunk)
            dtype = own if dtype is None else torch.promote_types(dtype, own)
        if device is None:
            raise ValueError("X gave no chunks: expected an iterator of 2-D arrays from every call")
        assert dtype is not None
        self.dtype, self.device = dtype, device
        self.block_rows = block_rows(self.n_features, dtype, max_memory)

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        size, start, filled = self.block_rows, 0, 0
        buffer = torch.empty(min(size, self.n_samples), self.n_features, dtype=self.dtype, device=self.device)
        for chunk in self._chunks():
            done = 0
            while done < chunk.shape[0]:
                # Whole blocks of a chunk pass as they are; small chunks, and what is left of large ones, are joined.
                if filled == 0 and chunk.shape[0] - done >= size:
                    yield slice(start, start + size), _dense(chunk[done : done + size], self.dtype).to(self.device)
                    start, done = start + size, done + size
                    continue
                more = min(size - filled, chunk.shape[0] - done)
                buffer[filled : filled + more] = _dense(chunk[done : done + more], self.dtype)
                filled, done = filled + more, done + more
                if filled == size:
                    yield slice(start, start + size), buffer
                    start, filled = start + size, 0
        if filled:
            yield slice(start, start + filled), buffer[:filled]

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        out = torch.empty(rows.shape[0], self.n_features, dtype=self.dtype, device=self.device)
        rows = rows.to(self.device)
        for at, block in self.blocks():
            here = torch.nonzero((rows >= at.start) & (rows < at.stop))[:, 0]
            out[here] = block[rows[here] - at.start]
        return out

    def _chunks(self) -> Iterator[Any]:
        """One pass, in which nothing may have changed."""
        n = 0
        for chunk in self.source():
            rows = _as_rows(chunk)
            n += rows.shape[0]
            if n > self.n_samples or rows.shape[1:] != (self.n_features,):
                break
            yield rows
        if n != self.n_samples or rows.shape[1:] != (self.n_features,):
            raise ValueError(
                f"X gave {self.n_samples} rows of {self.n_features} features at first and other ones later: every "
                "call must return an iterator of the same rows"
            )


def block_rows(n_features: int, dtype: torch.dtype, max_memory: int) -> int:
    return max(1, max_memory // 4 // (n_features * dtype.itemsize))


def _as_rows(chunk: Any) -> Any:
    """A chunk as a tensor, a numpy array or a sparse matrix that can be sliced."""
    if scipy.sparse.issparse(chunk):
        return chunk.tocsr()
    if isinstance(chunk, torch.Tensor) or arrays.is_foreign(chunk):
        return arrays.as_tensor(chunk)
    return np.asarray(chunk)


def _dense(rows: Any, dtype: torch.dtype) -> torch.Tensor:
    if scipy.sparse.issparse(rows):
        rows.check_format(full_check=True)  # `toarray` writes wherever an index says
        rows = rows.toarray()
    if isinstance(rows, np.ndarray):
        # NumPy converts what torch has no type for: long doubles, other orders of bytes, negative strides.
        return arrays.from_numpy(np.ascontiguousarray(rows, dtype=arrays.NUMPY[dtype]))
    return arrays.as_tensor(rows).to(dtype).contiguous()


def _forget_pages(source: Any) -> None:
    """Let go of what was read of a memory map: it stays in the system's cache, but counts no more as ours."""
    mapping = getattr(source, "_mmap", None)
    # A copy-on-write map would lose what was written to it.
    if mapping is not None and source.mode != "c" and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)
