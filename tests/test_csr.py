"""Rows in CSR: every op gives the bits of the dense form, and nothing is made dense as a whole."""

import dataclasses

import numpy as np
import pytest
import torch

from dcfast import ops
from dcfast.ops import _native

SHAPES = [(1, 1, 1), (5, 3, 2), (60, 40, 60), (257, 64, 100), (300, 300, 50), (97, 513, 9), (13, 1, 40), (40, 2000, 5)]
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
        moved = ops.reassign(rows, c, c, anywhere, ops.lower_bounds(n, d, x.device), out)
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
    labels = [torch.randint(-1, k + 1, (n,)) for _ in range(3)]
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
            for before, after in zip([torch.full((n,), -1), *labels], labels, strict=False):
                sparse.move(rows, after, before, w)
                reference(dense.move, x, after, before, w)
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
