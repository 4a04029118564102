"""Clustering by cosine, stopping by the objective, and what a fit that failed leaves behind."""

import itertools

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from dcfast import KMeans, ops
from dcfast.cluster import sphere
from dcfast.faiss.vectors import of_unit_length
from dcfast.ops import _native

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def directions(n=600, d=6, dtype=np.float32):
    """Rows near a few directions, of norms from 1e-6 to 1e6."""
    random = np.random.RandomState(0)
    X = random.randn(8, d)[random.randint(8, size=n)] + 0.2 * random.randn(n, d)
    return (X * 10.0 ** random.uniform(-6, 6, (n, 1))).astype(dtype)


def unit(X):
    """Rows over their norms, step by step: a sum of squares in order, a root, a division, each rounded once."""
    X = torch.as_tensor(X)
    squares = torch.zeros(len(X), dtype=torch.float64)
    for i in range(X.shape[1]):
        squares = squares + X[:, i].double() * X[:, i].double()
    norms = torch.from_numpy(np.where(squares > 0, np.sqrt(squares.numpy()), 1.0))  # torch's may be off by a place
    return (X.double() / norms[:, None]).to(X.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_are_rounded_once(dtype):
    x = torch.randn(20_000, 3, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sphere.unit(x), unit(x))
    assert torch.equal(of_unit_length(x.float()), unit(x.float()))


def bits(model):
    arrays = (torch.as_tensor(a).double().numpy().tobytes() for a in (model.cluster_centers_, model.labels_))
    return *arrays, model.inertia_, model.n_iter_


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_step_is_the_definition(dtype):
    X = directions(dtype=dtype)
    X[5] = 0
    weight = np.random.RandomState(3).rand(len(X))
    model = KMeans(8, init=X[8:16], n_init=1, max_iter=1, spherical=True).fit(X, sample_weight=weight)
    x, start = unit(X), unit(X[8:16])
    sums = ops.accumulate(x, ops.assign(x, start), 8, torch.from_numpy(weight))
    expected = unit(ops.means(sums, start.double())).to(x.dtype)
    assert np.array_equal(model.cluster_centers_, expected)
    assert np.array_equal(model.labels_, ops.assign(x, expected))
    assert model.inertia_ == float(ops.inertia(x, expected, ops.assign(x, expected), torch.from_numpy(weight)))
    # Which is the cosine, but for the rows of zeros.
    cosine = (x.double() @ expected.double().T).numpy()
    some = np.arange(len(X)) != 5
    assert np.array_equal(model.labels_[some], cosine.argmax(1)[some])
    distance = np.where(some, 2 * (1 - cosine.max(1)), 1)
    assert model.inertia_ == pytest.approx(weight @ distance, rel=1e-5)
    assert np.array_equal(model.predict(X), model.labels_)
    assert model.score(X, sample_weight=weight) == -model.inertia_
    np.testing.assert_allclose(model.transform(X)[some], np.sqrt(2 - 2 * cosine)[some], atol=2e-3)


@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
def test_the_norms_of_centroids_are_one(empty):
    X = directions()
    start = np.concatenate([X[:3], -X[:3] - X.mean(0), X[:3]])  # the last three begin empty
    # With a seed, since by some two splits meet in one direction.
    model = KMeans(9, init=start, n_init=1, max_iter=1, spherical=True, empty=empty, random_state=0).fit(X)
    np.testing.assert_allclose(np.linalg.norm(model.cluster_centers_.astype(float), axis=1), 1, rtol=1e-7)
    if empty == "keep":
        assert np.array_equal(model.cluster_centers_[6:], unit(X[:3]))
    else:
        assert len(np.unique(model.cluster_centers_, axis=0)) == 9


def test_directions_that_cancel_out_leave_the_centroid():
    X = np.array([[1.0, 0.0], [-2.0, 0.0], [0.0, 0.0]])
    model = KMeans(1, init=np.array([[0.0, 3.0]]), n_init=1, spherical=True).fit(X)
    assert model.cluster_centers_.tolist() == [[0.0, 1.0]]
    assert model.inertia_ == 5


def test_the_same_bits_from_anywhere(monkeypatch, tmp_path):
    X = directions()
    np.save(tmp_path / "x.npy", X)
    arguments = {"n_init": 1, "random_state": 0, "spherical": True, "max_iter": 3}
    with ops.backend("reference"):
        expected = bits(KMeans(8, **arguments).fit(X))
    chunks = lambda: iter(np.array_split(X, 50))  # noqa: E731
    for source in (X, torch.from_numpy(X), tmp_path / "x.npy", scipy.sparse.csr_array(X), chunks):
        for memory, threads in ((None, 1), (None, 3), (3000, 1)):
            monkeypatch.setattr(_native, "threads", lambda *_, threads=threads: threads)
            model = KMeans(8, max_memory=memory, **arguments).fit(source)
            assert bits(model) == expected
            assert np.array_equal(model.predict(source), model.labels_)
    # The lengths of the rows do not matter, if they are changed exactly.
    assert bits(KMeans(8, **arguments).fit(np.ldexp(X, np.arange(600)[:, None] % 5))) == expected


def test_rows_out_of_range():
    X = directions(dtype=np.float64)
    for scale in (1e-200, 1e200):
        with pytest.raises(ValueError, match="rescale"):
            KMeans(2, spherical=True).fit(X * scale)
    X[3, 1] = np.inf
    with pytest.raises(ValueError, match="1 non-finite"):
        KMeans(2, spherical=True).fit(X)


def objectives(X, model):
    """The inertia before every update."""
    found, centers = [], X[:8]
    for _ in range(model.n_iter_):
        labels = ops.assign(torch.from_numpy(X), torch.from_numpy(centers))
        found.append(float(ops.inertia(torch.from_numpy(X), torch.from_numpy(centers), labels)))
        centers = KMeans(8, init=centers, n_init=1, max_iter=1, tol=0).fit(X).cluster_centers_
    return found


def test_a_run_stops_by_its_objective(capsys):
    X = np.random.RandomState(0).randn(600, 4)
    arguments = {"n_clusters": 8, "init": X[:8], "n_init": 1, "tol": 0}
    full = KMeans(**arguments).fit(X)
    early = KMeans(early_stop_threshold=0.02, verbose=1, **arguments).fit(X)
    values = objectives(X, full)
    changes = [abs(a - b) / a for a, b in itertools.pairwise(values)]
    assert early.n_iter_ == 2 + next(i for i, change in enumerate(changes) if change <= 0.02) < full.n_iter_
    assert "within threshold 0.02" in capsys.readouterr().out
    assert bits(early) == bits(KMeans(max_iter=early.n_iter_, **arguments).fit(X))
    assert KMeans(early_stop_threshold=0, **arguments).fit(X).inertia_ == full.inertia_


class Stop(BaseException):
    pass


def test_a_fit_that_fails_leaves_nothing():
    X = directions()

    def stop(iteration, moved):
        if iteration == 2:
            raise Stop

    model = KMeans(5, random_state=0).fit(X)
    with pytest.raises(Stop):
        model.set_params(callback=stop).fit(X)
    with pytest.raises(NotFittedError):
        check_is_fitted(model)
    model.set_params(callback=None).fit(X)
    with pytest.raises(ValueError, match="n_clusters"):
        model.fit(X[:3])
    assert not [name for name in vars(model) if name.endswith("_")]


def test_tensors_are_answered_by_tensors():
    X = torch.from_numpy(directions())
    model = KMeans(4, spherical=True, n_init=1, random_state=0).fit(X)
    assert isinstance(model.cluster_centers_, torch.Tensor)
    assert torch.equal(model.predict(X), model.labels_)
