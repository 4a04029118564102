"""torch's default device is where new tensors go that say nothing else; ours say where the rows are, or the CPU."""

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone

import dcfast.faiss as faiss
from dcfast import PIC, BisectingKMeans, ClusterHead, KMeans, MiniBatchKMeans, PCAWhiten

NOWHERE = torch.device("meta")  # whose tensors hold no data: whatever goes there by mistake fails
ROWS = np.random.default_rng(0).normal(size=(120, 400)).astype(np.float32)
KINDS = {
    "numpy": lambda: ROWS,
    "torch": lambda: torch.from_numpy(ROWS),
    "sparse": lambda: scipy.sparse.random(120, 400, 0.05, "csr", np.float32, 0),
    "batch": lambda: ROWS[:, :20].reshape(3, 40, 20),
}
K_MEANS = [
    KMeans(4, random_state=0),
    KMeans(4, init="random", n_init=2, random_state=0, spherical=True),
    MiniBatchKMeans(4, random_state=0, batch_size=50, init_size=60),
    MiniBatchKMeans(4, random_state=0, init="random", reassignment_ratio=0.5, batch_size=20),
    BisectingKMeans(4, random_state=0),
]
CASES = [(model, kind) for model in K_MEANS for kind in ("numpy", "torch", "sparse")]
CASES += [(KMeans(4, random_state=0), "batch")]
CASES += [
    (model, kind)
    for model in (PCAWhiten(8), PIC(sigma=20.0), ClusterHead(3, epochs=2, random_state=0))
    for kind in ("numpy", "torch")
]


def fitted(model, X):
    return [np.asarray(value) for name, value in vars(clone(model).fit(X)).items() if name in (
        "labels_", "cluster_centers_", "components_", "embedding_", "losses_")]  # fmt: skip


@pytest.mark.parametrize(("model", "kind"), CASES, ids=str)
def test_a_fit_is_the_same(model, kind):
    X = KINDS[kind]()
    expected = fitted(model, X)
    with NOWHERE:
        found = fitted(model, X)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_methods_of_fitted_models():
    weight = np.arange(120.0)
    with NOWHERE:
        means = KMeans(4, random_state=0).fit(ROWS, sample_weight=weight)
        found = means.predict(ROWS), means.transform(ROWS), means.score(ROWS, sample_weight=weight)
        reduced = PCAWhiten(5).fit(ROWS).transform(ROWS)
        step = MiniBatchKMeans(4, random_state=0).partial_fit(ROWS).partial_fit(ROWS)
    np.testing.assert_array_equal(found[0], means.labels_)
    np.testing.assert_array_equal(found[1], means.transform(ROWS))
    assert found[2] == means.score(ROWS, sample_weight=weight)
    np.testing.assert_array_equal(reduced, PCAWhiten(5).fit_transform(ROWS))
    again = MiniBatchKMeans(4, random_state=0).partial_fit(ROWS).partial_fit(ROWS)
    np.testing.assert_array_equal(step.cluster_centers_, again.cluster_centers_)


def with_faiss():
    means = faiss.Kmeans(400, 3, seed=1, min_points_per_centroid=1)
    means.train(ROWS, init_centroids=ROWS[:3])
    index = faiss.IndexFlatL2(400)
    index.add(ROWS)
    index.remove_ids(np.array([2, 5]))
    matrix = faiss.PCAMatrix(400, 6, -0.5, True)
    matrix.train(ROWS)
    return means.centroids, *index.search(ROWS[:9], 3), matrix.apply(ROWS)


def test_faiss():
    with NOWHERE:
        found = with_faiss()
    for one, other in zip(found, with_faiss(), strict=True):
        np.testing.assert_array_equal(one, other)
