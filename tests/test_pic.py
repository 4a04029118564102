"""PIC: power iteration clustering, against the definition in dense matrices."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_digits, make_blobs
from sklearn.metrics import adjusted_rand_score
from sklearn.preprocessing import normalize
from sklearn.utils.estimator_checks import check_estimator

from dcfast import PIC

SHARE = np.finfo(float).eps  # what is less of 1 than this is lost in a sum


def graph(X, n_neighbors, sigma, alpha):
    """Squared distances and weights (n, n), of points without copies."""
    squares = ((X[:, None] - X[None]) ** 2).sum(2)
    np.fill_diagonal(squares, np.inf)
    G = np.zeros(squares.shape)
    for i, row in enumerate(squares):
        nearest = row.argsort()[:n_neighbors]
        G[i, nearest] = np.exp(-row[nearest] / sigma**2)
    G[alpha * G < SHARE] = 0
    return squares, G


def iterate(G, alpha, max_iter):
    v = np.full(len(G), 1 / len(G))
    for _ in range(max_iter):
        v = alpha * (G + G.T) @ v + (1 - alpha) / len(G)
        v /= np.abs(v).sum()
    return v


def roots_of(squares, G, v):
    """The root of every point; of equal v the lower index is above."""
    n = len(v)
    roots = np.arange(n)
    for i in range(n):
        gain = G[i] * (v - v[i])
        level = np.flatnonzero((v == v[i]) & (G[i] > 0) & (np.arange(n) < i))
        if gain.max() > 0:
            roots[i] = gain.argmax()
        elif len(level):
            roots[i] = level[squares[i, level].argmin()]
    for _ in range(n):
        roots = roots[roots]
    single = np.bincount(roots, minlength=n)[roots] == 1
    if not single.all():
        for i in np.flatnonzero(single):
            roots[i] = roots[np.flatnonzero(~single)[squares[i, ~single].argmin()]]
    return roots


def blobs(n=200, d=4, centers=6, seed=0):
    return make_blobs(n, d, centers=centers, cluster_std=0.2, center_box=(-2, 2), random_state=seed)[0]


@pytest.mark.filterwarnings("ignore:sigma=:UserWarning")
def test_scikit_learns_checks():
    results = check_estimator(PIC(), on_skip=None)
    assert len(results) > 40


@pytest.mark.filterwarnings("ignore:sigma=:UserWarning")
@pytest.mark.parametrize("arguments", [
    {},
    {"n_neighbors": 1},
    {"n_neighbors": 12, "sigma": 1.0},
    {"alpha": 0.3, "sigma": 0.5},
    {"alpha": 0.9, "max_iter": 3},
    {"sigma": 0.02},
])  # fmt: skip
def test_agrees_with_the_definition(arguments):
    for seed in range(4):
        X = blobs(seed=seed)
        model = PIC(**arguments).fit(X)
        squares, G = graph(X, model.n_neighbors, model.sigma, model.alpha)
        np.testing.assert_allclose(model.embedding_, iterate(G, model.alpha, model.max_iter), rtol=1e-13)
        roots = roots_of(squares, G, model.embedding_)
        assert adjusted_rand_score(model.labels_, roots) == 1
        assert model.n_clusters_ == len(np.unique(roots)) == model.labels_.max() + 1
        assert model.labels_.dtype == np.int32
        assert 0 < model.n_iter_ <= model.max_iter


def test_clusters_of_digits_are_nearly_pure():
    digits = load_digits()
    labels = PIC().fit_predict(normalize(digits.data))
    counts = np.zeros((labels.max() + 1, 10))
    np.add.at(counts, (labels, digits.target), 1)
    assert counts.max(1).sum() > 0.9 * len(labels)
    assert 10 < len(counts) < len(labels) / 5
    assert counts.sum(1).min() > 1


def test_copies_stay_together():
    """Seven of each point, of which none sees another point, and all have the same v."""
    X = np.repeat(blobs(30), 7, axis=0)
    model = PIC(sigma=0.01).fit(X)
    assert model.n_clusters_ == 30
    np.testing.assert_array_equal(model.labels_, np.repeat(model.labels_[::7], 7))
    assert PIC().fit(np.ones((50, 3))).n_clusters_ == 1


def test_a_lone_point_joins_the_nearest_cluster():
    left, right = blobs(60, centers=1), blobs(60, centers=1, seed=1) + 20
    for place, cluster in ((left.mean(0) - 5, 0), (right.mean(0) + 5, -1)):
        labels = PIC(n_neighbors=20, sigma=1.0).fit_predict(np.concatenate([left, place[None], right]))
        assert labels[60] in labels[[0, 30, 59]] if cluster == 0 else labels[60] in labels[61:]
        assert not set(labels[:60]) & set(labels[61:])


def test_points_too_far_apart_are_told():
    X = 100 * blobs()
    with pytest.warns(UserWarning, match=r"sigma=0\.2: 200 of 200 points .* median distance of .*; scale rows to unit"):
        model = PIC().fit(X)
    assert model.n_clusters_ == 200
    np.testing.assert_allclose(model.embedding_, 1 / 200)
    with pytest.warns(UserWarning, match="200 of 200"):
        PIC().fit(1e200 * X)
    distance = np.sqrt(np.median(np.sort(((X[:, None] - X) ** 2).sum(2))[:, 1]))
    assert PIC(sigma=distance).fit(X).n_clusters_ < 50


def test_numbers_of_numpy_s_small_types():
    X = blobs(300)
    np.testing.assert_array_equal(PIC(np.uint8(5)).fit_predict(X), PIC(5).fit_predict(X))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_answers_in_kind(dtype):
    X = torch.tensor(blobs()).to(dtype)
    model = PIC().fit(X)
    assert isinstance(model.labels_, torch.Tensor)
    assert model.labels_.dtype == torch.int32
    assert model.embedding_.dtype == torch.float64
    wide = PIC().fit(X.double().numpy())
    np.testing.assert_array_equal(model.labels_.numpy(), wide.labels_)
    np.testing.assert_array_equal(PIC().fit_predict(X.double().tolist()), wide.labels_)


def test_names_of_features():
    frame = pd.DataFrame(blobs(), columns=list("abcd"))
    assert PIC().fit(frame).feature_names_in_.tolist() == list("abcd")


def test_threads_change_no_bit():
    X = torch.tensor(blobs(3000))
    expected, threads = PIC().fit(X), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        model = PIC().fit(X)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(model.labels_, expected.labels_)
    assert torch.equal(model.embedding_, expected.embedding_)


@pytest.mark.parametrize(
    ("X", "arguments", "match"),
    [
        (np.zeros((5, 2)), {}, "n_neighbors=5 must be less than n_samples=5"),
        (np.full((9, 2), np.nan), {}, "18 non-finite"),
        (np.zeros((9, 2)), {"sigma": 0}, "sigma"),
        (np.zeros((9, 2)), {"alpha": 1}, "alpha"),
        (np.zeros((9, 2)), {"n_neighbors": 0}, "n_neighbors"),
        (np.zeros((9, 2)), {"max_iter": 0}, "max_iter"),
    ],
)
def test_errors_name_the_argument(X, arguments, match):
    model = PIC().fit(blobs())
    with pytest.raises(ValueError, match=match):
        model.set_params(**arguments).fit(X)
    assert not hasattr(model, "labels_") or "non-finite" not in match
