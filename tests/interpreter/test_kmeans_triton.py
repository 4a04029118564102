"""The Triton kernels of k-means: equal to the definitions, element by element, on shapes and values that hurt."""

import importlib
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.base import clone
from support.points import KINDS, generator, make

from dcfast import ops

ASSIGN = importlib.import_module("dcfast.ops.assign.triton")
ACCUMULATE = importlib.import_module("dcfast.ops.accumulate.triton")
INERTIA = importlib.import_module("dcfast.ops.inertia.triton")

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# One of everything; not a multiple of a tile; two tiles of rows and of centroids; d = 1; k = n, two blocks of d.
SHAPES = [(1, 1, 1), (67, 7, 33), (150, 3, 140), (13, 1, 40), (20, 70, 20)]


def reference(op, *args):
    with ops.backend("reference"):
        return getattr(ops, op)(*args)


class Skipped:
    """In place of a kernel: launches nothing."""

    def __getitem__(self, grid):
        return lambda *args, **kwargs: None


class TestAssign:
    @pytest.fixture(autouse=True)
    def _rows_share_programs(self, monkeypatch):
        # From 9 open rows on, not 4,096: the interpreter pays per program, and both forms are run.
        monkeypatch.setattr(ASSIGN, "_MANY_ROWS", 9)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(("n", "d", "k"), SHAPES)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_labels_are_equal(self, n, d, k, kind, dtype):
        x, c = make(n, d, k, kind, dtype)
        labels = ops.assign(x, c)
        assert labels.dtype == torch.int64
        assert torch.equal(labels, reference("assign", x, c))

    @pytest.mark.parametrize("kind", ["normal", "huge", "mixed"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_narrow_data_is_widened_exactly(self, kind, dtype):
        x, c = make(67, 7, 33, kind, dtype)
        assert torch.equal(ops.assign(x, c), reference("assign", x, c))

    @pytest.mark.parametrize("scale", [1e-290, 1e-160, 1e150, 1e290, 1e307])
    def test_float64_beyond_the_range_of_squares_follows_ieee(self, scale):
        x, c = (t * scale for t in make(40, 5, 9, "normal", torch.float64))
        assert torch.equal(ops.assign(x, c), reference("assign", x, c))

    def test_centroids_at_both_ends_of_the_range(self):
        c = torch.tensor([[1.7e308, -1.7e308], [-1.7e308, 1.7e308], [0.0, 0.0]], dtype=torch.float64)
        x = torch.cat([c, c * 0.4, c + 1.0])
        assert torch.equal(ops.assign(x, c), reference("assign", x, c))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_near_ties_in_the_last_bit(self, dtype):
        x = torch.rand(30, 9, generator=generator(0), dtype=dtype)
        one, zero = torch.ones((), dtype=dtype), torch.zeros((), dtype=dtype)
        c = torch.cat([torch.nextafter(x[:10], one), x[:10], torch.nextafter(x[:10], zero)])
        # Rows half-way between two neighbours: only the last bits of D64, or the index, decide.
        x = torch.cat([x, (c[:10] + c[10:20]) / 2, (c[3:10] + c[2:9]) / 2])
        assert torch.equal(ops.assign(x, c), reference("assign", x, c))

    @pytest.mark.parametrize("d", [1024, 1100])
    def test_many_elements(self, d):
        # Above 1,024 the sums run in blocks.
        x, c = make(9, d, 5, "normal", torch.float32)
        x[:4] = (c[:4] + c[1:]) / 2
        assert torch.equal(ops.assign(x, c), reference("assign", x, c))

    @pytest.mark.parametrize("d", [3, 64, 1100])
    def test_the_pass_proves_most_rows_and_only_true_labels(self, monkeypatch, d):
        x, c = make(200, d, 20, "normal", torch.float32)
        x[0] = (c[1] + c[2]) / 2
        x[1] = c[:3].mean(0)
        expected = reference("assign", x, c)
        monkeypatch.setattr(ASSIGN, "_recheck_pairs", Skipped())
        monkeypatch.setattr(ASSIGN, "_recheck_all", Skipped())
        labels = ops.assign(x, c)  # rows left open keep the poison
        proved = labels != torch.iinfo(torch.int64).min
        assert torch.equal(labels[proved], expected[proved])
        assert proved.double().mean() > 0.93

    def test_each_recheck_is_needed(self, monkeypatch):
        c = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
        x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # two candidates, four candidates
        assert ops.assign(x, c).tolist() == [0, 0]
        with monkeypatch.context() as patch:
            patch.setattr(ASSIGN, "_recheck_pairs", Skipped())
            assert ops.assign(x, c).tolist() == [torch.iinfo(torch.int64).min, 0]
        monkeypatch.setattr(ASSIGN, "_recheck_all", Skipped())
        assert ops.assign(x, c).tolist() == [0, torch.iinfo(torch.int64).min]

    def test_both_forms_of_the_full_recheck(self, monkeypatch):
        x, c = make(70, 6, 45, "lattice", torch.float32)
        expected = reference("assign", x, c)
        for many in (1, 2**30):
            monkeypatch.setattr(ASSIGN, "_MANY_ROWS", many)
            monkeypatch.setattr(ASSIGN, "_recheck_pairs", Skipped())
            labels = ops.assign(x, c)
            full = labels != torch.iinfo(torch.int64).min
            assert full.sum() > 10
            assert torch.equal(labels[full], expected[full])

    def test_slices_do_not_change_a_label(self, monkeypatch):
        x, c = make(150, 5, 12, "lattice", torch.float32)
        xs, cs = torch.stack([x, x + 0.25, x * 2]), torch.stack([c, c, c + 1.0])
        expected = reference("assign", xs, cs)
        for elements in (16 * 128, 16 * 256 * 2, 2**27):  # rows of one problem, whole problems, everything
            monkeypatch.setattr(ASSIGN, "_SLICE_ELEMENTS", elements)
            assert torch.equal(ops.assign(xs, cs), expected)

    def test_strides(self):
        wide = torch.randn(40, 12, generator=generator(1))
        c = torch.randn(9, 12, generator=generator(2))
        expected = reference("assign", wide[:, ::2].contiguous(), c[:, ::2].contiguous())
        assert torch.equal(ops.assign(wide[:, ::2], c[:, ::2]), expected)
        assert torch.equal(ops.assign(wide.T.contiguous().T[:, ::2], c.T.contiguous().T[:, ::2]), expected)
        row = wide[:1, :6].expand(30, 6)
        assert torch.equal(ops.assign(row, c[:, :6]), reference("assign", row.contiguous(), c[:, :6]))

    def test_offsets_beyond_32_bits(self):
        # Pages that nobody touches cost nothing.
        far = torch.from_numpy(np.zeros(2**32 + 64, np.float16)).as_strided((3, 4), (2**31 + 16, 1))
        far[1], far[2] = 1.0, 2.0
        assert ops.assign(far, torch.tensor([[2.0] * 4, [0.9] * 4, [0.0] * 4], dtype=torch.float16)).tolist() == [
            2,
            1,
            0,
        ]

    def test_empty(self):
        assert ops.assign(torch.zeros(0, 3), torch.zeros(2, 3)).shape == (0,)
        assert ops.assign(torch.zeros(0, 4, 3), torch.zeros(0, 2, 3)).shape == (0, 4)
        assert ops.assign(torch.ones(4, 3), torch.full((2, 3), torch.nan)).tolist() == [-1] * 4


def sums_input(n, d, k, dtype, *, weighted):
    g = generator(n, d, k)
    x = torch.randn(n, d, generator=g)
    if dtype in (torch.float32, torch.float64):
        x[0] *= 1e10
        x[-1] *= 1e-12
    weight = torch.rand(n, generator=g, dtype=torch.float64) if weighted else None
    if weighted:
        weight[::7] = 0
    return x.to(dtype), torch.randint(-1, k + 1, (n,), generator=g), weight


def assert_same_sums(x, labels, k, weight):
    previous = torch.randn(*x.shape[:-2], k, x.shape[-1], generator=generator(k)).to(x.dtype)
    results = []
    for backend in ("triton", "reference"):
        with ops.backend(backend):
            sums = ops.accumulate(x, labels, k, weight)
            results.append((sums.words, sums.counts, sums.total, ops.means(sums, previous)))
    for name, a, b in zip(("words", "counts", "total", "means"), *results, strict=True):
        assert torch.equal(a, b), name


class TestAccumulate:
    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (70, 3, 4), (40, 70, 40), (65, 17, 100)])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_sums_and_means(self, n, d, k, dtype, weighted):
        x, labels, weight = sums_input(n, d, k, dtype, weighted=weighted)
        assert_same_sums(x, labels, k, weight)

    @pytest.mark.parametrize("scale", [1e-20, 1e20])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_scales(self, dtype, scale):
        x, labels, weight = sums_input(50, 5, 4, dtype, weighted=True)
        assert_same_sums(x * scale, labels, 4, weight)

    def test_words_that_span_the_range_of_float64(self):
        x = torch.randn(30, 3, generator=generator(9), dtype=torch.float64)
        x *= torch.exp2(torch.randint(-470, 470, (30, 3), generator=generator(10)).double())
        assert ops.sum_grid(x).n_words > 20
        assert_same_sums(x, torch.arange(30) % 2, 2, None)

    def test_means_of_halves_at_the_boundary_of_a_double(self):
        # 2^53 + 1 lies half-way between two doubles: the tie goes to even, and any bit below breaks it.
        for tail, expected in ((0.0, 2.0**53), (2.0**-60, 2.0**53 + 2), (2.0**-300, 2.0**53 + 2)):
            x = torch.tensor([[2.0**53], [1.0], [tail]], dtype=torch.float64)
            for sign in (1, -1):
                sums = ops.accumulate(sign * x, torch.zeros(3, dtype=torch.int64), 1)
                one = sums._replace(total=torch.ones(1, dtype=torch.float64))
                assert ops.means(one, torch.zeros(1, 1, dtype=torch.float64)).item() == sign * expected

    def test_means_round_as_fractions_do(self):
        # Every length of the leading word, with and without something below, from words that were not carried.
        words = torch.zeros(123, 4, 2, dtype=torch.int64)
        g = generator(11)
        for row in range(123):
            bits = row % 61
            words[row] = torch.randint(-(2**40), 2**40, (4, 2), generator=g)
            words[row, 3] = torch.randint(2**bits, 2 ** (bits + 1), (2,), generator=g) * (1 if row < 61 else -1)
            words[row, : row % 4] = 0
        words[122] = 0
        low = torch.tensor([-100, 7])
        total = torch.arange(1.0, 124.0, dtype=torch.float64)
        expected = [
            [
                float(sum(Fraction(int(words[r, w, i])) * 2 ** (40 * w) for w in range(4)) * Fraction(2) ** int(low[i]))
                / float(total[r])
                for i in range(2)
            ]
            for r in range(123)
        ]
        result = torch.ops.dcfast.means(words, low, total, torch.zeros(123, 2, dtype=torch.float64))
        assert result.tolist() == expected

    def test_order_slices_and_merging_do_not_matter(self, monkeypatch):
        x, labels, _ = sums_input(90, 4, 5, torch.float32, weighted=False)
        grid = ops.sum_grid(x)
        whole = ops.accumulate(x, labels, 5, grid=grid)
        order = torch.randperm(90, generator=generator(3))
        assert torch.equal(ops.accumulate(x[order], labels[order], 5, grid=grid).words, whole.words)
        monkeypatch.setattr(ACCUMULATE, "_SLICE_ROWS", 32)
        assert torch.equal(ops.accumulate(x, labels, 5, grid=grid).words, whole.words)
        parts = [ops.accumulate(x[rows], labels[rows], 5, grid=grid) for rows in torch.arange(90).split(40)]
        merged = whole._replace(words=sum(part.words for part in parts))
        assert torch.equal(ops.means(merged, torch.zeros(5, 4)), ops.means(whole, torch.zeros(5, 4)))

    def test_batched_and_strided(self):
        x, labels, weight = sums_input(120, 6, 4, torch.float32, weighted=True)
        assert_same_sums(x.view(3, 40, 6), labels.view(3, 40), 4, weight.view(3, 40))
        assert_same_sums(x.T.contiguous().T[::2, ::3], labels[::2], 4, weight[::2])

    @pytest.mark.parametrize("weighted", [False, True])
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_moves_and_ranges(self, dtype, weighted):
        x, labels, weight = sums_input(90, 20, 5, dtype, weighted=weighted)
        x[3, 0], x[7, 1], x[8] = torch.nan, -torch.inf, 0
        labels[torch.tensor([3, 7])] = -1
        previous = torch.where(torch.arange(90) % 3 == 0, (labels + 1).clamp(max=4), labels)
        previous[torch.tensor([3, 7])] = -1
        results = []
        for backend in ("reference", "triton"):
            with ops.backend(backend):
                smallest, largest = ops.column_range(x, weight)
                weight_grid = ops.sum_grid(weight[:, None]) if weighted else None
                running = ops.RunningSums(5, ops.sum_grid(x, weight), weight_grid)
                running.move(x, previous, torch.full_like(labels, -1), weight)
                running.move(x, labels, previous, weight)
                sums = running.sums()
                results.append((smallest, largest, sums.words, sums.counts, sums.total))
        for name, a, b in zip(("smallest", "largest", "words", "counts", "total"), *results, strict=True):
            assert torch.equal(a, b), name

    def test_non_finite_rows_without_a_label_and_no_rows(self):
        x = torch.tensor([[1.0], [torch.nan], [torch.inf]])
        assert_same_sums(x, torch.tensor([0, -1, 5]), 2, None)
        sums = ops.accumulate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2)
        assert not sums.words.any()
        assert not sums.counts.any()


def same(a, b):
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(nan=0.0), b.nan_to_num(nan=0.0))


class TestInertia:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (7, 3, 2), (140, 20, 9)])
    def test_distances_and_their_sum(self, n, d, k, dtype):
        g = generator(n, d, k)
        x, c = torch.randn(n, d, generator=g).to(dtype), torch.randn(k, d, generator=g).to(dtype)
        labels = torch.randint(-1, k + 1, (n,), generator=g)
        weight = torch.rand(n, generator=g, dtype=torch.float64)
        for w in (None, weight):
            assert torch.equal(ops.point_distances(x, c, labels, w), reference("point_distances", x, c, labels, w))
            assert torch.equal(ops.inertia(x, c, labels, w), reference("inertia", x, c, labels, w))

    def test_batched_strided_and_empty(self):
        g = generator(4)
        x, c = torch.randn(3, 8, 20, generator=g).mT, torch.randn(3, 8, 2, generator=g).mT
        labels = torch.randint(0, 2, (3, 20), generator=g)
        assert torch.equal(ops.inertia(x, c, labels), reference("inertia", x, c, labels))
        assert ops.inertia(x[0, :0], c[0], labels[0, :0]).item() == 0

    @pytest.mark.filterwarnings("ignore:overflow encountered")
    @pytest.mark.parametrize(
        "values",
        [
            [1e308, 1e308, -1e308],
            [1e308, 1e308],
            [-1e308, -1e308],
            [1.7976931348623157e308, 9.979201547673599e291],  # half a unit more rounds to infinity
            [1.7976931348623157e308, 9.979201547673598e291],
            [5e-324, 5e-324, -5e-324],
            [1e-310, -2e-310, 3e-308, 5e-324],
            [2.0**53, 1.0, 2.0**-1074],
            [2.0**53, 1.0],
            [math.inf, 1.0],
            [-math.inf, 1.0],
            [math.inf, -math.inf],
            [math.nan, 1.0],
            [-0.0],
            [],
        ],
    )
    def test_exact_sum_at_the_edges(self, values):
        values = torch.tensor(values, dtype=torch.float64)
        assert same(ops.exact_sum(values), reference("exact_sum", values))

    @pytest.mark.filterwarnings("ignore:overflow encountered")
    def test_exact_sum_of_every_exponent(self, monkeypatch):
        g = generator(5)
        values = torch.randn(4, 200, generator=g, dtype=torch.float64)
        values[1:] *= torch.exp2(torch.randint(-1060, 1010, (3, 200), generator=g).double())
        values[2:, ::2] = -values[2:, 1::2] * (1.0 + torch.rand(2, 1, generator=g, dtype=torch.float64) * 2.0**-40)
        expected = reference("exact_sum", values)
        assert torch.equal(ops.exact_sum(values), expected)
        monkeypatch.setattr(INERTIA, "_SLICE", 100)  # carries between slices
        assert torch.equal(ops.exact_sum(values.view(2, 2, 200)), expected.view(2, 2))


class TestSplitEmpty:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("seed", [0, -5, 2**62 + 12345])
    def test_equals_the_reference(self, dtype, seed):
        g = generator(seed)
        for k in (1, 2, 20):
            counts = torch.randint(0, 5, (k,), generator=g)
            counts[::2] = 0
            centroids = torch.randn(k, 5, generator=g).to(dtype)
            iteration = int(torch.randint(0, 2**40, (), generator=g))
            for a, b in zip(
                ops.split_empty(centroids, counts, seed, iteration),
                reference("split_empty", centroids, counts, seed, iteration),
                strict=True,
            ):
                assert torch.equal(a, b)

    def test_more_clusters_than_a_block(self, monkeypatch):
        split = importlib.import_module("dcfast.ops.split_empty.triton")
        monkeypatch.setattr(split, "_blocks", lambda k, d: (32, 32))
        g = generator(6)
        counts = torch.randint(0, 2**33, (150,), generator=g)
        counts[torch.randperm(150, generator=g)[:20]] = 0
        counts[40:75] = 1  # a block with nothing to share
        centroids = torch.randn(150, 40, generator=g)
        result, expected = ops.split_empty(centroids, counts, 3, 1), reference("split_empty", centroids, counts, 3, 1)
        assert torch.equal(result[0], expected[0])
        assert torch.equal(result[1], expected[1])

    def test_batched_keys_strides_and_inputs_kept(self):
        centroids = torch.randn(2, 3, 6, generator=generator(7)).mT
        counts = torch.tensor([[9, 0, 0, 4, 0, 1], [0, 0, 12, 1, 1, 1]])
        seeds, before = torch.tensor([5, 6]), centroids.clone()
        both = ops.split_empty(centroids, counts, seeds, torch.tensor(2))
        assert torch.equal(centroids, before)
        for b in range(2):
            one = reference("split_empty", centroids[b], counts[b], int(seeds[b]), 2)
            assert torch.equal(both[0][b], one[0])
            assert torch.equal(both[1][b], one[1])

    def test_nothing_to_share_and_nothing_at_all(self):
        assert ops.split_empty(torch.ones(3, 2), torch.tensor([1, 0, 1]), 0, 0)[1].tolist() == [1, 0, 1]
        assert ops.split_empty(torch.zeros(0, 3, 2), torch.zeros(0, 3, dtype=torch.int64), 0, 0)[0].shape == (0, 3, 2)


@pytest.mark.parametrize("empty", ["farthest", "split"])
def test_kmeans_has_the_bits_of_the_reference(empty):
    import dcfast

    x = torch.randn(90, 4, generator=generator(8)).numpy()
    init = x[[0, 0, 1, 2, 3, 3, 4]]  # equal centroids: two clusters start empty
    fits = []
    for backend in ("triton", "reference"):
        with ops.backend(backend):
            fits.append(dcfast.KMeans(7, init=init, n_init=1, max_iter=4, empty=empty, random_state=0).fit(x))
    a, b = fits
    assert (a.labels_ == b.labels_).all()
    assert (a.cluster_centers_ == b.cluster_centers_).all()
    assert a.inertia_ == b.inertia_


def test_minibatch_and_bisecting_kmeans_have_the_bits_of_the_reference():
    import dcfast

    x = torch.randn(90, 4, generator=generator(9)).numpy()
    for model in (
        dcfast.MiniBatchKMeans(4, batch_size=16, max_iter=1, random_state=0),
        dcfast.BisectingKMeans(3, max_iter=3, random_state=0),
    ):
        fits = []
        for backend in ("triton", "reference"):
            with ops.backend(backend):
                fits.append(clone(model).fit(x))
        a, b = fits
        assert (a.labels_ == b.labels_).all()
        assert (a.cluster_centers_ == b.cluster_centers_).all()
        assert a.inertia_ == b.inertia_
