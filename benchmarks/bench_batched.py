"""Many small problems in one call against loops over the peers, and one small problem: same starts, same iterations."""

import faiss
import numpy as np
import pytest
import sklearn.cluster
import torch

from dcfast import KMeans


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("iterations", [5, 20])
def test_many_problems(compare, iterations):
    problems, n, d, k = 10_000, 200, 32, 8
    rng = np.random.default_rng(0)
    x = rng.standard_normal((problems, n, d), dtype=np.float32)
    starts = x[:, :k].copy()
    faiss.omp_set_num_threads(torch.get_num_threads())
    quality = {}

    def note(name, inertia, done):
        quality[name] = f"objective {np.sum(inertia):.6e}, {np.mean(done):.1f} iterations"

    def ours():
        model = KMeans(k, init=starts, n_init=1, max_iter=iterations, tol=0).fit(x)
        note("dcfast", model.inertia_, model.n_iter_)

    def theirs_faiss():
        inertia = []
        for rows, start in zip(x, starts, strict=True):
            model = faiss.Kmeans(d, k, niter=iterations, max_points_per_centroid=n, min_points_per_centroid=1)
            model.train(rows, init_centroids=start)
            distances, _ = model.index.search(rows, 1)
            inertia.append(distances.sum(dtype=np.float64))
        note("faiss", inertia, iterations)

    def theirs_sklearn():
        models = [
            sklearn.cluster.KMeans(k, init=start, n_init=1, max_iter=iterations, tol=0).fit(rows)
            for rows, start in zip(x, starts, strict=True)
        ]
        note("scikit-learn", [model.inertia_ for model in models], [model.n_iter_ for model in models])

    compare(ours, {"faiss": theirs_faiss, "scikit-learn": theirs_sklearn}, quality=quality, rounds=1)


def test_many_problems_from_kmeans_plusplus(compare):
    problems, n, d, k = 2_000, 200, 32, 8
    x = np.random.default_rng(0).standard_normal((problems, n, d), dtype=np.float32)

    def theirs():
        for b, rows in enumerate(x):
            sklearn.cluster.KMeans(k, n_init=1, random_state=b).fit(rows)

    compare(lambda: KMeans(k, n_init=1, random_state=0).fit(x), {"scikit-learn": theirs}, rounds=2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads", [1, None])
@pytest.mark.parametrize("what", ["fit", "predict"])
def test_one_small_problem(compare, what, threads, dtype):
    x = np.random.default_rng(0).standard_normal((1_000, 10)).astype(dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        calls = []
        for kind in (KMeans, sklearn.cluster.KMeans):
            model = kind(8, n_init=1, random_state=0)
            model.fit(x)
            calls.append(getattr(model, what))
        compare(lambda: calls[0](x), {"scikit-learn": lambda: calls[1](x)}, rounds=20)
    finally:
        torch.set_num_threads(before)
