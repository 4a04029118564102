"""dcfast: DeepCluster, and exact, reproducible k-means, on hand-written kernels."""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("dcfast")

# Public names and where they live. Loaded on first use: `import dcfast` alone imports no scikit-learn.
_LAZY = {
    "BisectingKMeans": "dcfast.cluster.bisecting",
    "KMeans": "dcfast.cluster.kmeans",
    "MiniBatchKMeans": "dcfast.cluster.minibatch",
    "PIC": "dcfast.cluster.pic",
    "PCAWhiten": "dcfast.cluster.whiten",
    "ClusterHead": "dcfast.cluster.head",
    "DeepCluster": "dcfast.deepcluster",
    "faiss": "dcfast.faiss",
    "k_means": "dcfast.cluster.functions",
    "kmeans_plusplus": "dcfast.cluster.functions",
    "nn": "dcfast.nn",
    "ops": "dcfast.ops",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'dcfast' has no attribute {name!r}")
    module = import_module(_LAZY[name])
    return module if _LAZY[name] == f"dcfast.{name}" else getattr(module, name)


def __dir__() -> list[str]:
    return sorted(__all__)
