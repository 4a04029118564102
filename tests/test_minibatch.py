"""MiniBatchKMeans: scikit-learn's batches and results, exact steps."""

import numpy as np
import pytest
import sklearn.cluster
import torch
from sklearn.datasets import make_blobs
from sklearn.exceptions import NotFittedError

from dcfast import MiniBatchKMeans
from dcfast.cluster.minibatch import _batches


def blobs(n=900, d=6, dtype=np.float64, centers=10):
    return make_blobs(n, d, centers=centers, cluster_std=2.0, random_state=0)[0].astype(dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"n_clusters": 10, "n_init": 3},
        {"n_clusters": 10, "init": "random", "batch_size": 50},
        {"n_clusters": 40, "init": "random", "batch_size": 30, "reassignment_ratio": 0.5},  # half a batch at a time
        {"n_clusters": 10, "tol": 1e-3, "max_no_improvement": None, "batch_size": 2000},
        {"n_clusters": 10, "init_size": 60, "max_iter": 3, "batch_size": 7, "max_no_improvement": None},
        {"n_clusters": 1},
    ],
)
def test_agrees_with_scikit_learn(monkeypatch, arguments, weighted):
    # Which of equally light centroids move, where not all may: the lowest here, whichever an unstable sort leaves in
    # front in scikit-learn.
    argsort = np.argsort
    monkeypatch.setattr(np, "argsort", lambda a, **options: argsort(a, **{**options, "kind": "stable"}))
    X = blobs()
    weight = np.random.RandomState(1).rand(len(X)) if weighted else None
    for seed in range(3):
        ours = MiniBatchKMeans(random_state=seed, **arguments).fit(X, sample_weight=weight)
        theirs = sklearn.cluster.MiniBatchKMeans(random_state=seed, **arguments).fit(X, sample_weight=weight)
        assert (ours.n_steps_, ours.n_iter_, ours._init_size) == (theirs.n_steps_, theirs.n_iter_, theirs._init_size)
        np.testing.assert_array_equal(ours.labels_, theirs.labels_)
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(ours._counts, theirs._counts)
        assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_partial_fit_agrees_with_scikit_learn(weighted):
    X = blobs()
    for init in ("k-means++", "random", X[:30]):
        models = [
            kind(30, init=init, n_init=1, random_state=4, reassignment_ratio=0.3)
            for kind in (MiniBatchKMeans, sklearn.cluster.MiniBatchKMeans)
        ]
        for start in range(0, len(X), 100):
            weight = np.random.RandomState(start).rand(100) if weighted else None
            ours, theirs = (m.partial_fit(X[start : start + 100], sample_weight=weight) for m in models)
            np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-10, atol=1e-12)
            np.testing.assert_array_equal(ours.labels_, theirs.labels_)
            assert ours.n_steps_ == theirs.n_steps_
        # A fit, then more batches: the generator begins anew, the weights seen go on.
        ours, theirs = (m.fit(X).partial_fit(X[:50]) for m in models)
        np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [500, 30_011])
def test_batches_are_those_of_choice(n):
    weight = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for given in (None, weight):
        share = np.ones(n) if given is None else given.numpy()
        ours, theirs = np.random.RandomState(3), np.random.RandomState(3)
        draw = _batches(n, given, 64, ours)
        for _ in range(20):
            np.testing.assert_array_equal(draw(), theirs.choice(n, 64, p=share / share.sum()))


def test_draws_on_the_edges_are_those_of_choice():
    n = 30_011
    share = np.ones(n) / n
    cumulative = np.cumsum(share)
    cumulative /= cumulative[-1]
    # On an edge, on its neighbours, and on the multiples of 1 / n that it is near.
    edges = np.concatenate([[0.0], cumulative[:-1], np.arange(n) / n])
    at = np.concatenate([edges, np.nextafter(edges, 0.0), np.nextafter(edges, 1.0), [1.0 - 2.0**-53]])

    class Given:
        def random_sample(self, size):
            return at

    expected = cumulative.searchsorted(at, side="right")
    assert (expected != np.minimum((at * n).astype(int), n - 1)).any()  # there is something to correct
    np.testing.assert_array_equal(_batches(n, None, len(at), Given())(), expected)


def test_labels_equal_predict_and_may_be_left_out():
    X = blobs()
    model = MiniBatchKMeans(10, random_state=0).fit(X)
    np.testing.assert_array_equal(model.labels_, model.predict(X))
    without = MiniBatchKMeans(10, random_state=0, compute_labels=False).fit(X)
    assert not hasattr(without, "labels_")
    assert without.inertia_ == pytest.approx(model.inertia_, rel=0.1)
    again = model.set_params(compute_labels=False).fit(X[:200])
    assert not hasattr(again, "labels_")  # which were those of all rows
    once = MiniBatchKMeans(10, random_state=0, compute_labels=False, max_iter=1).fit(X)  # a single batch
    assert once.n_steps_ == 1
    assert once.inertia_ > 0


def test_rows_without_weight_change_nothing():
    X = blobs()
    weight = np.ones(len(X))
    weight[::3] = 0
    X[::3] += 1000
    model = MiniBatchKMeans(10, random_state=0, init="random").fit(X, sample_weight=weight)
    assert model.cluster_centers_.max() < 500
    model.partial_fit(X, sample_weight=weight)
    assert model.cluster_centers_.max() < 500


def test_a_ratio_above_one_leaves_the_heaviest():
    X = blobs()
    model = MiniBatchKMeans(5, random_state=0, reassignment_ratio=2.0, max_iter=20).fit(X)
    assert np.isfinite(model.cluster_centers_).all()


def test_later_batches_take_the_dtype_of_the_first():
    X = blobs(dtype=np.float32)
    model = MiniBatchKMeans(10, random_state=0).partial_fit(X[:100]).partial_fit(X[100:200].astype(np.float64))
    same = MiniBatchKMeans(10, random_state=0).partial_fit(X[:100]).partial_fit(X[100:200])
    assert model.cluster_centers_.dtype == np.float32
    np.testing.assert_array_equal(model.cluster_centers_, same.cluster_centers_)


def test_torch_in_torch_out():
    X = torch.tensor(blobs())
    ours, numpy = (MiniBatchKMeans(5, random_state=0).fit(x).partial_fit(x[:30]) for x in (X, X.numpy()))
    assert isinstance(ours.labels_, torch.Tensor)
    assert torch.equal(ours.cluster_centers_, torch.tensor(numpy.cluster_centers_))


def test_verbose_says_why_it_stopped(capsys):
    MiniBatchKMeans(40, random_state=0, batch_size=10, init="random", verbose=1).fit(blobs())
    printed = capsys.readouterr().out
    assert "Start 1/3" in printed
    assert "centroids move to random rows" in printed
    assert "Converged (lack of improvement in inertia) at step" in printed


@pytest.mark.parametrize(
    ("arguments", "X", "match"),
    [
        ({"n_clusters": 5}, np.zeros((3, 2)), "n_samples=3 should be >= n_clusters=5"),
        ({"batch_size": 0}, np.zeros((30, 2)), "batch_size"),
        ({"reassignment_ratio": -1}, np.zeros((30, 2)), "reassignment_ratio"),
        ({"n_clusters": 1}, np.array([[1.0], [np.inf]]), "infinity"),
        ({"n_clusters": 2, "init": np.zeros((2, 3))}, np.zeros((5, 1)), "number of features of the data 1"),
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_errors_name_the_argument(arguments, X, match, method):
    model = MiniBatchKMeans(**arguments)
    with pytest.raises(ValueError, match=match):
        getattr(model, method)(X)
    with pytest.raises(NotFittedError):
        model.predict(X)
