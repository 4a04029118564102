"""bisect: one call gives, bit for bit, what 2-means of the rows alone gives by the other ops."""

import pytest
import torch
from support.small_runs import changed, equal, weights

from dcfast import ops
from dcfast.ops import _native
from dcfast.ops.bisect import native as bisect_native

KINDS = ["normal", "lattice", "mixed", "far", "equal", "nonfinite"]


def make(n, d, kind="normal", dtype=torch.float32):
    """Rows, the numbers of some of them in no order, and a start."""
    generator = torch.Generator().manual_seed(n * d)
    x = torch.randn(n, d, generator=generator)
    x = changed(x, kind, generator)
    if kind == "nonfinite":
        x[:: max(1, n // 7), -1] = torch.inf
    rows = torch.randperm(n, generator=generator)[: (2 * n + 2) // 3]
    finite = x.isfinite().all(1)
    start = x[finite][[0, -1]] if bool(finite.any()) else torch.zeros(2, d)
    return x.to(dtype), rows, start.to(dtype)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 3), (60, 2), (300, 20), (2000, 33)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_equals_the_definition(n, d, kind, dtype, weighted):
    x, rows, start = make(n, d, kind, dtype)
    weight = weights(n) if weighted else None
    found = []
    for backend in ("native", "reference"):
        with ops.backend(backend):
            found.append(ops.bisect(x, rows, start, weight, max_iter=25, tol=1e-9))
    assert equal(*found)
    assert sorted(found[0].rows.tolist()) == sorted(rows.tolist())


def test_halves_are_the_clusters_of_the_rows():
    x, rows, start = make(400, 5, "lattice")
    found = ops.bisect(x, rows, start)
    run = ops.lloyd(x[rows], torch.tensor([0, len(rows)]), start[None])
    assert torch.equal(found.centroids, run.centroids[0])
    for half, members in enumerate(found.rows.split(found.sizes.tolist())):
        own = run.labels == half
        assert torch.equal(members, rows[own])
        assert found.inertias[half] == ops.inertia(x[rows][own], run.centroids[0], run.labels[own])
    assert found.inertia == run.inertia[0]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("operations", [1.0, 1e9])
@pytest.mark.parametrize("d", [3, 70])
def test_same_bits_however_the_run_is_cut(monkeypatch, isa, threads, operations, d):
    x, rows, start = make(3000, d)
    whole = ops.bisect(x, rows, start, weights(3000))
    monkeypatch.setenv("DCFAST_ISA", isa)
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
    monkeypatch.setattr(bisect_native, "_CALL_OPERATIONS", operations)
    assert equal(whole, ops.bisect(x, rows, start, weights(3000)))


def test_a_grid_of_more_rows_and_strides(cpu_backend):
    x, rows, start = make(90, 6)
    expected = ops.bisect(x, rows, start)
    wide = torch.zeros(90, 12)
    wide[:, ::2] = x
    grid = ops.sum_grid(torch.cat([x, x * 1e6, x * 1e-6]))
    assert equal(ops.bisect(wide[:, ::2], rows, start, grid=grid), expected)
    assert equal(ops.bisect(x.T.contiguous().T, rows.repeat_interleave(2)[::2], start), expected)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"x": torch.zeros(9, 3).half()}, TypeError, "x has dtype torch.float16"),
        ({"x": torch.zeros(2, 9, 3)}, ValueError, r"x has shape \(2, 9, 3\)"),
        ({"rows": torch.tensor([0, 9])}, ValueError, "rows has numbers from 0 to 9: expected 0 to 8"),
        ({"rows": torch.tensor([-1, 3])}, ValueError, "rows has numbers from -1 to 3"),
        ({"rows": torch.zeros(0, dtype=torch.int64)}, ValueError, r"rows has shape \(0,\)"),
        ({"rows": torch.tensor([0.0, 1.0])}, TypeError, "rows has dtype torch.float32"),
        ({"centroids": torch.zeros(3, 3)}, ValueError, r"centroids has shape \(3, 3\)"),
        ({"centroids": torch.zeros(2, 3).double()}, ValueError, "centroids has dtype torch.float64"),
        ({"sample_weight": torch.ones(8).double()}, ValueError, "sample_weight has shape"),
        ({"max_iter": -1}, ValueError, "max_iter=-1"),
    ],
)
def test_errors(change, error, match):
    arguments = {"x": torch.zeros(9, 3), "rows": torch.arange(5), "centroids": torch.zeros(2, 3)} | change
    with pytest.raises(error, match=match):
        ops.bisect(**arguments)


def test_opcheck():
    x, rows, start = make(30, 4)
    low, n_words = ops.sum_grid(x)
    arguments = (x, rows, start, weights(30), low, n_words, 5, 1e-3)
    assert set(torch.library.opcheck(torch.ops.dcfast.bisect, arguments).values()) == {"SUCCESS"}
