"""PCAWhiten: centred PCA, whitening and L2 normalisation, the preprocessing of DeepCluster's features."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import check_is_fitted

from dcfast.cluster import arrays
from dcfast.cluster.ranks import ProcessGroup, Ranks

# Rows per product. The covariance is the sum of one product per block by a fixed tree, so that neither the chunks in
# which the data arrives nor the ranks that hold it change a bit of it. Large enough that adding a product costs a
# twentieth of making it.
BLOCK_ROWS = 1024

# Deviations from the mean are squared: beyond 2^480 either way a variance would leave the range of doubles.
_LARGEST = 2.0**480

_SPARE = 32  # random vectors beyond a rank, so that they reach all directions of a range about equally


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """BLAS splits a product among its threads in a way that changes the order of sums: use one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class PCAWhiten(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Project on the leading principal components, scale each to unit variance, and rows to unit length.

    What DeepCluster does to features before k-means (Caron et al. 2018, section 4): PCA-reduced, whitened and
    L2-normalised.

    Parameters
    ----------
    n_components : int, default=256
        At most the number of features, and of samples less one.
    whiten : bool, default=True
        Divide each component by its standard deviation. Directions without variance (eigenvalues at rounding level)
        become 0, not infinite.
    normalize : bool, default=True
        Divide each row by its length; rows of zeros stay zeros.
    process_group : torch.distributed.ProcessGroup or bool, optional
        The processes that fit together, each on rows of its own, those of the first rank first; True is the default
        group. All get the same components: those of one process, bit for bit, if every rank's rows but the last's are
        a multiple of 1,024.

    Attributes
    ----------
    mean_ : array of shape (n_features_in_,), float64
    components_ : array of shape (n_components, n_features_in_), float64
        Orthonormal rows by descending variance; the element of largest magnitude of each is positive.
    explained_variance_ : array of shape (n_components,), float64
        Eigenvalues of the covariance (with n_samples - 1).
    n_features_in_, n_samples_seen_ : int

    Notes
    -----
    O(n_samples n_features^2 + n_features^3) operations in float64, the second term only if there are more samples than
    half of the features; one pass over the data in blocks of 1,024 rows:
    memory beyond the input is O(n_features^2 log(n_samples / 1024)). The same bits for any chunks, memory layout and
    number of threads on one machine; BLAS does not promise them across processors.

    Examples
    --------
    >>> import torch
    >>> from dcfast import PCAWhiten
    >>> PCAWhiten(2).fit_transform(torch.eye(5)).shape
    torch.Size([5, 2])
    """

    _parameter_constraints: dict = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "whiten": ["boolean"],
        "normalize": ["boolean"],
        "process_group": ["boolean", ProcessGroup, None],
    }

    def __init__(
        self, n_components: int = 256, whiten: bool = True, normalize: bool = True, process_group: Any = None
    ) -> None:
        self.n_components = n_components
        self.whiten = whiten
        self.normalize = normalize
        self.process_group = process_group

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, *, first_row: int = 0) -> PCAWhiten:
        """Find the components.

        Parameters
        ----------
        X : array of shape (n_samples, n_features), or an iterator of such arrays
            numpy (memory-mapped too), torch or cupy. The chunks of an iterator are read once, and the fitted
            arrays are numpy's.
        y : Ignored
        first_row : int
            Rows that the ranks before this one have, where X is an iterator; of arrays the ranks tell one another.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If X is not finite, has fewer than 2 rows, or too few rows or columns for `n_components`, or if it deviates
            from its mean by more than 2^480, or by less than 2^-480 everywhere, but does.
        """
        chunks = X if isinstance(X, Iterator) else iter([X])
        answer = arrays.answer_like(X) if chunks is not X else arrays.answer_like(np.empty(0))
        ranks = Ranks(self.process_group)
        blocks = _blocks(self._validated(chunks))
        with one_thread():
            with ranks.together():
                first = next(blocks, None)
                if first is None:
                    raise ValueError("X has 0 sample(s): a covariance needs at least 2")
            # Deviations from the first block's mean: far from the origin, x x^T - n m m^T would cancel.
            shift = ranks.first(first.double().mean(0))
            moments = _Moments(self._first_block(X, first_row, ranks))
            reach = torch.zeros_like(shift[0])
            with ranks.together():
                for block in chain((first,), blocks):
                    deviations = block.double() - shift
                    reach = torch.maximum(reach, torch.linalg.vector_norm(deviations, torch.inf))
                    moments.append(deviations)
            _check_reach(float(ranks.maximum(reach.nan_to_num(nan=torch.inf))), float(shift.abs().max()))
            count, total, products = ranks.in_turn(moments.after, _Moments(0), _Moments.sum)
            total, products = total.to(shift.device), products.to(shift.device)
            if count < 2:
                raise ValueError(f"X has {count} sample(s): a covariance needs at least 2")
            limit = min(count - 1, shift.numel())
            if self.n_components > limit:
                raise ValueError(
                    f"n_components={self.n_components} is more than min(n_samples - 1, n_features) = {limit}: lower it"
                )
            covariance = (products - torch.outer(total, total) / count) / (count - 1)
            values, vectors = _eigh(covariance, rank=min(count - 1, len(covariance)))
        values, vectors = values.flip(0)[: self.n_components], vectors.flip(1)[:, : self.n_components].T
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        self.mean_ = answer(shift + total / count)
        self.components_ = answer((vectors * largest.sign()).contiguous())
        self.explained_variance_ = answer(values.clamp(min=0))
        self.n_samples_seen_ = count
        self._n_features_out = self.n_components
        return self

    @staticmethod
    def _first_block(X: Any, first_row: int, ranks: Ranks) -> int:
        if ranks.size == 1:
            return 0
        if not isinstance(X, Iterator):
            first_row = sum(-(-rows // BLOCK_ROWS) * BLOCK_ROWS for rows in ranks.objects(len(X))[: ranks.rank])
        return -(-first_row // BLOCK_ROWS)

    def _validated(self, chunks: Iterable[Any]) -> Iterator[torch.Tensor]:
        for index, chunk in enumerate(chunks):
            yield arrays.as_points(self, chunk, reset=index == 0)

    def transform(self, X: Any) -> Any:
        """Project, whiten and normalise.

        Parameters
        ----------
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_components)
            Of the kind, dtype (float64 for integers) and device of X.
        """
        check_is_fitted(self)
        x = arrays.as_points(self, X, reset=False)
        mean, components, variance = (
            arrays.as_tensor(a).to(x.device) for a in (self.mean_, self.components_, self.explained_variance_)
        )
        projection = components.T
        if self.whiten:
            # Below this an eigenvalue is the rounding of a zero.
            floor = torch.finfo(torch.float64).eps * max(x.shape[1], self.n_samples_seen_) * variance.max()
            projection = projection * torch.where(variance > floor, variance.rsqrt(), 0)
        out = x.new_empty(x.shape[0], self.n_components)
        with one_thread():
            for start in range(0, x.shape[0], BLOCK_ROWS):
                block = (x[start : start + BLOCK_ROWS].double().contiguous() - mean) @ projection
                if self.normalize:
                    norm = torch.linalg.vector_norm(block, dim=1, keepdim=True)
                    block /= torch.where(norm > 0, norm, 1)
                out[start : start + BLOCK_ROWS] = block
        return arrays.answer_like(X)(out)


def _check_reach(reach: float, origin: float) -> None:
    rounding = 2.0**-50 * origin  # of the mean: constant data may deviate by as much
    if reach > _LARGEST or rounding < reach < 1 / _LARGEST:
        raise ValueError(
            f"X deviates from its mean by up to {reach:.3g}: variances are computed from deviations between 2^-480 and "
            "2^480; rescale the data"
        )


def _eigh(covariance: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return eigenvalues in ascending order, and eigenvectors as columns: all of them, or those of the range at least.

    A covariance of few rows maps a few more random vectors than its rank to its whole range (Halko, Martinsson and
    Tropp 2011, section 1.3), and is diagonalised there. The vectors are always the same: the result is a function of
    the covariance and its rank.
    """
    width = rank + _SPARE
    if 2 * width > len(covariance):
        return torch.linalg.eigh(covariance)
    draw = torch.Generator().manual_seed(0)
    random = torch.randn(len(covariance), width, dtype=covariance.dtype, generator=draw, device="cpu")
    random = random.to(covariance.device)
    basis = torch.linalg.qr(covariance @ random)[0]
    within = basis.T @ covariance @ basis
    values, vectors = torch.linalg.eigh((within + within.T) / 2)
    return values, basis @ vectors


class _Moments:
    """Sums of rows and of their outer products, by the binary tree over the numbers of the blocks.

    Two children are added as soon as both are there, so that about as many nodes are held as the number of blocks has
    bits, and the order of additions follows from the numbers alone.

    Parameters
    ----------
    first : int
        Number of the first block.
    """

    def __init__(self, first: int) -> None:
        self._next = first
        self._nodes: list[_Node] = []

    def append(self, deviations: torch.Tensor) -> None:
        """Add a block of rows (n, d)."""
        products = deviations.T @ deviations
        self._push(_Node(0, self._next, (torch.tensor(len(deviations), device="cpu"), deviations.sum(0), products)))
        self._next += 1

    def _push(self, node: _Node) -> None:
        while self._nodes and self._nodes[-1].is_sibling(node):
            left = self._nodes.pop()
            node = _Node(node.level + 1, node.index // 2, left.plus(node))
        self._nodes.append(node)

    def after(self, before: _Moments) -> _Moments:
        """Return the sums of these blocks and of others before them, on the CPU."""
        for node in self._nodes:
            before._push(_Node(node.level, node.index, tuple(one.cpu() for one in node.sums)))
        return before

    def sum(self) -> tuple[int, torch.Tensor, torch.Tensor]:
        """Return the number of rows, their sum (d,), and the sum of their outer products (d, d)."""
        *others, node = self._nodes
        for other in reversed(others):
            node = _Node(other.level, other.index, other.plus(node))
        rows, total, products = node.sums
        return int(rows), total, products


@dataclass
class _Node:
    """The sums over blocks ``index * 2**level`` to ``(index + 1) * 2**level``."""

    level: int
    index: int
    sums: tuple[torch.Tensor, ...]

    def is_sibling(self, right: _Node) -> bool:
        return self.level == right.level and self.index % 2 == 0 and self.index + 1 == right.index

    def plus(self, right: _Node) -> tuple[torch.Tensor, ...]:
        return tuple(one + other for one, other in zip(self.sums, right.sums, strict=True))


def _blocks(chunks: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The rows of the chunks in blocks of `BLOCK_ROWS`, the last one shorter, one row after the other in memory.

    torch adds the elements of a column, and BLAS those of a product, in an order that follows from their layout.
    """
    pending: list[torch.Tensor] = []
    rows = 0
    for chunk in chunks:
        while chunk.shape[0]:
            part, chunk = chunk.split([n := min(chunk.shape[0], BLOCK_ROWS - rows), chunk.shape[0] - n])
            pending.append(part)
            rows += n
            if rows == BLOCK_ROWS:
                yield pending[0].contiguous() if len(pending) == 1 else torch.cat(pending)
                pending, rows = [], 0
    if rows:
        yield torch.cat(pending)
