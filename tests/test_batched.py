"""KMeans of many problems at once gives every problem the bits of a fit of its own."""

import itertools

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from dcfast import KMeans
from dcfast.cluster import points
from dcfast.ops import _native

SIZES = [90, 12, 300, 45]


def make(sizes=SIZES, d=6, dtype=np.float32, kind="normal"):
    """Rows of all problems, weights, offsets."""
    generator = np.random.default_rng(len(sizes) + d)
    x = generator.normal(size=(sum(sizes), d))
    if kind == "lattice":
        x = np.round(0.6 * x)
    elif kind == "far":
        x = 1e-2 * x + 1e3
    weight = np.round(3 * generator.random(len(x)), 1)
    return x.astype(dtype), weight, np.cumsum([0, *sizes])


def fit_alone(x, weight, offsets, **parameters):
    """A fit of each problem, as the class says."""
    seeds = check_random_state(parameters.pop("random_state", 0)).randint(np.iinfo(np.int32).max, size=len(offsets) - 1)
    init = parameters.pop("init", "k-means++")
    models = []
    for b, (first, last) in enumerate(itertools.pairwise(offsets)):
        own = init[b] if isinstance(init, np.ndarray) and init.ndim == 3 else init
        model = KMeans(init=own, random_state=seeds[b], **parameters)
        models.append(model.fit(x[first:last], sample_weight=None if weight is None else weight[first:last]))
    return models


def assert_as_alone(batch, models):
    assert batch.cluster_centers_.tobytes() == np.stack([m.cluster_centers_ for m in models]).tobytes()
    assert batch.labels_.dtype == np.int32
    assert np.array_equal(batch.labels_.ravel(), np.concatenate([m.labels_ for m in models]))
    assert batch.inertia_.tolist() == [m.inertia_ for m in models]
    assert batch.n_iter_.tolist() == [m.n_iter_ for m in models]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["normal", "lattice", "far"])
@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_each_problem_as_if_alone(init, kind, weighted, dtype):
    x, weight, offsets = make(dtype=dtype, kind=kind)
    weight = weight if weighted else None
    parameters = {"n_clusters": 7, "init": init, "n_init": 3, "random_state": 5}
    batch = KMeans(**parameters).fit(x, sample_weight=weight, offsets=offsets)
    assert_as_alone(batch, fit_alone(x, weight, offsets, **parameters))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
@pytest.mark.parametrize("weighted", [False, True])
def test_empty_clusters(empty, weighted):
    x, weight, offsets = make(kind="lattice", d=2)
    weight = weight if weighted else None
    parameters = {"n_clusters": 12, "init": "random", "n_init": 2, "empty": empty, "tol": 0}
    batch = KMeans(random_state=1, **parameters).fit(x, sample_weight=weight, offsets=offsets)
    assert_as_alone(batch, fit_alone(x, weight, offsets, random_state=1, **parameters))
    own = np.full((4, 5, 2), 50.0) + np.arange(5)[:, None]
    own[:, 0] = 0
    batch = KMeans(5, init=own, empty=empty, n_init=1, random_state=1).fit(x, sample_weight=weight, offsets=offsets)
    assert_as_alone(batch, fit_alone(x, weight, offsets, n_clusters=5, init=own, empty=empty, n_init=1, random_state=1))


@pytest.mark.parametrize("limit", [0, 2**26])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", _native._C.isas)
def test_same_bits_on_any_threads_and_instructions(monkeypatch, isa, threads, limit):
    x, weight, offsets = make(d=20)
    parameters = {"n_clusters": 9, "empty": "split", "random_state": 2, "n_init": 2}
    expected = KMeans(**parameters).fit(x, sample_weight=weight, offsets=offsets)
    monkeypatch.setenv("DCFAST_ISA", isa)
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
    monkeypatch.setattr(points, "_FEW_OPERATIONS", limit)
    monkeypatch.setattr(points, "_MANY_OPERATIONS", limit)
    batch = KMeans(**parameters).fit(x, sample_weight=weight, offsets=offsets)
    assert batch.cluster_centers_.tobytes() == expected.cluster_centers_.tobytes()
    for name in ("labels_", "inertia_", "n_iter_"):
        assert np.array_equal(getattr(batch, name), getattr(expected, name))
    assert np.array_equal(batch.predict(x, offsets), expected.labels_)


@pytest.mark.parametrize("as_tensors", [False, True])
def test_problems_of_one_size(as_tensors):
    x, weight, offsets = make([50] * 6)
    x3, w3 = x.reshape(6, 50, 6), weight.reshape(6, 50)
    if as_tensors:
        x3, w3 = torch.from_numpy(x3), torch.from_numpy(w3)
    batch = KMeans(4, random_state=3).fit(x3, sample_weight=w3)
    ragged = KMeans(4, random_state=3).fit(x, sample_weight=weight, offsets=offsets)
    for name in ("cluster_centers_", "labels_", "inertia_", "n_iter_"):
        value = getattr(batch, name)
        assert isinstance(value, torch.Tensor) == as_tensors
        assert np.array_equal(np.asarray(value).reshape(-1), getattr(ragged, name).reshape(-1))
    assert batch.labels_.shape == (6, 50)
    assert np.array_equal(batch.predict(x3), batch.labels_)
    assert np.array_equal(batch.fit_predict(x3, sample_weight=w3), batch.labels_)
    assert batch.n_features_in_ == 6


def test_predict_transform_and_score_are_those_of_each_problem():
    x, weight, offsets = make(dtype=np.float64)
    new, _, new_offsets = make([5, 70, 1, 33], dtype=np.float64)
    new = new + 0.1
    batch = KMeans(5, random_state=0).fit(x, offsets=offsets)
    models = fit_alone(x, None, offsets, n_clusters=5)
    parts = list(itertools.starmap(slice, itertools.pairwise(new_offsets)))
    predicted, distances = batch.predict(new, new_offsets), batch.transform(new, offsets=new_offsets)
    scores = batch.score(new, sample_weight=weight[: len(new)] + 1, offsets=new_offsets)
    for model, at, score in zip(models, parts, scores, strict=True):
        assert np.array_equal(predicted[at], model.predict(new[at]))
        assert np.allclose(distances[at], model.transform(new[at]), rtol=1e-12)
        assert score == model.score(new[at], sample_weight=weight[at] + 1)
    x3 = np.stack([new[:30]] * 4)
    assert batch.transform(x3).shape == (4, 30, 5)
    assert np.array_equal(batch.predict(x3)[2], models[2].predict(new[:30]))


def test_starts_that_are_given():
    x, _, offsets = make()
    own = np.stack([x[first : first + 3] for first in offsets[:-1]])
    batch = KMeans(3, init=own, n_init=1).fit(x, offsets=offsets)
    assert_as_alone(batch, fit_alone(x, None, offsets, n_clusters=3, init=own, n_init=1))
    common = x[:3]
    batch = KMeans(3, init=common, n_init=1).fit(x, offsets=offsets)
    assert_as_alone(batch, fit_alone(x, None, offsets, n_clusters=3, init=common, n_init=1))

    def corner(X, n_clusters, random_state):
        return X[random_state.randint(len(X), size=n_clusters)]

    parameters = {"n_clusters": 3, "init": corner, "n_init": 2, "random_state": 4}
    assert_as_alone(KMeans(**parameters).fit(x, offsets=offsets), fit_alone(x, None, offsets, **parameters))


def test_as_many_clusters_as_rows_and_one():
    x, _, offsets = make([9] * 5, d=3)
    batch = KMeans(9, random_state=0).fit(x, offsets=offsets)
    assert batch.inertia_.tolist() == [0.0] * 5
    assert_as_alone(batch, fit_alone(x, None, offsets, n_clusters=9))
    assert_as_alone(KMeans(1, random_state=0).fit(x, offsets=offsets), fit_alone(x, None, offsets, n_clusters=1))


def test_strides():
    x, _, offsets = make(d=6)
    wide = np.zeros((len(x), 12), np.float32)
    wide[:, ::2] = x
    expected = KMeans(4, random_state=0).fit(x, offsets=offsets)
    for view in (wide[:, ::2], np.asfortranarray(x)):
        batch = KMeans(4, random_state=0).fit(view, offsets=offsets.astype(np.int32))
        assert batch.cluster_centers_.tobytes() == expected.cluster_centers_.tobytes()
    x3 = torch.from_numpy(x[:440].reshape(4, 110, 6))
    expected = KMeans(4, random_state=0).fit(x3)
    for view in (x3.transpose(0, 1).contiguous().transpose(0, 1), x3.mT.contiguous().mT):
        assert torch.equal(KMeans(4, random_state=0).fit(view).cluster_centers_, expected.cluster_centers_)


def test_too_few_distinct_clusters_warn_once():
    x, _, offsets = make([20, 20])
    x[:20] = 1
    with pytest.warns(ConvergenceWarning, match=r"smaller than n_clusters \(4\) in 1 of 2 problems") as caught:
        KMeans(4, random_state=0).fit(x, offsets=offsets)
    assert len(caught) == 1
    assert caught[0].filename == __file__


X, WEIGHT, OFFSETS = make([20, 30])


@pytest.mark.parametrize(
    ("parameters", "arguments", "error", "match"),
    [
        ({"n_clusters": 21}, {"offsets": OFFSETS}, ValueError, "n_samples=20 of problem 0 should be >= n_clusters=21"),
        ({}, {"offsets": [0, 20, 49]}, ValueError, "offsets must rise from 0 to the 50 rows"),
        ({}, {"offsets": [0, 50, 20, 50]}, ValueError, "1 of its steps are below 1"),
        ({}, {"offsets": [0.0, 50.0]}, ValueError, "offsets is torch.float64"),
        ({}, {"offsets": [0]}, ValueError, "offsets is"),
        ({}, {"X": X.reshape(2, 25, 6), "offsets": OFFSETS}, ValueError, "and there are offsets"),
        ({}, {"X": np.zeros((0, 25, 6))}, ValueError, "at least one problem"),
        ({}, {"X": X.reshape(2, 25, 6), "sample_weight": WEIGHT}, ValueError, r"sample_weight has shape \(50,\)"),
        ({}, {"offsets": OFFSETS, "sample_weight": WEIGHT[1:]}, ValueError, "sample_weight"),
        ({}, {"offsets": OFFSETS, "sample_weight": np.arange(50) < 20}, ValueError, "those of problem 1 do not"),
        ({}, {"X": np.where(X > 2, np.nan, X), "offsets": OFFSETS}, ValueError, "NaN"),
        ({"init": X[:3]}, {"offsets": OFFSETS}, ValueError, r"init has shape \(2, 3, 6\): expected \(2, 4, 6\)"),
        ({"init": np.full((2, 4, 6), np.inf)}, {"offsets": OFFSETS}, ValueError, "non-finite"),
        ({"process_group": "gloo"}, {"offsets": OFFSETS}, ValueError, "process_group"),
        ({"callback": print}, {"offsets": OFFSETS}, ValueError, "callback"),
        ({"spherical": True}, {"offsets": OFFSETS}, ValueError, "spherical"),
        ({"early_stop_threshold": 0.1}, {"offsets": OFFSETS}, ValueError, "early_stop_threshold"),
        ({}, {"X": torch.zeros(2, 25, 6, dtype=torch.float16)}, TypeError, "torch.float16"),
        ({}, {"X": np.zeros((2, 25, 0))}, ValueError, "feature"),
    ],
)
def test_errors_name_the_argument(parameters, arguments, error, match):
    with pytest.raises(error, match=match):
        KMeans(**({"n_clusters": 4, "n_init": 1} | parameters)).fit(**({"X": X} | arguments))


def test_errors_of_predict():
    batch, one = KMeans(3, n_init=1).fit(X, offsets=OFFSETS), KMeans(3, n_init=1).fit(X)
    with pytest.raises(ValueError, match="X is one problem, but KMeans was fitted to 2"):
        batch.predict(X)
    with pytest.raises(ValueError, match="X has 5 problems, but KMeans was fitted to 2"):
        batch.predict(X.reshape(5, 10, 6))
    with pytest.raises(ValueError, match="fitted to one problem"):
        one.predict(X, offsets=OFFSETS)
    with pytest.raises(ValueError, match="X has 5 features"):
        batch.predict(X[:, :5], OFFSETS)
