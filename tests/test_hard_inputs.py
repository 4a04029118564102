"""Hard inputs: degenerate, extreme, odd in memory, from other processes and threads, interrupted. All are exact."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from support.hard import bits, fit, fit_denormals, fit_large, flush_denormals

from dcfast import BisectingKMeans, KMeans, MiniBatchKMeans, ops


def normal(n, d, seed=0):
    return np.random.RandomState(seed).standard_normal((n, d))


def duplicates(n, d):
    return normal(9, d)[np.random.RandomState(1).randint(9, size=n)]


def lattice(n, d):
    return np.random.RandomState(0).randint(3, size=(n, d)).astype(float)


def columns_of_many_scales(n, d):
    return normal(n, d) * 10.0 ** np.linspace(-25, 25, d)


def one_outlier(n, d):
    X = normal(n, d)
    X[n // 2] *= 1e30
    return X


# Name -> X of shape (n, d).
DATA = {
    "duplicates": duplicates,
    "all equal": lambda n, d: np.full((n, d), 0.1),
    "lattice": lattice,
    "tiny": lambda n, d: 1e-30 * normal(n, d),
    "huge": lambda n, d: 1e30 * normal(n, d),
    "columns of many scales": columns_of_many_scales,
    "one outlier": one_outlier,
    "a common offset": lambda n, d: 1e6 + normal(n, d),
    "denormals": lambda n, d: 1e-42 * normal(n, d),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    # The denormals of float64 are refused: see below.
    [
        (name, dtype)
        for name in DATA
        for dtype in (np.float32, np.float64)
        if (name, dtype) != ("denormals", np.float64)
    ],
)
@pytest.mark.parametrize("init", ["k-means++", "random"])
@pytest.mark.parametrize("d", [3, 40])  # columns in sequence, and in integer products
def test_equal_to_the_reference(name, dtype, init, d):
    X = DATA[name](300, d).astype(dtype)
    with ops.backend("reference"):
        expected = fit(X, 13, init=init)
    model = fit(X, 13, init=init)
    assert bits(model) == bits(expected)
    assert np.array_equal(model.predict(X), model.labels_)


@pytest.mark.parametrize("magnitude", [1e-310, 1e-200, 1e200])  # denormals first
def test_float64_whose_squares_leave_the_range_is_refused(magnitude):
    with pytest.raises(ValueError, match=r"elements of magnitude 2\^.* rescale the data"):
        KMeans(2).fit(magnitude * normal(20, 3))


@pytest.mark.parametrize("name", ["duplicates", "all equal", "lattice", "one outlier", "a common offset"])
@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
def test_empty_clusters_of_hard_data(name, empty):
    X = DATA[name](200, 20).astype(np.float32)
    start = np.concatenate([X[:8], X[:4], np.full((4, 20), 7e3, np.float32)])
    with ops.backend("reference"):
        expected = fit(X, 16, init=start, empty=empty)
    assert bits(fit(X, 16, init=start, empty=empty)) == bits(expected)


def test_weights_of_many_magnitudes():
    X = lattice(300, 20).astype(np.float32)
    weight = 10.0 ** np.random.RandomState(0).uniform(-30, 30, 300)
    weight[::5] = 0
    with ops.backend("reference"):
        expected = fit(X, 10, weight)
    assert bits(fit(X, 10, weight)) == bits(expected)


@pytest.mark.parametrize("d", [3, 40])
@pytest.mark.parametrize("norm", [1e4, 1e18, 1e36])
def test_one_centroid_of_huge_norm(d, norm):
    X = normal(300, d).astype(np.float32)
    start = X[:10].copy()
    start[4] = np.float32(norm / d)
    with ops.backend("reference"):
        expected = fit(X, 10, init=start, empty="keep")
    model = fit(X, 10, init=start, empty="keep")
    assert bits(model) == bits(expected)
    assert np.array_equal(model.cluster_centers_[4], start[4])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_as_many_clusters_as_points(dtype):
    X = normal(70, 5).astype(dtype)
    model = fit(X, 70)
    assert model.inertia_ == 0
    assert np.array_equal(model.cluster_centers_[model.labels_], X)
    with pytest.raises(ValueError, match="n_samples=70 should be >= n_clusters=71"):
        fit(X, 71)


@pytest.mark.parametrize("name", ["duplicates", "columns of many scales", "one outlier", "a common offset"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_one_cluster_is_the_mean(name, dtype):
    X = DATA[name](101, 4).astype(dtype)
    # float() of a fraction rounds it once: RN64 of the exact sum.
    expected = [dtype(float(sum(map(Fraction, column))) / len(X)) for column in X.T.tolist()]
    assert fit(X, 1).cluster_centers_[0].tolist() == [float(value) for value in expected]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n", "d", "k"), [(500, 1, 20), (40, 20000, 5)])
def test_one_column_and_very_many(n, d, k, dtype):
    X = normal(n, d).astype(dtype)
    start = X[:k].copy()
    with ops.backend("reference"):
        expected = fit(X, k, init=start, max_iter=2)
    assert bits(fit(X, k, init=start, max_iter=2)) == bits(expected)


# ---- what is no number, and what is no array of floats --------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, np.ndarray.tolist], ids=["numpy", "torch", "list"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_counted_and_found(kind, bad):
    X = normal(50, 4)
    X[[30, 7, 41], [0, 2, 3]] = bad
    model = KMeans(3, random_state=0).fit(normal(50, 4))
    for call in (KMeans(3).fit, MiniBatchKMeans(3).fit, BisectingKMeans(3).fit, model.predict, model.transform):
        with pytest.raises(ValueError, match=r"X contains 3 non-finite value\(s\) .* first at \(7, 2\)"):
            call(kind(X))


def test_finite_values_whose_sum_is_not():
    X = np.array([[3e38], [3e38], [-3e38], [3e38]], np.float32)
    assert sorted(fit(X, 2).cluster_centers_[:, 0]) == [X[2, 0], X[0, 0]]


@pytest.mark.parametrize("X", [np.zeros((0, 3)), torch.zeros(0, 3), np.zeros((3, 0)), torch.zeros(3, 0), []])
def test_empty_input(X):
    fitted = KMeans(1).fit(np.zeros((2, 3)))
    for call in (KMeans(1).fit, fitted.predict):
        with pytest.raises(ValueError, match=r"sample|feature|1D|shape"):
            call(X)


def test_objects_that_are_no_numbers():
    X = np.array([[1.0, {}], [2.0, 3.0]], dtype=object)
    with pytest.raises(TypeError, match="must be a string or a real number, not 'dict'"):
        KMeans(1).fit(X)
    with pytest.raises(TypeError, match=r"dtype torch\.int64: expected float32"):
        ops.assign(torch.zeros(3, 2).long(), torch.zeros(1, 2).long())


# Name -> an array of the values of X, (n, d), in another form.
FORMS = {
    "fortran": np.asfortranarray,
    "every other row": lambda X: np.repeat(X, 2, 0)[::2],
    "every third column": lambda X: np.repeat(X, 3, 1)[:, ::3],
    "reversed": lambda X: np.ascontiguousarray(X[::-1, ::-1])[::-1, ::-1],
    "read-only": lambda X: np.frombuffer(X.tobytes(), X.dtype).reshape(X.shape),
    "unaligned": lambda X: np.frombuffer(b"." + X.tobytes(), X.dtype, offset=1).reshape(X.shape),
    "torch": lambda X: torch.tensor(X),
    "torch, columns first": lambda X: torch.tensor(X.T.copy()).T,
    "torch, every other row and column": lambda X: (
        torch.tensor(X).repeat_interleave(2, 0).repeat_interleave(2, 1)[::2, ::2]
    ),
    "torch, with a gradient": lambda X: torch.tensor(X, requires_grad=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts_do_not_matter(form, dtype):
    X = normal(200, 18).astype(dtype)
    Y = FORMS[form](X)
    before = Y.detach().clone() if isinstance(Y, torch.Tensor) else Y.copy()
    expected, model = fit(X, 7), fit(Y, 7)
    assert bits(model) == bits(expected)
    assert np.array_equal(np.asarray(model.predict(Y)), expected.labels_)
    assert bool((before == Y).all())


@pytest.mark.parametrize(
    "convert",
    [
        np.ndarray.tolist,
        lambda X: X.astype(np.int8),
        lambda X: X.astype(np.uint64),
        lambda X: X.astype(np.float16),
        lambda X: X.astype(">f4"),
        lambda X: X.astype(object),
        lambda X: torch.tensor(X).to(torch.uint8),
        lambda X: torch.tensor(X).to(torch.int64),
    ],
    ids=["list", "int8", "uint64", "float16", "big-endian", "objects that are numbers", "torch uint8", "torch int64"],
)
def test_other_types_become_float64(convert):
    X = lattice(150, 6)
    model = fit(convert(X), 5)
    assert np.asarray(model.cluster_centers_).dtype == np.float64
    assert bits(model) == bits(fit(X, 5))


def test_booleans():
    X = lattice(150, 6) > 0
    expected = bits(fit(X.astype(float), 5))
    assert bits(fit(X, 5)) == bits(fit(torch.tensor(X), 5)) == expected


def test_rows_that_share_memory():
    row = torch.tensor([[1.0, 2.0, 3.0]])
    model = fit(row.expand(50, 3), 1)  # of stride 0
    assert torch.equal(model.cluster_centers_, row)
    assert model.inertia_ == 0


# ---- processes, threads, modes, interruptions ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_child_processes(method):
    expected = fit_large(0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(fit_large, [0, 0]).get(timeout=100) == [expected, expected]


def test_fits_in_two_threads_at_once():
    expected = [fit_large(seed) for seed in range(2)]
    found = [None, None]

    def work(seed):
        found[seed] = fit_large(seed)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == expected


def test_flushed_denormals():
    with ops.backend("reference"):
        expected = fit_denormals()
    with multiprocessing.get_context("spawn").Pool(1, initializer=flush_denormals) as pool:
        assert pool.apply_async(fit_denormals).get(timeout=100) == expected


@pytest.mark.parametrize("estimator", [KMeans, MiniBatchKMeans, BisectingKMeans])
def test_a_fit_that_fails_leaves_nothing_of_a_model(estimator):
    X = normal(40, 3)
    model = estimator(4, random_state=0).fit(X)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(np.full((40, 3), np.nan))
    with pytest.raises(NotFittedError):
        model.predict(X)
    assert not hasattr(model, "labels_")


@pytest.mark.parametrize(("init", "wait"), [("random", "iteration 2"), ("k-means++", "starting")])
def test_a_long_fit_stops_when_interrupted(init, wait):
    # A shell that starts this in the background has its children ignore the signal.
    code = f"""
import signal
import time
import numpy as np
from sklearn.exceptions import NotFittedError
from dcfast import KMeans
signal.signal(signal.SIGINT, signal.default_int_handler)
X = np.random.default_rng(0).standard_normal((200_000, 64), np.float32)
model = KMeans(3000, init={init!r}, tol=0, random_state=0, callback=lambda i, n: print("iteration", i, flush=True))
print("starting", flush=True)
try:
    model.fit(X)
except KeyboardInterrupt:
    print("stopped", time.monotonic(), flush=True)
try:
    model.predict(X[:1])
except NotFittedError:
    print("unfitted", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True, cwd=os.sep)
    try:
        lines = iter(process.stdout.readline, "")
        assert any(line.startswith(wait) for line in lines)
        if wait == "starting":
            time.sleep(1)  # into the choice of 3,000 centroids
        sent = time.monotonic()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    said = rest.split("\n")
    stopped = next(float(line.split()[1]) for line in said if line.startswith("stopped"))
    assert "unfitted" in said
    assert stopped - sent < 1
