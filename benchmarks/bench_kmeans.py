"""A whole fit against faiss-cpu and scikit-learn: same data, start, iterations, threads; the objective is shown too."""

import faiss
import numpy as np
import pytest
import sklearn.cluster
import torch

from dcfast import KMeans

SHAPES = [(100_000, 256, 1_000, 5), (200_000, 64, 1_000, 5), (1_000_000, 16, 64, 5), (1_000_000, 2, 10, 10)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("n", "d", "k", "iterations"), SHAPES)
def test_kmeans(compare, n, d, k, iterations):
    x = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    start = x[:k].copy()
    faiss.omp_set_num_threads(torch.get_num_threads())
    quality = {}

    def ours():
        model = KMeans(k, init=start, n_init=1, max_iter=iterations, tol=0).fit(x)
        quality["dcfast"] = f"objective {model.inertia_:.6e}"

    def theirs_faiss():
        model = faiss.Kmeans(d, k, niter=iterations, max_points_per_centroid=n, min_points_per_centroid=1)
        model.train(x, init_centroids=start)
        distances, _ = model.index.search(x, 1)
        quality["faiss"] = f"objective {distances.sum(dtype=np.float64):.6e}"

    def theirs_sklearn():
        model = sklearn.cluster.KMeans(k, init=start, n_init=1, max_iter=iterations, tol=0).fit(x)
        quality["scikit-learn"] = f"objective {model.inertia_:.6e}"

    # Every iteration assigns once, and once more after the last update.
    compare(
        ours,
        {"faiss": theirs_faiss, "scikit-learn": theirs_sklearn},
        operations=2.0 * n * d * k * (iterations + 1),
        quality=quality,
    )
