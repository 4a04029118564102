"""faiss's k-means, exact and reproducible: `import dcfast.faiss as faiss` is all that a project changes.

The names, defaults and semantics are those of faiss 1.15. Data comes as numpy arrays (converted to float32) or as torch
tensors, which are used on their own device. Labels and centroids are those of `dcfast.ops`, the true nearest and the
true means: the same bits on any number of threads and any backend. Where faiss raises RuntimeError or AssertionError
for a bad argument, these classes raise ValueError or TypeError with its value and a remedy.
"""

from typing import Any

from dcfast.faiss.clustering import Clustering
from dcfast.faiss.index import METRIC_INNER_PRODUCT, METRIC_L2, IndexFlatIP, IndexFlatL2
from dcfast.faiss.kmeans import Kmeans
from dcfast.faiss.parameters import ClusteringIterationStats, ClusteringParameters, ProgressiveDimClusteringParameters
from dcfast.faiss.pca import PCAMatrix
from dcfast.faiss.starts import (
    ClusteringInitMethod_AFK_MC2,
    ClusteringInitMethod_KMEANS_PLUS_PLUS,
    ClusteringInitMethod_RANDOM,
)
from dcfast.faiss.vectors import copy_array_to_vector, vector_float_to_array, vector_to_array

__all__ = [
    "METRIC_INNER_PRODUCT",
    "METRIC_L2",
    "Clustering",
    "ClusteringInitMethod_AFK_MC2",
    "ClusteringInitMethod_KMEANS_PLUS_PLUS",
    "ClusteringInitMethod_RANDOM",
    "ClusteringIterationStats",
    "ClusteringParameters",
    "IndexFlatIP",
    "IndexFlatL2",
    "Kmeans",
    "PCAMatrix",
    "ProgressiveDimClusteringParameters",
    "copy_array_to_vector",
    "vector_float_to_array",
    "vector_to_array",
]


def __getattr__(name: str) -> Any:
    if "Gpu" in name:
        raise AttributeError(
            f"dcfast.faiss has no {name!r}: its classes work on CUDA tensors where they are; use IndexFlatL2(d), or "
            "Kmeans(d, k, gpu=True) for numpy arrays"
        )
    raise AttributeError(f"dcfast.faiss has no {name!r}: it covers faiss's k-means, {', '.join(__all__)}")
