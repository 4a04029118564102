"""Distances to stored vectors, and the nearest of them.

`neighbours` ranks the vectors c for a row x by lower bounds of s = |c - z|^2 / 2 - (x - z).(c - z), z being the mean of
the vectors: |x - c|^2 = a^2 + 2s with a = |x - z|, so that what s says is proved of the distance. Let b = |c - z|, and
u be the unit roundoff of the products. Rounding the operands costs 3u ab; a sum of d + 2 products, in any order, fused
or not, (d + 2) u / (1 - (d + 2) u) times the sum of their magnitudes, which is at most ab + b^2 / 2 and what the bounds
add; and the constant b^2 / 2 itself is off by (d + 6) u of it. For d < 2^18 that is less than kappa (ab + b^2 / 2) in
all, with kappa = 2 (d + 8) u. Two more columns of the product subtract it, so that what comes out is never above s:

    L = (x - z).(z - c) + 1 (1 - kappa) b^2 / 2 + a (-kappa b)

One power of two makes b at most 2^30. While a < 2^90 nothing overflows, and elements and products that are flushed to
zero, in either precision, cost less than (d + 8) 2^-124 (a + 2^30). The D64 of any k vectors are at most some t;
another vector can belong to the k nearest only if its L is at most

    (t - a^2) / 2 + (d + 8) 2^-51 (t + a^2) + (d + 8) 2^-124 (a + 2^30)

of which the second term bounds the errors of D64 and of the doubles here (2^-1000 is added to t for squares that leave
the range of doubles). So the k nearest are among the candidates, the vectors of the lowest L, if the largest L of these
is above.
"""

from __future__ import annotations

import math

import torch

from dcfast import ops

# Of the scores that a search for several neighbours holds at a time.
BLOCK_BYTES = 2**24
# Rows of such a block.
_BLOCK_ROWS = 256
# Candidates beyond the k: the shell between the k-th and the last must be thicker than the bound.
_SPARE = 8
# Of which the derivation speaks.
_MOST_COLUMNS = 2**18


def squared_distances(x: torch.Tensor, point: torch.Tensor) -> torch.Tensor:
    """D64 of every row to one point of shape (1, d): (n,) float64."""
    return ops.point_distances(x, point, torch.zeros(x.shape[0], dtype=torch.int64, device=x.device))


def neighbours(x: torch.Tensor, vectors: torch.Tensor, k: int) -> torch.Tensor:
    """Labels (n, k) of the smallest D64, lower labels first among equals; -1 as `ops.assign` gives it."""
    if k == 1:
        return ops.assign(x, vectors)[:, None]
    found = torch.full((x.shape[0], k), -1, dtype=torch.int64, device=x.device)
    sound = torch.nonzero(vectors.isfinite().all(1))[:, 0]
    rows = torch.nonzero(x.isfinite().all(1))[:, 0]
    if len(sound) == 0 or len(rows) == 0:
        return found
    for dtype in (torch.float32, torch.float64):
        if len(rows) and (dtype == torch.float64 or _may_use_float32(x)):
            bounds = _LowerBounds(vectors[sound], dtype)
            left = []
            for block in rows.split(_BLOCK_ROWS):
                nearest, proved = bounds.search(x[block], k)
                found[block, : len(sound)] = sound[nearest]
                left.append(block[~proved])
            rows = torch.cat(left)
    # Of these some vectors are as far away as the k-th but for the rounding of doubles.
    for block in rows.split(max(1, BLOCK_BYTES // (8 * len(sound)))):
        farthest = ops.point_distances(x[block], vectors, found[block, k - 1])
        found[block] = sound[bounds.search_within(x[block], farthest, k)]
    return found


def other_neighbours(x: torch.Tensor, k: int) -> torch.Tensor:
    """Labels (n, k) of the smallest D64 to other rows, all finite and more than k, lower labels first among equals."""
    found = neighbours(x, x, k + 1)
    # A row with k copies of lower labels may not be among its own neighbours: then the last is one too many.
    is_self = found == torch.arange(len(x), device=x.device)[:, None]
    is_self[:, k] |= ~is_self.any(1)
    return found[~is_self].view(-1, k)


def _may_use_float32(x: torch.Tensor) -> bool:
    """Whether a product of float32 on the device of `x` has the accuracy of float32, not that of TF32 or bfloat16."""
    backend = torch.backends.cuda if x.device.type == "cuda" else torch.backends.mkldnn
    return backend.matmul.fp32_precision in ("none", "ieee") and x.shape[1] < _MOST_COLUMNS


class _LowerBounds:
    """The vectors (n, d), all finite, as the right operand of the product in a dtype."""

    def __init__(self, vectors: torch.Tensor, dtype: torch.dtype) -> None:
        self.vectors = vectors
        self.shift = vectors.double().mean(0)
        shifted = vectors.double() - self.shift
        largest = float(torch.linalg.vector_norm(shifted, dim=1).max())
        self.scale = 2.0 ** (30 - max(-900, math.frexp(largest)[1]))
        shifted *= self.scale
        b = torch.linalg.vector_norm(shifted, dim=1, keepdim=True)
        kappa = (vectors.shape[1] + 8) * torch.finfo(dtype).eps
        self.operand = torch.cat([-shifted, (1 - kappa) / 2 * b.square(), -kappa * b], 1).to(dtype)

    def _left(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The left operand, and a: (n,)."""
        rows = (x.double() - self.shift) * self.scale
        a = torch.linalg.vector_norm(rows, dim=1)
        return torch.cat([rows, torch.ones_like(a)[:, None], a[:, None]], 1).to(self.operand.dtype), a

    def _limit(self, a: torch.Tensor, farthest: torch.Tensor) -> torch.Tensor:
        """The largest L of what may be as near as D64 `farthest`: (n,)."""
        d = self.vectors.shape[1]
        t, square = (farthest + 2.0**-1000) * self.scale * self.scale, a.square()
        limit = (t - square) / 2 + (d + 8) * (2.0**-51 * (t + square) + 2.0**-124 * (a + 2.0**30))
        return torch.where(a < 2.0**90, limit, torch.inf)

    def search(self, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Labels (r, k), or (r, n) of fewer vectors, by D64; and of which rows they are proved: (r,)."""
        n = len(self.vectors)
        operand, a = self._left(x)
        count = min(n, k + _SPARE)
        values, labels = operand[:, :0], torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
        step = BLOCK_BYTES // (_BLOCK_ROWS * operand.element_size())
        for start in range(0, n, step):
            with torch.autocast(x.device.type, enabled=False):  # whose products are coarser than the bound
                scores = operand @ self.operand[start : start + step].T
            some = _smallest(scores, count)
            values, labels = torch.cat([values, some.values], 1), torch.cat([labels, some.indices + start], 1)
            if labels.shape[1] > count:
                values, best = torch.topk(values, count, dim=1, largest=False)
                labels = labels.gather(1, best)
        nearest, distances = _by_distance(x, self.vectors, labels)
        if n == count:
            return nearest[:, :k], torch.ones_like(a, dtype=torch.bool)
        return nearest[:, :k], values[:, -1] > self._limit(a, distances[:, k - 1])

    def search_within(self, x: torch.Tensor, farthest: torch.Tensor, k: int) -> torch.Tensor:
        """Labels (r, k) by D64, of which k or more are known to be at most `farthest` (r,)."""
        operand, a = self._left(x)
        beyond = operand @ self.operand.T > self._limit(a, farthest)[:, None]
        row, label = torch.nonzero(~beyond, as_tuple=True)
        step = max(1, BLOCK_BYTES // (8 * x.shape[1]))
        parts = zip(row.split(step), label.split(step), strict=True)
        distances = torch.cat([ops.point_distances(x[rows], self.vectors, labels) for rows, labels in parts])
        order = distances.sort(stable=True).indices
        order = order[row[order].sort(stable=True).indices]
        first = torch.searchsorted(row, torch.arange(len(x), device=x.device))
        return label[order[first[:, None] + torch.arange(k, device=x.device)]]


def _smallest(scores: torch.Tensor, count: int) -> torch.return_types.topk:
    """`topk` of the smallest along dimension 1, or all of fewer.

    The smallest lie in the groups of the smallest minima, which take one sequential pass where topk takes ten.
    """
    n = scores.shape[1]
    size = math.isqrt(n // count)  # of a group: so many groups, and elements of the chosen ones, are about the fewest
    groups = n // max(1, size)
    if size < 2:
        return torch.topk(scores, min(n, count), dim=1, largest=False)
    grouped = scores[:, : size * groups].unflatten(1, (size, groups))
    chosen = torch.topk(grouped.amin(1), count, dim=1, largest=False, sorted=False).indices
    members = torch.arange(0, size * groups, groups, device=scores.device)[:, None] + chosen[:, None, :]
    rest = torch.arange(size * groups, n, device=scores.device).expand(len(scores), -1)
    columns = torch.cat([members.flatten(1), rest], 1)
    best = torch.topk(scores.gather(1, columns), count, dim=1, largest=False)
    return torch.return_types.topk((best.values, columns.gather(1, best.indices)))


def _by_distance(x: torch.Tensor, vectors: torch.Tensor, candidates: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's candidates, (n, m), sorted by D64, then by label; and their D64."""
    candidates = candidates.sort(1).values
    distances = torch.stack([ops.point_distances(x, vectors, label) for label in candidates.unbind(1)], 1)
    distances, order = distances.sort(stable=True, dim=1)
    return candidates.gather(1, order), distances
