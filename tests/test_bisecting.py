"""BisectingKMeans: scikit-learn's splits and labels."""

import numpy as np
import pytest
import sklearn.cluster
import torch
from sklearn.datasets import make_blobs

from dcfast import BisectingKMeans


def blobs(n=900, d=6, dtype=np.float64, centers=10):
    return make_blobs(n, d, centers=centers, cluster_std=2.0, random_state=0)[0].astype(dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("init", ["random", "k-means++"])
@pytest.mark.parametrize("strategy", ["biggest_inertia", "largest_cluster"])
def test_agrees_with_scikit_learn(init, strategy, weighted):
    X = blobs()
    other = X + np.random.RandomState(2).normal(size=X.shape)
    weight = np.random.RandomState(1).rand(len(X)) if weighted else None
    for seed in range(3):
        arguments = {"init": init, "bisecting_strategy": strategy, "n_init": 2, "random_state": seed}
        ours = BisectingKMeans(12, **arguments).fit(X, sample_weight=weight)
        theirs = sklearn.cluster.BisectingKMeans(12, **arguments).fit(X, sample_weight=weight)
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-10, atol=1e-12)
        assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)
        np.testing.assert_array_equal(ours.predict(other), theirs.predict(other))
        assert ours.score(other) == pytest.approx(theirs.score(other), rel=1e-12)
        np.testing.assert_array_equal(ours.predict(X), ours.labels_)
        assert ours.labels_.dtype == np.int32


@pytest.mark.parametrize("strategy", ["biggest_inertia", "largest_cluster"])
def test_a_row_alone_is_never_split(strategy):
    # {-100} has the inertia 0, as {0, 0} has, and lies to its left or right by the seed.
    X = np.array([[-100.0], [0.0], [0.0]])
    for seed in range(10):
        model = BisectingKMeans(3, random_state=seed, bisecting_strategy=strategy).fit(X)
        assert model.inertia_ == 0
        np.testing.assert_array_equal(model.predict(X), model.labels_)


def test_rows_without_weight_are_labelled_and_change_nothing():
    X = blobs()
    weight = np.ones(len(X))
    weight[::3] = 0
    X[::3] += 1000
    model = BisectingKMeans(4, random_state=0).fit(X, sample_weight=weight)
    assert model.cluster_centers_.max() < 500
    np.testing.assert_array_equal(model.predict(X), model.labels_)
    with pytest.raises(ValueError, match="n_samples=2 should be >= n_clusters=4"):
        BisectingKMeans(4).fit(X, sample_weight=np.arange(len(X)) < 2)


def test_a_callable_is_asked_for_two():
    asked = []

    def init(X, n_clusters, random_state):
        asked.append((X.shape, n_clusters))
        return X[:n_clusters]

    X = blobs()
    BisectingKMeans(4, init=init).fit(X)
    assert asked[0] == (X.shape, 2)
    assert len(asked) == 3
    with pytest.raises(ValueError, match="does not match the number of clusters 2"):
        BisectingKMeans(4, init=lambda X, k, random_state: X[:3]).fit(X)


def test_torch_in_torch_out():
    X = torch.tensor(blobs())
    ours, numpy = (BisectingKMeans(5, random_state=0).fit(x) for x in (X, X.numpy()))
    for result in (ours.labels_, ours.predict(X), ours.cluster_centers_):
        assert isinstance(result, torch.Tensor)
    assert torch.equal(ours.predict(X), torch.tensor(numpy.labels_))


def test_verbose_tells_of_every_split(capsys):
    BisectingKMeans(4, random_state=0, verbose=1).fit(blobs())
    assert capsys.readouterr().out.count("Split ") == 3


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"n_clusters": 5}, "n_samples=3"), ({"init": np.zeros((2, 2))}, "init"), ({"n_init": "auto"}, "n_init")],
)
def test_errors_name_the_argument(arguments, match):
    with pytest.raises(ValueError, match=match):
        BisectingKMeans(**arguments).fit(np.zeros((3, 2)))
