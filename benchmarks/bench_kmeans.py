"""A whole fit against faiss-cpu and scikit-learn: same data, start, iterations, threads; the objective is shown too."""

import os

import faiss
import numpy as np
import pytest
import sklearn.cluster
import torch

from dcfast import BisectingKMeans, KMeans, MiniBatchKMeans, kmeans_plusplus

SHAPES = [
    (100_000, 256, 1_000, 10),
    (200_000, 64, 1_000, 10),
    (1_000_000, 16, 64, 10),
    (1_000_000, 2, 10, 10),
    (50_000, 3_072, 100, 5),
]


def compare_fits(compare, x, start, iterations, rounds=3):
    n, d = x.shape
    k = len(start)
    faiss.omp_set_num_threads(torch.get_num_threads())
    quality = {}

    def ours():
        model = KMeans(k, init=start, n_init=1, max_iter=iterations, tol=0).fit(x)
        quality["dcfast"] = f"objective {model.inertia_:.6e}, {model.n_iter_} iterations"

    def theirs_faiss():
        model = faiss.Kmeans(d, k, niter=iterations, max_points_per_centroid=n, min_points_per_centroid=1)
        model.train(x, init_centroids=start)
        distances, _ = model.index.search(x, 1)
        quality["faiss"] = f"objective {distances.sum(dtype=np.float64):.6e}, {len(model.obj)} iterations"

    def theirs_sklearn():
        model = sklearn.cluster.KMeans(k, init=start, n_init=1, max_iter=iterations, tol=0).fit(x)
        quality["scikit-learn"] = f"objective {model.inertia_:.6e}, {model.n_iter_} iterations"

    # Every iteration of the plain algorithm assigns once, and once more after the last update.
    compare(
        ours,
        {"faiss": theirs_faiss, "scikit-learn": theirs_sklearn},
        operations=2.0 * n * d * k * (iterations + 1),
        quality=quality,
        rounds=rounds,
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("n", "d", "k", "iterations"), SHAPES)
def test_kmeans(compare, n, d, k, iterations):
    x = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    compare_fits(compare, x, x[:k].copy(), iterations)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_kmeans_of_many_clusters(compare):
    x = np.random.default_rng(0).standard_normal((100_000, 256), dtype=np.float32)
    compare_fits(compare, x, x[:10_000].copy(), 5, rounds=1)  # one of the peers' takes minutes


def blobs(n, d, k):
    """Rows around k centres, and k of the rows."""
    random = np.random.default_rng(0)
    centres = 2 * random.standard_normal((k, d), dtype=np.float32)
    x = random.standard_normal((n, d), dtype=np.float32) + centres[random.integers(k, size=n)]
    return x, x[random.choice(n, k, replace=False)]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("n", "d", "k"),
    [
        (1_000, 10, 8),
        (1_797, 64, 10),
        (5_000, 2, 20),
        (5_000, 100, 20),
        (10_000, 20, 50),
        (20_000, 784, 10),
        (20_000, 32, 2_000),
        (50_000, 3, 256),
        (100_000, 8, 8),
        (100_000, 50, 20),
    ],
)
def test_everyday_sizes(compare, n, d, k):
    compare_fits(compare, *blobs(n, d, k), 20)


@pytest.mark.parametrize("k", [1_000, 100])
def test_kmeans_of_features(compare, k):
    """To convergence, or 100 iterations, on real features: DCFAST_FEATURES names a .npy file of them, (N, d)."""
    path = os.environ.get("DCFAST_FEATURES")
    if path is None:
        pytest.skip("DCFAST_FEATURES names no file")
    x = np.load(path).astype(np.float32)
    start = x[np.random.default_rng(0).choice(len(x), k, replace=False)]
    compare_fits(compare, x, start, 100)


def test_kmeans_plusplus(compare):
    n, d, k = 100_000, 256, 1_000
    x = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
    compare(
        lambda: kmeans_plusplus(x, k, random_state=0),
        {"scikit-learn": lambda: sklearn.cluster.kmeans_plusplus(x, k, random_state=0)},
        operations=2.0 * n * d * k * (2 + int(np.log(k))),
        rounds=1,
    )


@pytest.mark.parametrize(
    ("n", "d", "k"), [(1_000, 10, 8), (20_000, 10, 8), (100_000, 2, 10), (100_000, 16, 64), (50_000, 64, 100)]
)
@pytest.mark.parametrize("kind", [MiniBatchKMeans, BisectingKMeans])
def test_relatives(compare, kind, n, d, k):
    """Whole fits of the other two estimators as they come, from the same random state."""
    x, _ = blobs(n, d, k)
    quality = {}

    def fit(name, estimator):
        quality[name] = f"objective {estimator(k, random_state=0).fit(x).inertia_:.6e}"

    compare(
        lambda: fit("dcfast", kind),
        {"scikit-learn": lambda: fit("scikit-learn", getattr(sklearn.cluster, kind.__name__))},
        quality=quality,
    )
