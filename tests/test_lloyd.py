"""lloyd: whole runs in one call give, bit for bit, what the loop over the other ops gives for each problem alone."""

from functools import partial

import pytest
import torch
from support.recorded import Crossings, Exhausted, Recorded
from support.small_runs import changed, equal, weights

from dcfast import ops
from dcfast.cluster import lloyd as cluster_lloyd
from dcfast.cluster import replay
from dcfast.cluster.lloyd import lloyd as one_run
from dcfast.cluster.points import InMemory
from dcfast.ops import _native
from dcfast.ops.lloyd import native as lloyd_native

EMPTY = ["farthest", "split", "keep"]
ENDED = [None, "labels", "tol"]


def make(sizes, k, d, kind="normal", dtype=torch.float32):
    """Rows of problems of these sizes, their offsets, and starts of which some are useless."""
    generator = torch.Generator().manual_seed(sum(sizes) * d + k)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    x = torch.randn(int(offsets[-1]), d, generator=generator)
    x = changed(x, kind, generator)
    starts = torch.stack([x[a + torch.arange(k) * n // k] for a, n in zip(offsets.tolist(), sizes, strict=False)])
    if kind != "normal" and k > 4:
        starts[:, 3] = starts[:, 1]
        starts[:, 4] = 1e6
    return x.to(dtype), offsets, starts.to(dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("kind", ["normal", "lattice", "mixed", "far", "equal"])
@pytest.mark.parametrize(
    ("sizes", "k", "d"), [([90, 33, 257, 6], 6, 20), ([7, 60], 7, 2), ([40, 5, 1], 1, 1), ([300], 40, 17)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_equals_the_definition(sizes, k, d, kind, empty, dtype, weighted):
    x, offsets, starts = make(sizes, k, d, kind, dtype)
    weight = weights(len(x)) if weighted else None
    runs = []
    for backend in ("native", "reference"):
        with ops.backend(backend):
            seed, tol = torch.arange(len(sizes)) + 3, 1e-6 * x.double().square().mean()
            runs.append(
                ops.lloyd(x, offsets, starts, sample_weight=weight, empty=empty, seed=seed, tol=tol, max_iter=25)
            )
    assert equal(*runs)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relative_tolerance(dtype, weighted):
    """A run ends after its first step if that is at most tol mean variances: to the last bit."""
    x, offsets, starts = make([90, 33, 257], 6, 20, "mixed", dtype)
    x[40] = torch.inf  # belongs to no cluster, and counts as a row that does not vary
    rows = x.double().split([90, 33, 257])
    weight = weights(len(x)) if weighted else None
    run = partial(ops.lloyd, x, offsets, starts, sample_weight=weight, max_iter=1)
    step = (run().centroids.double() - starts.double()).square().sum((1, 2))
    finite = [part[part.isfinite().all(1)] for part in rows]
    variance = torch.stack([part.var(0, correction=0).mean() * len(part) for part in finite]) / torch.tensor(
        [90, 33, 257]
    )
    for factor, ended in ((1 - 1e-6, 0), (1 + 1e-6, 2)):
        tol = factor * step / variance
        for backend in ("native", "reference"):
            with ops.backend(backend):
                assert run(tol=tol, relative_tol=True).ended.tolist() == 3 * [ended]
    near = step / variance
    for _ in range(20):
        near = near.nextafter(torch.tensor(0.0, dtype=torch.float64))
        ended = []
        for backend in ("native", "reference"):
            with ops.backend(backend):
                ended.append(run(tol=near, relative_tol=True).ended)
        assert torch.equal(*ended)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_grid_is_that_of_sum_grid(dtype, weighted):
    generator = torch.Generator().manual_seed(1)
    for n, d, spread in [(1, 1, 0), (2, 3, 5), (40, 17, 30), (1025, 2, 60), (300, 300, 120)]:
        exponents = torch.randint(-spread // 2, spread // 2 + 1, (n, d), generator=generator)
        x = torch.ldexp(torch.randn(n, d, generator=generator, dtype=torch.float64), exponents).to(dtype)
        x[:, ::3] = 0
        x[n // 2] = torch.nan
        weight = weights(n) if weighted else None
        low, scale, n_words = lloyd_native._grid(x, weight)
        expected = ops.sum_grid(x, weight)
        assert torch.equal(low, expected.low)
        assert n_words == expected.n_words
        assert torch.equal(scale, torch.exp2(-low.double()))


def note(moved, n_iter, n_moved):
    moved.append(n_moved)


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("kind", ["normal", "lattice"])
@pytest.mark.parametrize("weighted", [False, True])
def test_each_problem_is_a_run_of_its_own(kind, empty, weighted):
    sizes, k = [150, 20, 300], 12
    x, offsets, starts = make(sizes, k, 9, kind)
    weight, tol = weights(len(x)) if weighted else None, torch.tensor([0.0, 1e-3, 1e-2]).double()
    runs = ops.lloyd(x, offsets, starts, sample_weight=weight, empty=empty, seed=torch.arange(3), tol=tol, max_iter=9)
    for b in range(3):
        rows = slice(int(offsets[b]), int(offsets[b + 1]))
        points = InMemory(x[rows])
        points.sample_weight = None if weight is None else weight[rows]
        # A run that is watched is that of the loop over ops.
        moved = []
        watch = partial(note, moved)
        alone = one_run(points, starts[b], max_iter=9, tol=float(tol[b]), empty=empty, seed=b, callback=watch)
        assert len(moved) == alone.n_iter
        assert torch.equal(runs.centroids[b], alone.centroids)
        assert torch.equal(runs.labels[rows], alone.labels)
        assert float(runs.inertia[b]) == float(alone.inertia)
        assert int(runs.n_iter[b]) == alone.n_iter
        assert ENDED[int(runs.ended[b])] == alone.converged


def test_centroids_that_coincide_for_a_while():
    """Clusters take copies of one row, so that fewer centroids are distinct, and then more again."""
    generator = torch.Generator().manual_seed(0)
    sizes, k = [6] * 300, 5
    x = torch.randint(1, 11, (sum(sizes), 1), generator=generator).float()
    starts = 10 * torch.randint(1, 11, (len(sizes), k, 1), generator=generator).float()
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    runs = []
    for backend in ("native", "reference"):
        with ops.backend(backend):
            runs.append(ops.lloyd(x, offsets, starts))
    assert equal(*runs)
    x, starts = torch.tensor([[3.0], [9], [7], [10], [1], [1]]), torch.tensor([[[70.0], [10], [30], [100], [90]]])
    found = ops.lloyd(x, torch.tensor([0, 6]), starts)
    assert found.labels.tolist() == [3, 2, 4, 1, 0, 0]
    assert found.inertia.item() == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("operations", [1.0, 1e5, 1e9])
@pytest.mark.parametrize(("sizes", "d"), [([100, 20, 260, 31, 50], 18), ([1500], 18), ([600], 70)])
def test_same_bits_however_the_runs_are_cut(monkeypatch, isa, threads, empty, operations, sizes, d):
    x, offsets, starts = make(sizes, 9, d, "lattice")
    whole = ops.lloyd(x, offsets, starts, empty=empty, tol=1e-4)
    monkeypatch.setenv("DCFAST_ISA", isa)
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
    monkeypatch.setattr(lloyd_native, "_CALL_OPERATIONS", operations)
    monkeypatch.setattr(_native, "_FIRST_SLICE_OPERATIONS", operations)
    assert equal(whole, ops.lloyd(x, offsets, starts, empty=empty, tol=1e-4))


def test_no_problem_changes_another(cpu_backend):
    x, offsets, starts = make([60, 80, 40], 5, 6)
    first = ops.lloyd(x, offsets, starts)
    x[60:140] *= 1e20
    second = ops.lloyd(x, offsets, starts)
    for b, rows in ((0, slice(0, 60)), (2, slice(140, 180))):
        assert torch.equal(first.centroids[b], second.centroids[b])
        assert torch.equal(first.labels[rows], second.labels[rows])
        assert first.inertia[b] == second.inertia[b]


def test_rows_and_starts_that_are_not_finite(cpu_backend):
    x, offsets, starts = make([50, 50], 4, 6)
    x[3, 2], x[60, 0], starts[1, 2, 0] = torch.nan, torch.inf, torch.nan
    for empty in EMPTY:
        with ops.backend("reference"):
            expected = ops.lloyd(x, offsets, starts, empty=empty, max_iter=3)
        runs = ops.lloyd(x, offsets, starts, empty=empty, max_iter=3)
        assert torch.equal(runs.centroids.nan_to_num(7.5), expected.centroids.nan_to_num(7.5))
        assert equal(runs[1:], expected[1:])
        assert int(runs.labels[3]) == int(runs.labels[60]) == -1


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e140, 1e-140])
def test_magnitudes(scale):
    dtype = torch.float32 if abs(torch.tensor(scale).log10()) < 40 else torch.float64
    x, offsets, starts = make([70, 90], 5, 20, "lattice", torch.float64)
    x, starts = (x * scale).to(dtype), (starts.clamp(-5, 5) * scale).to(dtype)
    with ops.backend("reference"):
        expected = ops.lloyd(x, offsets, starts, max_iter=8)
    assert equal(ops.lloyd(x, offsets, starts, max_iter=8), expected)


def test_no_iterations_are_labels_and_inertia(cpu_backend):
    x, offsets, starts = make([30, 41], 3, 4)
    runs = ops.lloyd(x, offsets, starts, max_iter=0)
    assert torch.equal(runs.centroids, starts)
    assert runs.n_iter.tolist() == runs.ended.tolist() == [0, 0]
    for b, rows in enumerate((slice(0, 30), slice(30, 71))):
        labels = ops.assign(x[rows], starts[b])
        assert torch.equal(runs.labels[rows], labels)
        assert runs.inertia[b] == ops.inertia(x[rows], starts[b], labels)


def test_strides_and_inputs_left_alone(cpu_backend):
    x, offsets, starts = make([40, 25], 4, 12)
    expected = ops.lloyd(x, offsets, starts, sample_weight=torch.ones(65).double())
    wide = torch.zeros(65, 24)
    wide[:, ::2] = x
    padded = torch.zeros(65, 20)
    padded[:, :12] = x
    before = starts.clone()
    weight = torch.ones(65, 2).double()[:, 0]
    for view in (wide[:, ::2], padded[:, :12], x.T.contiguous().T):
        turned = starts.transpose(0, 1).contiguous().transpose(0, 1)
        assert equal(ops.lloyd(view, offsets, turned, sample_weight=weight), expected)
    assert torch.equal(starts, before)


def test_no_problems(cpu_backend):
    runs = ops.lloyd(torch.zeros(0, 3), torch.tensor([0]), torch.zeros(0, 2, 3))
    assert [tuple(field.shape) for field in runs] == [(0, 2, 3), (0,), (0,), (0,), (0,)]


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": torch.zeros(20, 3, dtype=torch.float16)}, TypeError, "x has dtype torch.float16"),
        ({"x": torch.zeros(2, 10, 3)}, ValueError, "x has shape"),
        ({"offsets": torch.tensor([0, 10, 21])}, ValueError, "offsets must rise from 0 to the 20 rows"),
        ({"offsets": torch.tensor([0, 20, 20])}, ValueError, "1 of its steps"),
        ({"offsets": torch.tensor([0.0, 10.0, 20.0])}, ValueError, "offsets is torch.float32"),
        ({"centroids": torch.zeros(3, 4, 3)}, ValueError, "centroids has shape"),
        ({"centroids": torch.zeros(2, 4, 2)}, ValueError, "centroids has shape"),
        ({"centroids": torch.zeros(2, 0, 3)}, ValueError, "centroids has shape"),
        ({"sample_weight": torch.ones(19).double()}, ValueError, "sample_weight"),
        ({"max_iter": -1}, ValueError, "max_iter=-1"),
        ({"empty": "drop"}, ValueError, "empty='drop'"),
        ({"tol": torch.zeros(3)}, ValueError, r"tol has shape \(3,\)"),
        ({"seed": torch.zeros(3)}, ValueError, r"seed has shape \(3,\)"),
        (
            {"x": torch.full((20, 3), 1e200, dtype=torch.float64), "centroids": torch.zeros(2, 4, 3).double()},
            ValueError,
            "2\\^",
        ),
    ],
)
def test_errors_name_the_argument(change, error, match):
    arguments = {"x": torch.zeros(20, 3), "offsets": torch.tensor([0, 10, 20]), "centroids": torch.zeros(2, 4, 3)}
    with pytest.raises(error, match=match):
        ops.lloyd(**(arguments | change))


def test_opcheck(cpu_backend):
    x, offsets, starts = make([20, 30], 3, 5)
    arguments = (x, offsets, starts, weights(50), 5, torch.zeros(2).double(), True, "split", torch.arange(2))
    torch.library.opcheck(torch.ops.dcfast.lloyd.default, arguments)


@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
@pytest.mark.parametrize(("tol", "max_iter"), [(0.0, 300), (1e-2, 300), (0.0, 7)])
def test_iterations_ahead_of_the_host_change_nothing(monkeypatch, empty, tol, max_iter):
    # Three equal starts leave two clusters empty at once; a far one may empty later.
    rows = torch.randn(600, 5, generator=torch.Generator().manual_seed(3))
    start = torch.cat([rows[:20], rows[:1], rows[:1], rows[:1] + 1e3])
    monkeypatch.setattr(InMemory, "is_small", lambda *_, **__: False)
    runs = []
    for ahead in (1, 3, 50):
        monkeypatch.setitem(cluster_lloyd._AHEAD, "cpu", ahead)
        runs.append(one_run(InMemory(rows), start, tol=tol, max_iter=max_iter, empty=empty, seed=5))
    for run in runs[1:]:
        assert torch.equal(run.centroids, runs[0].centroids)
        assert torch.equal(run.labels, runs[0].labels)
        assert (run.inertia, run.n_iter, run.converged) == (runs[0].inertia, runs[0].n_iter, runs[0].converged)
    assert (runs[0].converged is None) == (max_iter == 7)


def replayed(monkeypatch):
    """Runs on the CPU go as on a GPU; which graphs were captured, and how often each was replayed."""
    graphs = []

    class Graph(Recorded):
        n_replays = 0

        def replay(self):
            # What was recorded has also run, which counts as the first replay.
            self.n_replays += 1
            if self.n_replays > 1:
                super().replay()

    def capture(launch, device):
        graphs.append(Graph())
        with graphs[-1]:
            launch()
        return graphs[-1]

    monkeypatch.setattr(InMemory, "is_small", lambda *_, **__: False)
    monkeypatch.setattr(replay, "capture", capture)
    for limit in (cluster_lloyd._AHEAD, cluster_lloyd._CAPTURED):
        monkeypatch.setitem(limit, "cpu", limit["cuda"])
    return graphs


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
@pytest.mark.parametrize(("tol", "max_iter"), [(0.0, 300), (1e-2, 300), (0.0, 14)])
def test_replayed_iterations_give_the_same_bits(monkeypatch, empty, tol, max_iter, weighted):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(600, 20, generator=generator)
    start = torch.cat([rows[:20], rows[:1], rows[:1], rows[:1] + 1e3])
    weight = torch.rand(600, dtype=torch.float64, generator=generator) if weighted else None
    runs = []
    for replays in (False, True):
        points = InMemory(rows)
        points.sample_weight = weight
        graphs = replayed(monkeypatch) if replays else []
        runs.append(one_run(points, start, tol=tol, max_iter=max_iter, empty=empty, seed=5))
    assert len(graphs) == 1
    assert graphs[0].n_replays >= 2
    assert torch.equal(runs[1].centroids, runs[0].centroids)
    assert torch.equal(runs[1].labels, runs[0].labels)
    assert runs[1][2:] == runs[0][2:]


@pytest.mark.parametrize("n_calls", [0, 20, 40, 60, 80, 100])
def test_iterations_go_on_where_no_memory_is_left_for_a_graph(monkeypatch, n_calls):
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(600, 20, generator=generator)
    captures = []

    def capture(launch, device):
        captures.append(Exhausted(n_calls))
        try:
            with captures[-1]:
                launch()
        finally:
            captures[-1].undo()

    expected = one_run(InMemory(rows), rows[:20])
    replayed(monkeypatch)
    monkeypatch.setattr(replay, "capture", capture)
    found = one_run(InMemory(rows), rows[:20])
    assert len(captures) == 1
    assert torch.equal(found.centroids, expected.centroids)
    assert torch.equal(found.labels, expected.labels)
    assert found[2:] == expected[2:]


def test_a_capture_may_not_ask_for_values(monkeypatch):
    replayed(monkeypatch)
    asks = replay.Replayed(lambda: torch.ones(3).sum().item(), torch.device("cpu"))
    asks()
    with pytest.warns(UserWarning, match="slower than need be.*a value is asked for"):
        asks()
    asks()  # no second attempt, and no second warning


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
def test_iterations_ask_a_gpu_for_nothing(empty, weighted):
    """On tensors without data: no operator reads a value, and none brings one from the host."""
    points = InMemory(torch.empty(60, 20, device="meta"))
    points.sample_weight = torch.empty(60, dtype=torch.float64, device="meta") if weighted else None
    grid = ops.Grid(torch.empty(20, dtype=torch.int64, device="meta"), 2)
    points.__dict__.update(row_grid=grid, grid=grid, weight_grid=ops.Grid(grid.low[:1], 2) if weighted else None)
    run = cluster_lloyd._Run(points, points.x[:7], 1e-3, empty, 5, False)
    with Crossings() as crossings:
        run.iterate(4)
    assert crossings.n_calls > 40
    assert crossings.found == []


def test_values_from_the_host_are_seen():
    with Crossings() as crossings:
        torch.empty(3, device="meta").copy_(torch.zeros(3))
        with pytest.raises(RuntimeError):
            float(torch.empty((), device="meta"))
    assert crossings.found == ["aten.copy_.default"]
