"""Rows in CSR: every op gives the bits of the dense form, and nothing is made dense as a whole."""

import dataclasses
import itertools
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch

from dcfast import BisectingKMeans, KMeans, MiniBatchKMeans, ops
from dcfast.cluster import sparse
from dcfast.ops import _native

# One row, one column, as many centroids as rows; widths of one to many vectors, rows of several spans of columns.
SHAPES = [(1, 1, 1), (5, 3, 2), (13, 1, 40), (60, 40, 60), (90, 33, 140), (40, 300, 9)]
KINDS = ["normal", "lattice", "holes", "empty", "huge", "tiny", "duplicates", "mixed", "nonfinite"]
DTYPES = [torch.float32, torch.float64]


def make(n, d, k, kind, dtype):
    """Dense rows with many zeros, and centroids."""
    generator = torch.Generator().manual_seed(n * d + k)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x *= torch.rand(n, d, generator=generator) < min(1.0, 4 / d + 0.05)
    c = torch.randn(k, d, generator=generator, dtype=torch.float64) / d**0.5
    if kind == "lattice":  # ties everywhere
        x, c = (2 * x).round(), (2 * c).round()
    elif kind == "holes":  # every centroid is as near as every other
        x, c = x * 0, c.sign()
    elif kind == "empty":
        x[n // 3 :] = 0
    elif kind == "huge":
        x, c = x * 1e20, c * 1e20
    elif kind == "tiny":
        x, c = x * 1e-30, c * 1e-30
    elif kind == "duplicates":
        c = x[torch.arange(k) // 2 % n].clone()
    elif kind == "mixed":  # one centroid of huge norm, one outlier
        c[-1] *= 1e15
        x[-1] *= 1e25
    elif kind == "nonfinite":
        c[0, 0] = torch.nan
        c[-1, -1] = torch.inf
        x[n // 2, 0] = -torch.inf
        x[n - 1, d - 1] = torch.nan
    return x.to(dtype), c.to(dtype)


def csr(x, index=torch.int32):
    """The rows in CSR, every seventh zero of them kept as an element."""
    kept = x != 0
    kept |= torch.arange(x.numel()).reshape(x.shape) % 7 == 0
    indptr = torch.cat([torch.zeros(1, dtype=torch.int64), kept.sum(1).cumsum(0)])
    return ops.Csr(indptr, kept.nonzero()[:, 1].to(index), x[kept], x.shape[1])


def reference(function, *arguments):
    with ops.backend("reference"):
        return function(*arguments)


def equal_bits(a, b):
    return a.dtype == b.dtype and a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_labels_and_distances_are_those_of_the_dense_rows(n, d, k, kind, dtype):
    x, c = make(n, d, k, kind, dtype)
    labels = reference(ops.assign, x, c)
    weight = torch.rand(n, dtype=torch.float64)
    anywhere = torch.randint(-1, k + 1, (n,))
    for index in (torch.int32, torch.int64):
        rows = csr(x, index)
        assert torch.equal(ops.assign(rows, c), labels)
        out = torch.empty_like(labels)
        moved = ops.reassign(rows, c, c, anywhere, ops.distance_bounds(n, d, x.device), out)
        assert torch.equal(out, labels)
        assert moved == (labels != anywhere).sum()
        for w in (None, weight):
            expected = reference(ops.point_distances, x, c, anywhere, w)
            found = ops.point_distances(rows, c, anywhere, w)
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("scale", [1e-290, 1e-160, 1e150, 1e290])
def test_float64_beyond_the_range_of_squares_follows_ieee(scale):
    x, c = (t * scale for t in make(50, 5, 9, "normal", torch.float64))
    assert torch.equal(ops.assign(csr(x), c), reference(ops.assign, x, c))
    closest = reference(ops.point_distances, x, c, torch.zeros(50, dtype=torch.int64))
    for before in (None, closest):
        assert equal_bits(ops.csr_closer(csr(x), c, before), reference(ops.csr_closer, csr(x), c, before))


@pytest.mark.parametrize("dtype", DTYPES)
def test_near_ties_in_the_last_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 30, generator=generator, dtype=dtype)
    x[torch.rand(200, 30, generator=generator) < 0.7] = 0
    c = x[:20].clone()
    c = torch.cat([c, torch.nextafter(c, c + 1), torch.nextafter(c, c - 1)])
    assert torch.equal(ops.assign(csr(x), c), reference(ops.assign, x, c))


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_of_long_rows_err_more_than_centroids_differ(dtype):
    """Centroids that hold the same numbers in other orders: as near as one another but for the rounding of D64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.zeros(30, 300, dtype=dtype)
    x[:, :150] = 1000.0 * (1 + torch.arange(30))[:, None]
    numbers = torch.rand(150, generator=generator, dtype=dtype)
    c = torch.zeros(40, 300, dtype=dtype)
    for row in c:
        row[:150] = numbers[torch.randperm(150, generator=generator)]
    assert torch.equal(ops.assign(csr(x), c), reference(ops.assign, x, c))


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_rows_need_a_recheck(dtype):
    """The certificate decides: on rows like those of texts D64 is asked for one in hundreds, not for all."""
    random = np.random.default_rng(0)
    columns = (2000 * random.random((3000, 40)) ** 3).astype(int)
    x = torch.zeros(3000, 2000, dtype=dtype)
    x[torch.arange(3000)[:, None], torch.from_numpy(columns)] = torch.from_numpy(random.random((3000, 40))).to(dtype)
    c = torch.stack([x[i::60].mean(0) for i in range(60)])
    rows = csr(x)
    labels, rechecked = torch.ops.dcfast.csr_assign(*rows.tensors, c)
    assert torch.equal(labels, ops.assign(x, c))
    assert rechecked <= 15
    # Where all are ties it has none of them.
    ties = torch.ops.dcfast.csr_assign(*csr(torch.zeros(50, 30, dtype=dtype)).tensors, torch.eye(30, dtype=dtype)[:9])
    assert ties[1] == 50


@pytest.mark.parametrize("kind", ["normal", "lattice", "empty", "huge", "tiny", "mixed"])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_follow_the_labels(n, d, k, kind, dtype):
    x, _ = make(n, d, k, kind, dtype)
    weight = torch.rand(n, dtype=torch.float64)
    weight[::5] = 0
    labels = [torch.randint(-1, k + 1, (n,)) for _ in range(2)]
    for w in (None, weight):
        smallest, largest = reference(ops.column_range, x, w)
        for index in (torch.int32, torch.int64):
            rows = csr(x, index)
            found = ops.column_range(rows, w)
            assert equal_bits(found[0], smallest)
            assert equal_bits(found[1], largest)
            grid = ops.grid_of(smallest, largest, dtype, n, w is not None)
            weight_grid = None if w is None else ops.sum_grid(w[:, None])
            sparse, dense = ops.RunningSums(k, grid, weight_grid), ops.RunningSums(k, grid, weight_grid)
            for before, after in itertools.pairwise([torch.full((n,), -1), *labels]):
                sparse.move(rows, after, before, w)
                dense.move(x, after, before, w)
                assert torch.equal(sparse.words, dense.words)
                assert torch.equal(sparse.counts, dense.counts)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_potentials_come_closer_as_by_the_definition(n, d, k, kind, dtype):
    x, _ = make(n, d, k, kind, dtype)
    candidates = x[torch.arange(k) * 7 % n]
    weight = torch.rand(n, dtype=torch.float64)
    weight[::3] = 0
    rows = csr(x, torch.int64)
    for w in (None, weight):
        expected = reference(
            ops.point_distances, x.expand(k, n, d), candidates[:, None], torch.zeros(k, n).long(), None
        )
        expected = expected if w is None else w * expected
        assert equal_bits(ops.csr_closer(rows, candidates, None, w).nan_to_num(7), expected.nan_to_num(7))
        if kind == "nonfinite":
            continue
        closest = torch.full((n,), torch.inf, dtype=torch.float64)
        for start in range(0, k, 3):
            some = ops.csr_closer(rows, candidates[start : start + 3], closest, w)
            assert equal_bits(some, torch.minimum(expected[start : start + 3], closest))
            closest = some[-1]


def everything(rows, c, weight):
    labels = ops.assign(rows, c)
    sums = ops.RunningSums(len(c), ops.grid_of(*ops.column_range(rows), rows.values.dtype, rows.shape[0], False))
    sums.move(rows, labels, torch.full_like(labels, -1))
    potential = ops.csr_closer(rows, c[:1], None, weight)[0]
    found = [labels, sums.words, sums.counts, potential, ops.csr_closer(rows, c[1:4], potential, weight)]
    return b"".join(t.numpy().tobytes() for t in [*found, ops.point_distances(rows, c, labels, weight)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_slices_and_instruction_sets_change_no_bit(dtype, monkeypatch):
    x, c = make(400, 90, 33, "normal", dtype)
    rows, weight = csr(x), torch.rand(400, dtype=torch.float64)
    monkeypatch.setattr(_native, "_SHARED_OPERATIONS", 0)
    found = set()
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for isa in _native._C.isas:
                monkeypatch.setenv("DCFAST_ISA", isa)
                found.add(everything(rows, c, weight))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(_native, "_FIRST_SLICE_OPERATIONS", 1.0)
    found.add(everything(rows, c, weight))
    assert len(found) == 1
    with ops.backend("reference"):
        assert everything(rows, c, weight) in found


def test_parts_of_a_matrix_need_no_copy():
    x, c = make(100, 30, 7, "normal", torch.float32)
    whole = csr(x)
    part = whole.part(slice(40, 70))
    assert part.shape == (30, 30)
    assert torch.equal(ops.assign(part, c), ops.assign(x[40:70], c))
    assert equal_bits(ops.column_range(part)[1], ops.column_range(x[40:70])[1])
    assert torch.equal(part.dense(), x[40:70])
    some = torch.tensor([3, 99, 3, 0])
    assert torch.equal(whole[some].dense(), x[some])
    none = whole.part(slice(0, 0))
    assert ops.assign(none, c).shape == (0,)
    assert ops.csr_closer(none, c).shape == (7, 0)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"indptr": torch.zeros(4)}, TypeError, "indptr has dtype torch.float32"),
        ({"indptr": torch.zeros(2, 2).long()}, ValueError, r"indptr has shape \(2, 2\)"),
        ({"indices": torch.zeros(2).short()}, TypeError, "indices has dtype torch.int16"),
        ({"indices": torch.zeros(3).int()}, ValueError, r"indices has shape \(3,\) and values \(2,\)"),
        ({"values": torch.zeros(2).half()}, TypeError, "values has dtype torch.float16"),
        ({"values": torch.zeros(4)[::2]}, ValueError, "values has strides"),
        ({"n_features": 5}, ValueError, "expected 5 columns"),
        ({"values": torch.zeros(2).double()}, ValueError, "centroids has dtype torch.float32 and values torch.float64"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, match):
    rows = ops.Csr(torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0]), torch.tensor([1.0, 2.0]), 4)
    with pytest.raises(error, match=match):
        ops.assign(dataclasses.replace(rows, **change), torch.zeros(2, 4))


def test_arguments_that_go_with_the_rows_are_checked():
    rows = ops.Csr(torch.tensor([0, 1, 1, 2]), torch.tensor([2, 0]), torch.tensor([1.0, 2.0]), 4)
    labels, c = torch.zeros(3, dtype=torch.int64), torch.zeros(2, 4)
    with pytest.raises(ValueError, match="closest has shape"):
        ops.csr_closer(rows, c, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"labels has shape \(2,\): expected \(3,\)"):
        ops.point_distances(rows, c, labels[:2])
    with pytest.raises(TypeError, match="sample_weight has dtype"):
        ops.column_range(rows, torch.zeros(3))
    with pytest.raises(ValueError, match="expected 4 columns"):
        ops.RunningSums(2, ops.Grid(torch.zeros(3, dtype=torch.int64), 2)).move(rows, labels, labels)
    with pytest.raises(ValueError, match="both at least 1"):
        ops.assign(rows, torch.zeros(0, 4))
    with pytest.raises(ValueError, match=r"candidates has shape \(2, 3\)"):
        ops.csr_closer(rows, c[:, :3], None)


def test_opcheck(cpu_backend):
    x, c = make(9, 5, 3, "normal", torch.float64)
    rows, labels, weight = csr(x), torch.arange(9) % 3, torch.rand(9, dtype=torch.float64)
    (indptr, indices, values), d = rows.tensors, 5
    check = torch.library.opcheck
    check(torch.ops.dcfast.csr_assign.default, (indptr, indices, values, c))
    check(torch.ops.dcfast.csr_point_distances.default, (indptr, indices, values, c, labels, weight))
    check(torch.ops.dcfast.csr_column_range.default, (indptr, indices, values, d, weight))
    check(torch.ops.dcfast.csr_closer.default, (indptr, indices, values, c, weight, None))
    grid = ops.sum_grid(x)
    words, counts = torch.zeros(3, grid.n_words, d, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    moves = (words, counts, indptr, indices, values, labels, labels - 1, None, grid.low)
    check(torch.ops.dcfast.csr_accumulate_moves.default, moves)


# ---- the estimators -------------------------------------------------------------------------------------------------


def text_like(n=300, d=600, dtype=np.float32, per_row=12):
    """Rows of a few topics, most columns rare, one row in twenty empty."""
    random = np.random.RandomState(0)
    columns = (d * random.rand(n, per_row) ** 2 * (0.5 + random.randint(3, size=n)[:, None]) / 3).astype(int)
    values = random.rand(n, per_row) * np.exp2(random.randint(-8, 8, (n, 1)))
    indptr = np.arange(0, n * per_row + 1, per_row)
    X = scipy.sparse.csr_array((values.ravel(), columns.ravel(), indptr), (n, d))
    X.sum_duplicates()
    X = scipy.sparse.diags_array((np.arange(n) % 20 != 7).astype(float)) @ X
    return scipy.sparse.csr_array(X.astype(dtype))


X32 = text_like()
WEIGHT = np.random.RandomState(1).rand(300) * (np.arange(300) % 11 > 0)


@pytest.fixture
def stays_sparse(monkeypatch):
    """Rows stay sparse however few they are; fails if none did."""
    monkeypatch.setattr(sparse, "_FEW_ELEMENTS", 0)
    made = []
    create = sparse.Sparse.__init__
    monkeypatch.setattr(sparse.Sparse, "__init__", lambda self, *given: made.append(self) or create(self, *given))
    yield
    assert made


def bits(model):
    found = [np.asarray(model.cluster_centers_).tobytes(), model.labels_.tobytes(), model.inertia_]
    return [*found, getattr(model, "n_iter_", None)]


@pytest.mark.usefixtures("stays_sparse")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["", "weighted"])
@pytest.mark.parametrize(
    "options",
    [
        {"init": "k-means++"},
        {"init": "random", "n_init": 1, "empty": "split"},
        {"init": "k-means++", "spherical": True, "n_init": 2},
        {"init": "random", "n_init": 1, "empty": "keep", "tol": 0, "early_stop_threshold": 1e-3},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_kmeans_has_the_bits_of_the_dense_rows(options, weight, dtype):
    X = X32.astype(dtype)
    given = {"n_clusters": 9, "random_state": 0, "max_iter": 4, **options}
    said = [], []
    expected = KMeans(**given, callback=lambda *moved: said[0].append(moved)).fit(X.toarray(), sample_weight=weight)
    for container in (scipy.sparse.csr_array, scipy.sparse.csr_matrix):
        said[1].clear()
        model = KMeans(**given, callback=lambda *moved: said[1].append(moved))
        assert bits(model.fit(container(X), sample_weight=weight)) == bits(expected)
        assert said[1] == said[0]
    assert np.array_equal(model.predict(X), expected.predict(X.toarray()))
    assert np.array_equal(model.predict(X), model.labels_)
    assert np.array_equal(model.transform(X), expected.transform(X.toarray()))
    assert model.score(X, sample_weight=WEIGHT) == expected.score(X.toarray(), sample_weight=WEIGHT)
    other = text_like(200, dtype=np.float64 if dtype == np.float32 else np.float32)  # one side is widened
    assert np.array_equal(model.predict(other), expected.predict(other.toarray()))


@pytest.mark.usefixtures("stays_sparse")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_empty_clusters_take_the_farthest_rows():
    X = X32.astype(np.float64)
    start = np.concatenate([X[:3].toarray(), np.full((5, X.shape[1]), 1e9)])
    given = {"n_clusters": 8, "init": start, "n_init": 1, "max_iter": 3, "tol": 0}
    expected = KMeans(**given).fit(X.toarray(), sample_weight=WEIGHT)
    assert bits(KMeans(**given).fit(X, sample_weight=WEIGHT)) == bits(expected)


@pytest.mark.usefixtures("stays_sparse")
@pytest.mark.parametrize("kind", [BisectingKMeans, MiniBatchKMeans])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_other_estimators_have_the_bits_of_the_dense_rows(kind, dtype):
    X = X32.astype(dtype)
    given = {"n_clusters": 7, "random_state": 0} | (
        {"batch_size": 50, "max_iter": 10} if kind is MiniBatchKMeans else {}
    )
    for init in ("k-means++", "random", lambda rows, k, random_state: rows[:k].toarray()):
        # A callable sees the rows as they are given.
        dense = init if isinstance(init, str) else lambda rows, k, random_state: rows[:k]
        expected = kind(init=dense, **given).fit(X.toarray(), sample_weight=WEIGHT)
        model = kind(init=init, **given).fit(X, sample_weight=WEIGHT)
        assert bits(model) == bits(expected)
        assert np.array_equal(model.predict(X), expected.predict(X.toarray()))
    if kind is MiniBatchKMeans:
        for part in (slice(0, 100), slice(100, 300)):
            model.partial_fit(X[part])
            expected.partial_fit(X[part].toarray())
            assert bits(model) == bits(expected)


@pytest.mark.usefixtures("stays_sparse")
def test_rows_out_of_order_are_put_in_order_and_left_as_they_are(monkeypatch):
    monkeypatch.setattr(sparse, "_LARGEST_DENSITY", 1.0)
    random = np.random.RandomState(0)
    n, d, nnz = 300, 70, 5000
    coo = scipy.sparse.coo_array(
        (random.randn(nnz), (random.randint(n, size=nnz), random.randint(d, size=nnz))), (n, d)
    )
    order = np.argsort(coo.row, kind="stable")
    indptr = np.searchsorted(coo.row[order], np.arange(n + 1))
    for dtype in (np.float32, np.int64):
        data, indices = (100 * coo.data[order]).astype(dtype), coo.col[order].astype(np.int32)
        X = scipy.sparse.csr_array((data, indices, indptr.astype(np.int32)), (n, d))
        for array in (X.data, X.indices, X.indptr):
            array.flags.writeable = False
        before = [array.copy() for array in (X.data, X.indices, X.indptr)]
        expected = KMeans(5, random_state=0, init="random", n_init=2).fit(X.toarray())
        assert bits(KMeans(5, random_state=0, init="random", n_init=2).fit(X)) == bits(expected)
        for array, old in zip((X.data, X.indices, X.indptr), before, strict=True):
            assert np.array_equal(array, old)


@pytest.mark.usefixtures("stays_sparse")
def test_what_is_not_finite_and_what_lies_outside_is_named():
    X = X32.copy()
    X.data[[17, 2000]] = np.nan, np.inf
    dense = X.toarray()
    with pytest.raises(ValueError, match="non-finite") as expected:
        KMeans(2).fit(dense)
    with pytest.raises(ValueError, match="non-finite") as found:
        KMeans(2).fit(X)
    assert str(found.value) == str(expected.value)
    wrong = X32.copy()
    wrong.indices[5] = 600
    with pytest.raises(ValueError, match="600"):
        KMeans(2).fit(wrong)
    tiny = X32.astype(np.float64)
    tiny.data[:] = 1e-200
    with pytest.raises(ValueError, match="norm beyond"):
        KMeans(2, spherical=True).fit(tiny)


def test_which_matrices_stay_sparse():
    def stays(shape, density, memory):
        return sparse.pays(
            scipy.sparse.random_array(shape, density=density, format="csr", rng=0), torch.float32, memory
        )

    assert not stays((700, 700), 0.01, 1)  # small
    assert stays((1000, 1000), 0.01, 2**30)
    assert stays((1000, 1000), 0.1, 2**20)
    assert not stays((1000, 1000), 0.1, 2**30)  # fits, and is not that sparse
    assert not stays((1000, 1000), 0.3, 2**20)


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_nothing_is_made_dense_as_a_whole():
    """60,000 x 20,000 would be 4.8 GB of float32."""
    script = """
import resource, numpy as np, scipy.sparse
from dcfast import KMeans
random = np.random.default_rng(0)
n, d, m = 60_000, 20_000, 4
data, indices = random.random(n * m, np.float32), random.integers(d, size=n * m)
X = scipy.sparse.csr_array((data, indices, np.arange(0, n * m + 1, m)), (n, d))
KMeans(2, random_state=0, max_iter=1).fit(X[:2000])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = KMeans(3, random_state=0, max_iter=1).fit(X)
model.predict(X)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100 * 1024  # KiB
