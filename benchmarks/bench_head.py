"""ClusterHead against scikit-learn's k-means and spectral clustering, on rows of unit length.

Every fit of one has a random state of its own, and the result shows the means over them. DCFAST_EMBEDDING names a
folder of `dcfast embed` whose images have labels.
"""

import itertools
import os

import numpy as np
import pytest
import sklearn.cluster
from sklearn.datasets import load_digits
from sklearn.preprocessing import normalize

from dcfast import ClusterHead
from dcfast.deepcluster.embedding import open_embedding
from dcfast.deepcluster.metrics import ari, matched_accuracy, nmi

SEEDS = 3


def compare_clusterings(compare, x, y):
    x = normalize(x.astype(np.float32))
    k = len(np.unique(y))
    quality = {}

    def who(name, make):
        scores, seeds = [], itertools.count()

        def fit():
            labels = make(next(seeds)).fit_predict(x)
            scores.append([score(y, labels) for score in (matched_accuracy, nmi, ari)])
            quality[name] = "accuracy {:.3f}, NMI {:.3f}, ARI {:.3f}".format(*np.mean(scores, axis=0))

        return fit

    compare(
        who("dcfast", lambda seed: ClusterHead(k, random_state=seed)),
        {
            "k-means": who("k-means", lambda seed: sklearn.cluster.KMeans(k, n_init=10, random_state=seed)),
            "spectral": who(
                "spectral",
                lambda seed: sklearn.cluster.SpectralClustering(
                    k, affinity="nearest_neighbors", n_neighbors=20, random_state=seed
                ),
            ),
        },
        quality=quality,
        rounds=SEEDS,
    )


def test_digits(compare):
    compare_clusterings(compare, *load_digits(return_X_y=True))


@pytest.mark.parametrize("sizes", ["equal", "unequal"])
def test_mixture(compare, sizes):
    """2,000 rows of ten spherical normal distributions; unequal: the largest has 30 times the smallest's."""
    draws = np.random.default_rng(0)
    share = np.geomspace(1, 30 if sizes == "unequal" else 1, 10)
    y = draws.choice(10, 2_000, p=share / share.sum())
    centres = draws.normal(size=(10, 64))
    compare_clusterings(compare, centres[y] + 2.2 * draws.normal(size=(len(y), 64)), y)


def test_embedding(compare):
    path = os.environ.get("DCFAST_EMBEDDING")
    if path is None:
        pytest.skip("DCFAST_EMBEDDING names no folder")
    found = open_embedding(path)
    known = found.labels >= 0
    compare_clusterings(compare, np.asarray(found.features)[known], found.labels[known])
