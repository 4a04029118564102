"""A fit to a sparse matrix against scikit-learn: same data, start, iterations, threads; the objective is shown too."""

import numpy as np
import pytest
import scipy.sparse
import sklearn.cluster

from dcfast import KMeans

# Rows, columns, elements drawn per row, clusters: counts of words, and of fewer features in more rows.
SHAPES = [(20_000, 10_000, 60, 20), (100_000, 1_000, 20, 100), (11_000, 30_000, 100, 20)]


def text_like(n, d, per_row):
    """Rows of float32 whose columns follow a power law, as those of words do."""
    random = np.random.default_rng(0)
    columns = (d * random.random((n, per_row)) ** 3).astype(int)
    values = random.random(n * per_row).astype(np.float32)
    x = scipy.sparse.csr_matrix((values, columns.ravel(), np.arange(0, n * per_row + 1, per_row)), (n, d))
    x.sum_duplicates()
    return x


def compare_fits(compare, x, k, iterations, init):
    quality = {}

    def fit(name, kind):
        model = kind(k, init=init, n_init=1, max_iter=iterations, tol=0, random_state=0).fit(x)
        quality[name] = f"objective {model.inertia_:.6e}, {model.n_iter_} iterations"

    compare(
        lambda: fit("dcfast", KMeans),
        {"scikit-learn": lambda: fit("scikit-learn", sklearn.cluster.KMeans)},
        quality=quality,
        rounds=3,
    )


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("n", "d", "per_row", "k"), SHAPES)
def test_kmeans_of_sparse_rows(compare, n, d, per_row, k):
    x = text_like(n, d, per_row)
    compare_fits(compare, x, k, 10, x[:k].toarray())


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(("n", "d", "per_row", "k"), SHAPES)
def test_kmeans_plusplus_of_sparse_rows(compare, n, d, per_row, k):
    """With one iteration after it."""
    compare_fits(compare, text_like(n, d, per_row), k, 1, "k-means++")
