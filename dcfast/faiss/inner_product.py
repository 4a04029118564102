"""IndexFlatIP: exact search for the largest inner product."""

from __future__ import annotations

import torch

from dcfast.cluster import arrays
from dcfast.cluster.neighbours import BLOCK_BYTES, squared_distances
from dcfast.faiss.index import METRIC_INNER_PRODUCT, IndexFlatL2

# Of the squared norm that vectors are lengthened to: its root, 2^127, is a float32.
_MOST_EXPONENT = 254


class IndexFlatIP(IndexFlatL2):
    """Stored vectors, searched for the largest inner product: what spherical k-means assigns with.

    See `IndexFlatL2` for the methods; `D` are inner products, descending, and absent ones the lowest float32.

    Notes
    -----
    The vectors are lengthened to one norm by further elements (Bachrach et al. 2014), after which the largest inner
    product is the smallest distance, at the cost of a copy of the rows. Which vectors are the k best is exact to the
    rounding of such a distance: of products within 2^-50 of the square of the largest norm, that of the row among them,
    any may come out as the largest. A vector that is not finite is never found.
    """

    metric_type = METRIC_INNER_PRODUCT
    _absent = torch.finfo(torch.float32).min

    @staticmethod
    def _queries(rows: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(rows, (0, 3))

    @staticmethod
    def _stored(vectors: torch.Tensor) -> torch.Tensor:
        norms = squared_distances(vectors, torch.zeros_like(vectors[:1]))
        exponent = torch.frexp(1.5 * torch.where(norms.isfinite(), norms, 0).max()).exponent
        # Times a power of two, which changes no order, what is missing of the longest is a float32 as well.
        if int(exponent) > _MOST_EXPONENT:
            return IndexFlatIP._stored(vectors * 2.0 ** -((int(exponent) - _MOST_EXPONENT + 1) // 2))
        # A power of two, and not close to a norm of 1: the same for the next centroids of a spherical clustering.
        missing = torch.ldexp(torch.ones_like(norms[:1]), exponent) - norms
        parts = []
        # The square of a float32 is exact in double, and 2^-23 of what is missing remains after each.
        for _ in range(3):
            part = arrays.square_root(missing).float()
            part = torch.where(part.double().square() > missing, torch.nextafter(part, torch.zeros_like(part)), part)
            missing = missing - part.double().square()
            parts.append(part)
        return torch.cat([vectors, torch.stack(parts, 1)], 1)

    @staticmethod
    def _scores(rows: torch.Tensor, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        products = rows.new_zeros(rows.shape[0], dtype=torch.float64)
        step = max(1, BLOCK_BYTES // (16 * rows.shape[1]))
        for start in range(0, rows.shape[0], step):
            own = labels[start : start + step]
            factor = vectors[own.clamp(min=0)].double()
            product = (rows[start : start + step].double() * factor).sum(1)
            products[start : start + step] = torch.where(own < 0, 0, product)
        return products

    @staticmethod
    def _within(scores: torch.Tensor, bound: float) -> torch.Tensor:
        return scores > bound

    @staticmethod
    def _ordered(labels: torch.Tensor, scores: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        # Distances of the lengthened vectors leave open what they round away.
        order = labels.argsort(stable=True, dim=1)
        worst_last = torch.where(labels < 0, -torch.inf, scores).gather(1, order)
        order = order.gather(1, worst_last.argsort(stable=True, dim=1, descending=True))
        return labels.gather(1, order), scores.gather(1, order)
