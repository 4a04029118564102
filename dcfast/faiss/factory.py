"""Indices by faiss's descriptions of them."""

from __future__ import annotations

from dcfast.faiss.index import METRIC_INNER_PRODUCT, METRIC_L2, IndexFlatL2
from dcfast.faiss.inner_product import IndexFlatIP


def index_factory(d: int, description: str, metric: int = METRIC_L2) -> IndexFlatL2:
    """The index of faiss's description of it.

    Parameters
    ----------
    d : int
        Dimension of the vectors.
    description : str
        'Flat'.
    metric : int
        METRIC_L2 or METRIC_INNER_PRODUCT.

    Returns
    -------
    IndexFlatL2 or IndexFlatIP

    Raises
    ------
    ValueError
        For other descriptions and metrics: faiss's other indices are approximate.
    """
    if description != "Flat":
        raise ValueError(f"description={description!r}: only 'Flat' is here, the index that is exact; use faiss")
    kinds = {METRIC_L2: IndexFlatL2, METRIC_INNER_PRODUCT: IndexFlatIP}
    if metric not in kinds:
        raise ValueError(f"metric={metric}: expected METRIC_L2 or METRIC_INNER_PRODUCT")
    return kinds[metric](d)
