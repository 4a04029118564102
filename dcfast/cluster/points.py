"""The rows that k-means reads: in order, in dense blocks of bounded size, from memory, from disk or from a stream."""

from __future__ import annotations

import copy
import functools
import mmap
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import validate_data

from dcfast import ops
from dcfast.cluster import arrays
from dcfast.cluster.ranks import Ranks
from dcfast.cluster.transfer import on_device
from dcfast.ops.accumulate.grid import carry_

# Multiply-adds per iteration up to which a problem, alone or among many, is left to one thread; and, alone, elements of
# rows, 16 more each for what a row costs anyway. Measured on two cores, from 200,000 x 2 to 1,000 x 100.
_FEW_OPERATIONS, _MANY_OPERATIONS = 2**24, 2**26
_FEW_ELEMENTS = 3 * 2**19
# A fused run holds whole blocks of 256 rows, however few there are: at so many columns 1 MiB, as much as L2 holds.
_FEW_COLUMNS = 2**10
# Bytes of rows that are converted or read at once unless the caller says otherwise.
DEFAULT_MEMORY = 2**25
# The same where rows pass from the host to a GPU: large copies, and four of them in flight or in buffers.
_STREAM_MEMORY = 2**30
# Cached properties of points.
_GRIDS = ("row_grid", "grid", "weight_grid")
# Elements of rows that are divided by their norms at once.
_UNIT_ELEMENTS = 2**18
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


class Points(ABC):
    """Rows of shape (n_samples, n_features) and their weights, read block by block as often as asked.

    Attributes
    ----------
    n_samples, n_features : int
    dtype : torch.dtype
        float32, float64, float16 or bfloat16: that of every block.
    device : torch.device
    sample_weight : Tensor of shape (n_samples,), float64, or None
    source : object
        Where the rows come from, if that is more than a tensor: a CSR matrix, a memory map, a function of chunks.
    answer : callable
        Turns a tensor into the kind of array that the caller gave, or that the first of the chunks is.
    ranks : Ranks
        The processes that have other rows. The rows of all count in the order of the ranks: `total` of them, of which
        the first here is number `offset`. Where a method speaks of numbers of rows, they are this process's own.
    """

    n_samples: int
    n_features: int
    dtype: torch.dtype
    device: torch.device
    sample_weight: torch.Tensor | None = None
    source: Any = None
    answer: Callable[[torch.Tensor], Any] = staticmethod(arrays.to_numpy)

    # Whether the rows lie in memory in the form that the ops read.
    resident = False
    ranks = Ranks()
    offset = 0
    _total: int | None = None

    @property
    def total(self) -> int:
        """Rows of all ranks."""
        return self.n_samples if self._total is None else self._total

    @abstractmethod
    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Which rows, and the rows: a tensor that is valid until the next block is asked for."""

    def operands(self) -> Iterator[tuple[slice, torch.Tensor | ops.Csr]]:
        """The blocks in the form that the ops read: dense, or sparse where the rows are."""
        return self.blocks()

    @abstractmethod
    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers (m,), in their order: a tensor of shape (m, n_features)."""

    def subset(self, rows: torch.Tensor) -> Points:
        """The rows of these numbers, and their weights, as points."""
        weight = None if self.sample_weight is None else self.sample_weight[rows]
        if not _is_sparse(self.source):
            part: Points = InMemory(self.take(rows))
        else:
            part = Sliced(self.source[rows.cpu().numpy()], self.dtype, DEFAULT_MEMORY)
        part.sample_weight, part.answer = weight, self.answer
        # What sums of all rows fit, sums of some do.
        part.__dict__.update({name: self.__dict__[name] for name in _GRIDS if name in self.__dict__})
        return part

    def select(self, rows: torch.Tensor) -> torch.Tensor | ops.Csr:
        """The rows of these numbers in the form that the ops read."""
        return self.take(rows)

    def on_sphere(self, max_memory: int) -> Points:
        """The rows divided by their norms (see `unit`), of which `max_memory` bytes are looked at."""
        return OnSphere(_sliced(self, max_memory))

    def weight(self, at: slice) -> torch.Tensor | None:
        """The weights of a block."""
        return None if self.sample_weight is None else self.sample_weight[at]

    @functools.cached_property
    def row_grid(self) -> ops.Grid:
        """That of the sums of the rows without their weights (see `dcfast.ops.sum_grid`)."""
        return self._grid(None)

    @functools.cached_property
    def grid(self) -> ops.Grid:
        """That of the sums of the rows times their weights."""
        return self.row_grid if self.sample_weight is None else self._grid(self.sample_weight)

    @functools.cached_property
    def weight_grid(self) -> ops.Grid | None:
        """That of the sums of the weights, where there are any."""
        if self.sample_weight is None:
            return None
        smallest, largest = ops.column_range(self.sample_weight[:, None])
        return self._common_grid(smallest, largest, torch.float64, weighted=False)

    def _grid(self, weight: torch.Tensor | None) -> ops.Grid:
        smallest = torch.full((self.n_features,), torch.inf, dtype=torch.float64, device=self.device)
        largest = torch.zeros_like(smallest)
        with self.ranks.together():
            for at, rows in self.operands():
                low, high = ops.column_range(rows, None if weight is None else weight[at])
                smallest, largest = torch.minimum(smallest, low), torch.maximum(largest, high)
        return self._common_grid(smallest, largest, self.dtype, weight is not None)

    def _common_grid(
        self, smallest: torch.Tensor, largest: torch.Tensor, dtype: torch.dtype, weighted: bool
    ) -> ops.Grid:
        return ops.grid_of(self.ranks.minimum(smallest), self.ranks.maximum(largest), dtype, self.total, weighted)

    def fetch(self, rows: torch.Tensor) -> torch.Tensor:
        """The rows of these numbers among those of all ranks, on every rank."""
        if self.ranks.size == 1:
            return self.take(rows)
        own = torch.nonzero((rows >= self.offset) & (rows < self.offset + self.n_samples))[:, 0]
        out = torch.zeros(len(rows), self.n_features, dtype=self.dtype, device=self.device)
        with self.ranks.together():
            out[own.to(self.device)] = self.take(rows[own] - self.offset)
        # Bytes, one rank's and zeros, add up to the same bytes: as numbers -0.0 would become 0.0.
        return self.ranks.sum(out.view(torch.uint8)).view(self.dtype)

    def total_sums(self, running: ops.RunningSums) -> ops.ClusterSums:
        """The sums of all ranks."""
        if self.ranks.size == 1:
            return running.sums()
        everywhere = copy.copy(running)
        everywhere.words, everywhere.counts = self.ranks.sum(running.words), self.ranks.sum(running.counts)
        carry_(everywhere.words)
        if running.weight_grid is not None:
            everywhere.weight_words = self.ranks.sum(running.weight_words)
            carry_(everywhere.weight_words)
        return everywhere.sums()

    def assign(self, centroids: torch.Tensor) -> torch.Tensor:
        """The label of every row: (n_samples,) int64."""
        labels = torch.empty(self.n_samples, dtype=torch.int64, device=self.device)
        with self.ranks.together():
            for at, rows in self.operands():
                labels[at] = ops.assign(rows, centroids)
        return labels

    def distances(self, centroids: torch.Tensor, labels: torch.Tensor, *, weighted: bool = False) -> torch.Tensor:
        """D64 of every row and the centroid of its label, times its weight if so asked: (n_samples,) float64."""
        out = torch.empty(self.n_samples, dtype=torch.float64, device=self.device)
        with self.ranks.together():
            for at, rows in self.operands():
                out[at] = ops.point_distances(rows, centroids, labels[at], self.weight(at) if weighted else None)
        return out

    def closer(self, candidates: torch.Tensor, potential: torch.Tensor | None) -> torch.Tensor:
        """The potential RN64(w D64) of every row if each of the candidates (m, d) joins the centroids: (m, N)."""
        count, d = candidates.shape
        out = torch.empty(count, self.n_samples, dtype=torch.float64, device=self.device)
        with self.ranks.together():
            for at, rows in self.blocks():
                n, weight = rows.shape[0], self.weight(at)
                labels = torch.zeros(1, 1, dtype=torch.int64, device=rows.device).expand(count, n)
                weight = None if weight is None else weight.expand(count, n)
                out[:, at] = ops.point_distances(rows.expand(count, n, d), candidates[:, None], labels, weight)
        return out if potential is None else torch.minimum(out, potential, out=out)

    def inertia(self, centroids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The weighted sum of squared distances of the rows of all ranks, rounded once: () float64."""
        return self.ranks.exact_sum(self.distances(centroids, labels, weighted=True))

    def mean(self, *, weighted: bool = True) -> torch.Tensor:
        """The exact mean of the rows of all ranks, rounded to their dtype: (n_features,)."""
        grids = (self.grid, self.weight_grid) if weighted else (self.row_grid, None)
        sums = ops.RunningSums(1, *grids, self.device)
        with self.ranks.together():
            for at, rows in self.operands():
                first = torch.zeros(rows.shape[0], dtype=torch.int64, device=self.device)
                sums.move(rows, first, first - 1, self.weight(at) if weighted else None)
        zero = torch.zeros(1, self.n_features, dtype=self.dtype, device=self.device)
        return ops.means(self.total_sums(sums), zero)[0]

    @functools.cached_property
    def mean_variance(self) -> float:
        """The mean over the features of their variance among the rows of all ranks, without weights."""
        labels = torch.zeros(self.n_samples, dtype=torch.int64, device=self.device)
        squares = self.distances(self.mean(weighted=False)[None], labels)
        return float(self.ranks.exact_sum(squares)) / (self.total * self.n_features)

    def check_finite(self) -> None:
        """Raise ValueError with the number of NaN and infinite elements, and where the first is."""
        count, first = 0, None
        for at, rows in self.blocks():
            found, where = arrays.non_finite(rows)
            if found and first is None:
                first = (at.start + where[0], *where[1:])
            count += found
        if first is not None:
            raise ValueError(arrays.not_finite("X", count, first))


class InMemory(Points):
    """The rows of a tensor of shape (n_samples, n_features), as one block."""

    resident = True

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.n_samples, self.n_features = x.shape
        self.dtype, self.device = x.dtype, x.device

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        yield slice(0, self.n_samples), self.x

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        return self.x.index_select(0, rows.to(self.device))  # several times as fast as x[rows]

    def assign(self, centroids: torch.Tensor) -> torch.Tensor:
        with self.ranks.together():
            return ops.assign(self.x, centroids)

    @property
    def bounds(self) -> torch.Tensor:
        """The offsets of the one problem, for ops that take many."""
        return torch.tensor([0, self.n_samples])

    def is_small(self, n_clusters: int, *, n_problems: int = 1, n_samples: int | None = None) -> bool:
        """Whether one thread makes a whole run sooner than all threads make one op after the other.

        An iteration by ops costs some 0.5 ms whatever the size. Where there are more problems, of at most `n_samples`
        rows, no thread waits.
        """
        n_samples = n_samples or self.n_samples
        most = _FEW_OPERATIONS if n_problems == 1 else _MANY_OPERATIONS
        served = self.device.type == "cpu" and self.dtype in (torch.float32, torch.float64) and self.ranks.size == 1
        few = n_problems > 1 or (self._elements <= _FEW_ELEMENTS and self.n_features <= _FEW_COLUMNS)
        return served and few and n_samples * self.n_features * n_clusters <= most and n_samples <= 2**22

    @property
    def _elements(self) -> int:
        return self.n_samples * (self.n_features + 16)


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
        self.dtype = dtype
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


class OnSphere(Points):
    """The rows of other points, each divided by its norm (see `unit`).

    Raises
    ------
    ValueError
        From `blocks` and `take`, if the square of a norm leaves the range of doubles.
    """

    def __init__(self, points: Points) -> None:
        self.points = points
        self.n_samples, self.n_features = points.n_samples, points.n_features
        self.dtype, self.device = points.dtype, points.device
        self.source, self.answer = points.source, points.answer

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        for at, rows in self.points.blocks():
            yield at, unit(rows)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        return unit(self.points.take(rows))

    def check_finite(self) -> None:
        self.points.check_finite()


class OnDevice(Points):
    """The rows of other points, worked on by another device."""

    def __init__(self, points: Points, device: torch.device) -> None:
        self.points, self.device = points, device
        self.n_samples, self.n_features = points.n_samples, points.n_features
        self.dtype, self.source = points.dtype, points.source
        self.answer = lambda tensor: points.answer(tensor.to(points.device))

    def blocks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        yield from on_device(self.points.blocks(), self.device)

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        return self.points.take(rows.to(self.points.device)).to(self.device)


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


def open_points(
    estimator: BaseEstimator,
    X: Any,
    *,
    reset: bool,
    sample_weight: Any = None,
    min_rows: int = 1,
    at_least: torch.dtype | None = None,
    max_memory: int | str | None = None,
    spherical: bool = False,
    ranks: Ranks | None = None,
    device: torch.device | str | None = None,
) -> Points:
    """Check `X` and `sample_weight`; sets or checks `n_features_in_`, and `feature_names_in_` for data frames.

    Parameters
    ----------
    X : array, tensor, sparse matrix, memory map, path or callable
        Of shape (n_samples, n_features). A path names a `.npy` file; a callable returns an iterator of 2-D arrays and
        is called once for every pass. Integers and other types become float64, as in scikit-learn.
    sample_weight : array of shape (n_samples,), optional
    at_least : torch.dtype, optional
        Narrower rows are widened to this.
    max_memory : int or str, optional
        Bytes (or such as '512MiB') of rows that are converted or read at once; what fits is converted only once.
        If not given 32 MiB, or half of what is free on a GPU that the rows are not on.
    spherical : bool
        Divide the rows by their norms.
    ranks : Ranks, optional
        Processes that call this with rows of their own: errors are raised on all of them.
    device : torch.device or str, optional
        What works on the rows, if not the device that they are on.

    Raises
    ------
    FileNotFoundError
        If there is no file of that name.
    TypeError
        If `X` is no such thing.
    ValueError
        If `X` is not two-dimensional, too small, of another number of features than in fit, or not finite; the
        message counts the non-finite elements and names the first. If ranks have rows of different kinds.
    """
    ranks = ranks or Ranks()
    with ranks.together():
        memory = parse_memory(max_memory)
        min_here = min_rows if ranks.size == 1 else 0
        points = _open(estimator, X, reset, min_here, at_least, min(memory, _STREAM_MEMORY) if device else memory)
        place = points.device if device is None else find_device(device)
        if place != points.device:
            if place.type == "cuda" and max_memory is None:
                memory = torch.cuda.mem_get_info(place)[0] // 2
            points = OnDevice(_sliced(points, min(memory, _STREAM_MEMORY)), place)
        points.check_finite()
        if spherical:
            answer = points.answer
            points = points.on_sphere(memory)
            points.answer = answer
        points = _loaded(points, memory)
        points.sample_weight = arrays.sample_weights(sample_weight, points.n_samples, points.device)
    _join(points, ranks)
    if points.total < min_rows or points.n_features < 1:
        shape = (points.total, points.n_features)
        raise ValueError(f"X has shape {shape}: expected at least {min_rows} sample(s) and 1 feature")
    if points.sample_weight is not None:
        some = torch.tensor([bool((points.sample_weight > 0).any())], dtype=torch.int64)
        if not int(ranks.sum(some)):
            raise ValueError("Sample weights must contain at least one non-zero number.")
    return points


def find_device(device: torch.device | str) -> torch.device:
    """Return the device with its number; ValueError if it is none, or no GPU is there."""
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device!r} is no device: give 'cpu', 'cuda' or 'cuda:1'") from None
    if found.type == "cpu":
        return found
    if found.type != "cuda":
        raise ValueError(f"device={device!r}: k-means runs on 'cpu' and 'cuda'")
    if not torch.cuda.is_available():
        raise ValueError(f"device={device!r}, but torch sees no GPU: leave device out")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def _sliced(points: Points, memory: int) -> Points:
    """The same points, of which one block at a time is looked at."""
    if not isinstance(points, InMemory):
        return points
    sliced = Sliced(points.x, points.dtype, memory)
    sliced.answer = points.answer
    return sliced


def _join(points: Points, ranks: Ranks) -> None:
    """Let `points` know of the rows of the other ranks."""
    if ranks.size == 1:
        return
    kind = {"n_features": points.n_features, "dtype": str(points.dtype), "weighted": points.sample_weight is not None}
    ranks.agree("rows", kind)
    counts = [int(n) for n in ranks.stack(torch.tensor([points.n_samples]))]
    points.ranks, points.offset, points._total = ranks, sum(counts[: ranks.rank]), sum(counts)


def _open(
    estimator: BaseEstimator, X: Any, reset: bool, min_rows: int, at_least: torch.dtype | None, memory: int
) -> Points:
    if isinstance(X, (str, os.PathLike)):
        X = _open_file(X)
    if callable(X):
        streamed = Streamed(X, memory, at_least)
        arrays.check_features(estimator, streamed.n_features, reset)
        return streamed
    if isinstance(X, Iterator):
        raise TypeError("X is an iterator, which can be read only once: pass a function that returns one")
    from dcfast.cluster import sparse  # which is made of what is above

    answer = arrays.answer_like(X)
    if isinstance(X, torch.Tensor) and (X.layout != torch.strided or X.is_meta):
        raise TypeError(f"X is a {X.layout} tensor on {X.device}: expected a dense one with data; use .to_dense()")
    if _needs_no_conversion(estimator, X, min_rows, reset):
        estimator.n_features_in_ = X.shape[1]
    elif not isinstance(X, (torch.Tensor, np.memmap)) and not arrays.is_foreign(X):
        X = validate_data(
            estimator,
            X,
            reset=reset,
            accept_sparse="csr",
            # Whole numbers are widened block by block; text becomes numbers as in scikit-learn.
            dtype=np.float64 if getattr(getattr(X, "dtype", None), "kind", None) in ("U", "S") else "numeric",
            ensure_min_samples=min_rows,
            ensure_all_finite=False,
        )
    else:
        X = torch.from_dlpack(X) if arrays.is_foreign(X) else X
        if len(X.shape) != 2:
            raise ValueError(f"X has shape {tuple(X.shape)}: expected (n_samples, n_features); reshape it")
        arrays.check_features(estimator, X.shape[1], reset)
    dtype = arrays.float_dtype(X)
    dtype = dtype if at_least is None else torch.promote_types(dtype, at_least)
    points: Points
    if _is_sparse(X) and sparse.pays(X, dtype, memory):
        points = sparse.Sparse(X, dtype, memory)
    elif not _is_sparse(X) and not isinstance(X, np.memmap) and _serves(X, dtype):
        points = InMemory(arrays.as_tensor(X))
    else:
        points = Sliced(X, dtype, memory)
    points.answer = answer
    return points


def _needs_no_conversion(estimator: Any, X: Any, min_rows: int, reset: bool) -> bool:
    """Whether `validate_data` would find nothing to do: in which it takes as long as the labels of 1,000 rows."""
    return (
        type(X) is np.ndarray
        and X.ndim == 2
        and X.dtype in arrays.NUMPY.values()
        and X.shape[0] >= min_rows
        and X.shape[1] == (max(1, X.shape[1]) if reset else estimator.n_features_in_)
        and not hasattr(estimator, "feature_names_in_")
    )


def _serves(x: torch.Tensor | np.ndarray, dtype: torch.dtype) -> bool:
    """Whether the kernels can read the rows as they are."""
    if isinstance(x, torch.Tensor):
        # On a GPU they read any strides; on the CPU rows that are not contiguous would be copied in every pass.
        return x.dtype == dtype and (x.device.type != "cpu" or x[:1].is_contiguous())
    step = x.strides[0]
    rows = x[:1].flags
    return (
        x.dtype == arrays.NUMPY.get(dtype)
        and rows.c_contiguous
        and rows.aligned
        and step >= 0
        and step % x.itemsize == 0
    )


def _loaded(points: Points, memory: int) -> Points:
    """The same points in memory, where they fit."""
    if points.resident or points.n_samples * points.n_features * points.dtype.itemsize > memory:
        return points
    whole = torch.empty(points.n_samples, points.n_features, dtype=points.dtype, device=points.device)
    for at, rows in points.blocks():
        whole[at] = rows
    loaded = InMemory(whole)
    if not isinstance(points.source, torch.Tensor):
        loaded.source = points.source
    loaded.answer = points.answer
    return loaded


def _open_file(path: str | os.PathLike) -> np.memmap:
    name = os.fspath(path)
    try:
        array = np.load(name, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"X={name!r}: there is no such file; expected the path of a .npy file") from None
    except ValueError as error:
        raise ValueError(f"X={name!r} is no .npy file of numbers ({error}); write it by numpy.save") from None
    if not isinstance(array, np.memmap):
        raise ValueError(f"X={name!r} holds {type(array).__name__}: expected one array, as numpy.save writes")
    return array


def parse_memory(max_memory: int | str | None) -> int:
    """Bytes: 2**20 and '1MiB' mean the same; None the default."""
    if max_memory is None:
        return DEFAULT_MEMORY
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]i?)?b?\s*", str(max_memory).lower())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise ValueError(f"max_memory={max_memory!r}: expected a number of bytes, or such as '512MiB' or '2GB'")
    return size


def block_rows(n_features: int, dtype: torch.dtype, max_memory: int) -> int:
    return max(1, max_memory // 4 // (n_features * dtype.itemsize))


def unit(rows: torch.Tensor) -> torch.Tensor:
    """Every row divided by its norm: RN_T(x / RN64(sqrt(D64(x, 0)))). Rows of zeros stay.

    Raises
    ------
    ValueError
        If the square of a norm leaves the range of doubles.
    """
    out = torch.empty_like(rows, memory_format=torch.contiguous_format)
    origin = torch.zeros_like(rows[:1])
    step = max(1, _UNIT_ELEMENTS // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        part = rows[start : start + step]
        labels = torch.zeros(part.shape[0], dtype=torch.int64, device=part.device)
        squares = ops.point_distances(part, origin, labels)
        extreme = (squares > 2.0**960) | ((squares < 2.0**-960) & part.any(1))
        norms = norms_from(squares, extreme & part.isfinite().all(1))
        out[start : start + step] = part.double() / norms[:, None]
    return out


def norms_from(squares: torch.Tensor, extreme: torch.Tensor) -> torch.Tensor:
    """What rows of these squares are divided by: 1 for those of zeros. ValueError if one is extreme."""
    if bool(extreme.any()):
        raise ValueError("X has rows of a norm beyond 2^480 or below 2^-480: rescale them")
    return torch.where(squares > 0, squares.sqrt(), 1.0)


def _is_sparse(X: Any) -> bool:
    return scipy.sparse.issparse(X)


def _as_rows(chunk: Any) -> Any:
    """A chunk as a tensor, a numpy array or a sparse matrix that can be sliced."""
    if _is_sparse(chunk):
        return chunk.tocsr()
    if isinstance(chunk, torch.Tensor) or arrays.is_foreign(chunk):
        return arrays.as_tensor(chunk)
    return np.asarray(chunk)


def _dense(rows: Any, dtype: torch.dtype) -> torch.Tensor:
    if _is_sparse(rows):
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
