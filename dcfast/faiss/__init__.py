"""faiss's k-means, exact and reproducible: `import dcfast.faiss as faiss` is all that a project changes.

The names, defaults and semantics are those of faiss 1.15. Data comes as numpy arrays (converted to float32) or as torch
tensors, which are used on their own device. Labels and centroids are those of `dcfast.ops`, the true nearest and the
true means: the same bits on any number of threads and any backend. Where faiss raises RuntimeError or AssertionError
for a bad argument, these classes raise ValueError or TypeError with its value and a remedy.

Offered are k-means (`Kmeans`, `Clustering` and their parameters) and what code around it calls: the exact indices
`IndexFlatL2` and `IndexFlatIP` (`index_factory` of 'Flat') with ``add``, ``search``, ``assign``, ``range_search``,
``reconstruct``, ``reconstruct_n``, ``reconstruct_batch``, ``remove_ids`` and ``reset``; `write_index`, `read_index`,
`serialize_index` and `deserialize_index` of these, in faiss's format; `PCAMatrix`, with `write_VectorTransform` and
`read_VectorTransform`; `normalize_L2`; `vector_to_array` and `copy_array_to_vector`; `get_num_gpus`,
`omp_get_max_threads` and `omp_set_num_threads`.

Code written for faiss-gpu runs, too: `StandardGpuResources`, `GpuIndexFlatConfig`, `GpuIndexFlatL2`, `GpuIndexFlatIP`,
`index_cpu_to_gpu`, `index_cpu_to_all_gpus` and `index_gpu_to_cpu`. One CUDA device serves a run, with the bits of the
CPU, useFloat16 or not; where torch sees none the CPU does, and a warning says so.
"""

from typing import Any

from dcfast.faiss.clustering import Clustering
from dcfast.faiss.factory import index_factory
from dcfast.faiss.files import (
    deserialize_index,
    read_index,
    read_VectorTransform,
    serialize_index,
    write_index,
    write_VectorTransform,
)
from dcfast.faiss.gpu import (
    GpuIndexFlatConfig,
    GpuIndexFlatIP,
    GpuIndexFlatL2,
    StandardGpuResources,
    index_cpu_to_all_gpus,
    index_cpu_to_gpu,
    index_gpu_to_cpu,
)
from dcfast.faiss.index import METRIC_INNER_PRODUCT, METRIC_L2, IndexFlatL2
from dcfast.faiss.inner_product import IndexFlatIP
from dcfast.faiss.kmeans import Kmeans
from dcfast.faiss.machine import get_num_gpus, omp_get_max_threads, omp_set_num_threads
from dcfast.faiss.parameters import ClusteringIterationStats, ClusteringParameters, ProgressiveDimClusteringParameters
from dcfast.faiss.pca import PCAMatrix
from dcfast.faiss.starts import (
    ClusteringInitMethod_AFK_MC2,
    ClusteringInitMethod_KMEANS_PLUS_PLUS,
    ClusteringInitMethod_RANDOM,
)
from dcfast.faiss.vectors import copy_array_to_vector, normalize_L2, vector_float_to_array, vector_to_array

__all__ = [
    "METRIC_INNER_PRODUCT",
    "METRIC_L2",
    "Clustering",
    "ClusteringInitMethod_AFK_MC2",
    "ClusteringInitMethod_KMEANS_PLUS_PLUS",
    "ClusteringInitMethod_RANDOM",
    "ClusteringIterationStats",
    "ClusteringParameters",
    "GpuIndexFlatConfig",
    "GpuIndexFlatIP",
    "GpuIndexFlatL2",
    "IndexFlatIP",
    "IndexFlatL2",
    "Kmeans",
    "PCAMatrix",
    "ProgressiveDimClusteringParameters",
    "StandardGpuResources",
    "copy_array_to_vector",
    "deserialize_index",
    "get_num_gpus",
    "index_cpu_to_all_gpus",
    "index_cpu_to_gpu",
    "index_factory",
    "index_gpu_to_cpu",
    "normalize_L2",
    "omp_get_max_threads",
    "omp_set_num_threads",
    "read_VectorTransform",
    "read_index",
    "serialize_index",
    "vector_float_to_array",
    "vector_to_array",
    "write_VectorTransform",
    "write_index",
]


def __getattr__(name: str) -> Any:
    if "Gpu" in name:
        raise AttributeError(
            f"dcfast.faiss has no {name!r}: its classes work on CUDA tensors where they are; for numpy arrays use "
            "Kmeans(d, k, gpu=True), or GpuIndexFlatL2(StandardGpuResources(), d)"
        )
    raise AttributeError(f"dcfast.faiss has no {name!r}: it covers faiss's k-means, {', '.join(__all__)}")
