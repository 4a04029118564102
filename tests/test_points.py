"""Rows from anywhere: memory, memory maps, files, sparse matrices, streams of chunks. All give the same bits."""

import itertools
import warnings

import numpy as np
import pytest
import scipy.sparse
import sklearn.cluster
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning

from dcfast import BisectingKMeans, KMeans, MiniBatchKMeans, kmeans_plusplus
from dcfast.cluster.blocks import Sliced, Streamed
from dcfast.cluster.inputs import DEFAULT_MEMORY, open_points, parse_memory
from dcfast.cluster.points import InMemory

N, D, K = 500, 6, 7
WEIGHT = np.random.RandomState(5).rand(N)


def rows(dtype=np.float32, n=N):
    """Rows of very different sizes, so that sums need several words, with exact zeros, negative ones too."""
    random = np.random.RandomState(0)
    X = random.randn(n, D) * np.exp2(random.randint(-20, 20, (n, 1)))
    X[random.rand(n, D) < 0.4] = 0
    X[random.rand(n, D) < 0.1] = -0.0
    return X.astype(dtype)


def chunked(X, size, kind=np.asarray):
    return lambda: (kind(X[start : start + size]) for start in range(0, len(X), size))


def sources(X, folder):
    """The same rows from everywhere; with a small max_memory all but the first two are read in blocks."""
    np.save(folder / "x.npy", X)
    yield "array", X
    yield "tensor", torch.from_numpy(X)
    yield "Fortran order", np.asfortranarray(X)
    yield "steps", np.repeat(X, 2, axis=0)[::2]
    yield "backwards", X[::-1].copy()[::-1]
    yield "columns", np.repeat(X, 2, axis=1)[:, ::2]
    yield "other bytes", X.astype(X.dtype.newbyteorder()) if X.dtype == np.float64 else X
    yield "memory map", np.load(folder / "x.npy", mmap_mode="r")
    yield "writable map", np.load(folder / "x.npy", mmap_mode="r+")
    yield "path", folder / "x.npy"
    yield "string", str(folder / "x.npy")
    for container in (scipy.sparse.csr_array, scipy.sparse.csr_matrix, scipy.sparse.coo_array, scipy.sparse.csc_array):
        yield container.__name__, container(X)
    for size in (1, 7, 100, 1000):
        yield f"chunks of {size}", chunked(X, size)
    yield "chunks of tensors", chunked(X, 100, torch.from_numpy)
    yield "sparse chunks", chunked(X, 100, scipy.sparse.csr_array)
    cuts = [0, 0, 3, 400, 400, N]
    yield "ragged chunks", lambda: (X[a:b] for a, b in itertools.pairwise(cuts))


def bits(model):
    arrays = (torch.as_tensor(a).double().numpy().tobytes() for a in (model.cluster_centers_, model.labels_))
    return *arrays, model.inertia_, model.n_iter_


@pytest.mark.parametrize(("dtype", "weight"), [(np.float32, WEIGHT), (np.float64, None)])
def test_every_source_gives_the_same_bits(dtype, weight, tmp_path):
    X = rows(dtype)
    for init, empty, memory in (("k-means++", "farthest", 7000), ("random", "split", 2500), ("random", "keep", "1GiB")):
        expected = None
        for name, source in sources(X, tmp_path):
            model = KMeans(K, init=init, n_init=1, max_iter=3, empty=empty, random_state=3, max_memory=memory)
            found = bits(model.fit(source, sample_weight=weight))
            expected = expected or found
            assert found == expected, (name, init, empty, memory)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_blocks_predict_transform_and_score_as_the_whole(dtype, tmp_path):
    X = rows(dtype)
    model = KMeans(K, n_init=1, random_state=0).fit(X)
    labels, score, distances = model.predict(X), model.score(X, sample_weight=WEIGHT), model.transform(X)
    model.max_memory = 1000
    for name, source in sources(X, tmp_path):
        assert np.array_equal(model.predict(source), labels), name
        assert model.score(source, sample_weight=WEIGHT) == score, name
        np.testing.assert_array_equal(np.asarray(model.transform(source)), distances, name)


def test_relocation_is_the_same_in_blocks():
    X = rows()
    start = np.concatenate([X[:3], np.full((5, D), 1e9, np.float32)])  # five clusters that begin empty
    arguments = {"init": start, "n_init": 1, "max_iter": 3, "tol": 0}
    expected = bits(KMeans(8, **arguments).fit(X, sample_weight=WEIGHT))
    for size in (1, 7, 1000):
        model = KMeans(8, max_memory=500, **arguments)
        assert bits(model.fit(chunked(X, size), sample_weight=WEIGHT)) == expected
    assert bits(KMeans(8, max_memory=500, **arguments).fit(scipy.sparse.csr_array(X), sample_weight=WEIGHT)) == expected


def test_a_start_where_rows_tie():
    X = np.repeat(np.arange(6.0), 200)[:, None]
    start = np.array([[0.0], [1e9], [1e9], [1e9]])
    weight = np.ones(1200)
    weight[1001] = 0
    for memory in (100, None):
        model = KMeans(4, init=start, n_init=1, max_iter=1, tol=0, max_memory=memory)
        with pytest.warns(ConvergenceWarning, match="distinct clusters"):
            model.fit(chunked(X, 7), sample_weight=weight)
        # Of the rows at 5, the farthest, numbers 1000 to 1002 are taken, of which one weighs nothing: its cluster goes
        # to the heaviest.
        assert model.cluster_centers_.tolist() == [[2985.0 / 1197], [5.0], [2985.0 / 1197], [5.0]]


@pytest.mark.parametrize("dtype", [np.int16, np.int64, np.uint8, bool, np.float16, np.longdouble])
def test_other_types_are_converted_block_by_block(dtype):
    X = (rows() * 2).clip(0, 100).astype(dtype)
    expected = bits(KMeans(K, n_init=1, random_state=0).fit(X.astype(np.float64)))
    for memory in (None, 500):
        assert bits(KMeans(K, n_init=1, random_state=0, max_memory=memory).fit(X)) == expected
    if dtype not in (np.float16, np.longdouble):
        for x in (torch.from_numpy(X), scipy.sparse.csr_array(X.astype(int))):
            assert bits(KMeans(K, n_init=1, random_state=0, max_memory=500).fit(x)) == expected


def test_one_row_has_any_stride():
    x = np.random.default_rng(0).normal(size=(9, 3))
    odd = np.zeros(2, dtype=[("row", "<f8", 3), ("", "u1")])
    model = KMeans(2, random_state=0, n_init=1).fit(x)
    for row in (x[4:5][::-1], x[4:5].astype(">f8")[::-1], odd[:1]["row"]):
        assert np.array_equal(model.predict(row), model.predict(np.array(row, dtype=np.float64)))
    assert np.array_equal(KMeans(1).fit(x[:1][::-1], sample_weight=np.ones(1)[::-1]).cluster_centers_, x[:1])
    blocks = KMeans(2, random_state=0, n_init=1, max_memory=4 * 2 * 24).fit(x[::-1])  # two rows each, the last has one
    assert np.array_equal(blocks.labels_, KMeans(2, random_state=0, n_init=1).fit(x[::-1].copy()).labels_)


def test_half_precision_tensors_stay_as_they_are():
    X = torch.from_numpy(rows().clip(-100, 100)).bfloat16()
    expected = bits(model := KMeans(K, n_init=1, random_state=0, tol=0).fit(X))
    assert model.cluster_centers_.dtype == torch.bfloat16
    for source in (X.T.contiguous().T, chunked(X, 7, lambda x: x)):
        assert bits(KMeans(K, n_init=1, random_state=0, tol=0, max_memory=500).fit(source)) == expected


def test_what_is_a_copy_and_what_is_not():
    X = np.zeros((1000, 8), np.float32)
    opened = open_points(BaseEstimator(), X, reset=True, max_memory=100)
    assert isinstance(opened, InMemory)
    assert opened.x.data_ptr() == X.ctypes.data
    turned = np.asfortranarray(X)
    assert isinstance(open_points(BaseEstimator(), turned, reset=True, max_memory=100), Sliced)
    assert isinstance(open_points(BaseEstimator(), turned, reset=True), InMemory)
    sliced = open_points(BaseEstimator(), scipy.sparse.csr_array(X), reset=True, max_memory=12800)
    assert [at.stop - at.start for at, _ in sliced.blocks()] == [100] * 10
    streamed = open_points(BaseEstimator(), chunked(X, 7), reset=True, max_memory=12800)
    assert isinstance(streamed, Streamed)
    assert [len(block) for _, block in streamed.blocks()] == [100] * 10


def test_a_map_is_not_held_and_not_changed(tmp_path):
    X = rows(n=40000)
    np.save(tmp_path / "x.npy", X)
    copy_on_write = np.load(tmp_path / "x.npy", mmap_mode="c")
    copy_on_write[0] = 7.0
    model = KMeans(2, init=X[:2], n_init=1, max_memory=2**16).fit(copy_on_write)
    assert np.array_equal(copy_on_write[0], [7.0] * D)
    changed = X.copy()
    changed[0] = 7.0
    assert bits(model) == bits(KMeans(2, init=X[:2], n_init=1).fit(changed))


def test_sparse_input_is_that_of_scikit_learn():
    X = rows(np.float64)
    X = X / (1 + np.abs(X))
    sparse = scipy.sparse.csr_array(X)
    ours = KMeans(5, init=X[:5], n_init=1).fit(sparse, sample_weight=WEIGHT)
    theirs = sklearn.cluster.KMeans(5, init=X[:5], n_init=1).fit(sparse, sample_weight=WEIGHT)
    assert np.array_equal(ours.labels_, theirs.labels_)
    np.testing.assert_allclose(ours.cluster_centers_, theirs.cluster_centers_, atol=1e-12)
    np.testing.assert_allclose(ours.transform(sparse), theirs.transform(sparse), atol=1e-12)
    assert np.array_equal(ours.fit_predict(sparse), ours.predict(X))
    assert not hasattr(ours, "feature_names_in_")
    given = []
    KMeans(5, init=lambda data, k, random_state: given.append(data) or X[:k], n_init=1).fit(sparse)
    assert given[0] is sparse
    assert np.array_equal(
        kmeans_plusplus(sparse, 5, random_state=0)[1], sklearn.cluster.kmeans_plusplus(sparse, 5, random_state=0)[1]
    )
    for estimator in (MiniBatchKMeans(5, random_state=0), BisectingKMeans(5, random_state=0)):
        assert np.array_equal(estimator.fit(sparse).labels_, estimator.fit(X).labels_)
        assert np.array_equal(estimator.predict(sparse), estimator.labels_)


def test_memory_is_counted_in_the_usual_units():
    assert parse_memory(None) == DEFAULT_MEMORY
    assert parse_memory(123) == parse_memory("123") == parse_memory("123 B") == 123
    assert parse_memory("1.5KiB") == 1536
    assert parse_memory("2GB") == 2 * 10**9
    for wrong in ("much", "-3", "0", "1XB", ""):
        with pytest.raises(ValueError, match="max_memory"):
            parse_memory(wrong)
    with pytest.raises(ValueError, match="max_memory"):
        KMeans(2, max_memory=0).fit(rows())


def changing(first, later):
    passes = itertools.count()
    return lambda: iter([first] if next(passes) == 0 else [later])


@pytest.mark.parametrize(
    ("source", "error", "match"),
    [
        (changing(np.zeros((9, 2)), np.zeros((8, 2))), ValueError, "9 rows of 2 features at first"),
        (changing(np.zeros((9, 2)), np.zeros((10, 2))), ValueError, "9 rows of 2 features at first"),
        (changing(np.zeros((9, 2)), np.zeros((9, 3))), ValueError, "9 rows of 2 features at first"),
        (lambda: iter([]), ValueError, "no chunks"),
        (lambda: iter([np.zeros((3, 2)), np.zeros((3, 1))]), ValueError, r"chunk of shape \(3, 1\).*\(rows, 2\)"),
        (lambda: iter([np.zeros(3)]), ValueError, r"chunk of shape \(3,\)"),
        (iter([np.zeros((3, 2))]), TypeError, "only once"),
        ("nowhere.npy", FileNotFoundError, "nowhere.npy"),
        (__file__, ValueError, r"no \.npy file"),
        (lambda: iter([np.zeros((1, 2))]), ValueError, "n_samples=1 should be >= n_clusters=2"),
        (np.array([[object()]]), TypeError, "must be"),
    ],
)
def test_sources_that_cannot_be_read(source, error, match):
    with pytest.raises(error, match=match):
        KMeans(2, max_memory=10).fit(source)


def test_files_that_hold_something_else(tmp_path):
    np.savez(tmp_path / "x.npz", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="NpzFile"):
        KMeans(2).fit(tmp_path / "x.npz")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        KMeans(2).fit(tmp_path / "flat.npy")
    np.save(tmp_path / "narrow.npy", np.zeros((3, 1)))
    with pytest.raises(ValueError, match="X has 1 features, but KMeans is expecting 6"):
        KMeans(2).fit(rows()).predict(tmp_path / "narrow.npy")


@pytest.mark.parametrize("memory", [500, None])
def test_what_is_not_finite_is_counted_across_blocks(memory, tmp_path):
    X = rows()
    X[300, 2], X[300, 4], X[450, 0] = np.nan, np.inf, -np.inf
    for _, source in sources(X, tmp_path):
        with pytest.raises(ValueError, match=r"X contains 3 non-finite value\(s\) \(NaN or infinity\), .* \(300, 2\)"):
            KMeans(2, max_memory=memory).fit(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        huge = KMeans(2, init=np.array([[0.0], [1e30]], np.float32), n_init=1).fit(np.full((9, 1), 3e38, np.float32))
    assert huge.inertia_ == 0  # their sum overflows in float32; they do not
