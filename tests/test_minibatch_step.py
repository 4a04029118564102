"""minibatch_step: the definition in fractions, and one call that gives the bits of the ops that it is made of."""

from fractions import Fraction

import pytest
import scipy.sparse
import torch
from torch.library import opcheck

from dcfast import ops
from dcfast.ops.minibatch_step import native


def make(n, d, k, dtype=torch.float32, kind="normal", weighted=False):
    generator = torch.Generator().manual_seed(n * d + k)
    x = torch.randn(n, d, generator=generator)
    if kind == "lattice":
        x = (x * 0.7).round()
    elif kind == "mixed":
        x *= 10.0 ** torch.randint(-12, 12, (n, 1), generator=generator)
    centroids = torch.randn(k, d, generator=generator) if kind == "normal" else x[torch.arange(k) % n].clone()
    centroids[k // 2] = 1e6  # a cluster that is given nothing
    seen = 100 * torch.rand(k, generator=generator, dtype=torch.float64)
    seen[0] = 0
    weight = torch.rand(n, generator=generator, dtype=torch.float64) if weighted else None
    if weight is not None:
        weight[::5] = 0
    return x.to(dtype), centroids.to(dtype), seen, weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_is_the_definition(cpu_backend, dtype, weighted):
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(60, 3, generator=generator) * torch.tensor([1e-3, 1.0, 1e3])).to(dtype)
    centroids = x[:5].clone()
    centroids[3] = 6e4  # a cluster that is given nothing
    weight = torch.rand(60, generator=generator, dtype=torch.float64) if weighted else None
    labels = ops.assign(x, centroids)
    seen = torch.tensor([0.0, 3.7, 1e9, 5.0, 0.1], dtype=torch.float64)
    new, new_seen, inertia = ops.minibatch_step(x, centroids, seen, weight)
    assert new.dtype == dtype
    assert float(inertia) == float(ops.inertia(x, centroids, labels, weight))
    for j in range(5):
        rows = torch.nonzero(labels == j)[:, 0].tolist()
        assert bool(rows) == (j != 3)
        given = [1.0 if weight is None else float(weight[i]) for i in rows]
        total = float(seen[j]) + float(sum(map(Fraction, given)))
        assert float(new_seen[j]) == total
        for i in range(3):
            exact = sum(Fraction(w * float(x[row, i])) for w, row in zip(given, rows, strict=True))
            mean = (float(centroids[j, i]) * float(seen[j]) + float(exact)) / total if rows else centroids[j, i]
            assert torch.equal(new[j, i], torch.as_tensor(mean, dtype=torch.float64).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["normal", "lattice", "mixed"])
@pytest.mark.parametrize(
    ("n", "d", "k"), [(1, 1, 1), (40, 2, 9), (1000, 10, 8), (700, 40, 30), (2000, 16, 40), (300, 130, 3)]
)
def test_native_equals_the_ops_one_by_one(n, d, k, kind, weighted, dtype, monkeypatch):
    x, centroids, seen, weight = make(n, d, k, dtype, kind, weighted)
    wide = torch.empty(n, 2 * d, dtype=dtype)[:, ::2].copy_(x)
    with ops.backend("native"):
        runs = [ops.minibatch_step(rows, centroids, seen, weight) for rows in (x, wide)]
        monkeypatch.setattr(native, "_CALL_OPERATIONS", 0.0)
        runs.append(ops.minibatch_step(x, centroids, seen, weight))
    with ops.backend("reference"):
        runs.append(ops.minibatch_step(x, centroids, seen, weight))
    for run in runs[:-1]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[-1], strict=True))


def test_threads_change_no_bit():
    x, centroids, seen, _ = make(3000, 20, 50)
    before = torch.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            runs.append(ops.minibatch_step(x, centroids, seen))
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))


def test_sparse_batches_give_the_bits_of_dense_ones():
    x, centroids, seen, weight = make(300, 20, 9, torch.float64, "lattice", weighted=True)
    csr = scipy.sparse.csr_array(x.numpy())
    rows = ops.Csr(*(torch.as_tensor(a) for a in (csr.indptr.astype("int64"), csr.indices, csr.data)), 20)
    for given in (None, weight):
        sparse, dense = (ops.minibatch_step(batch, centroids, seen, given) for batch in (rows, x))
        assert all(torch.equal(a, b) for a, b in zip(sparse, dense, strict=True))


def test_arguments_stay_as_they_were():
    x, centroids, seen, _ = make(50, 4, 5)
    copies = [a.clone() for a in (x, centroids, seen)]
    ops.minibatch_step(x, centroids, seen)
    assert all(torch.equal(a, b) for a, b in zip((x, centroids, seen), copies, strict=True))


def test_opcheck():
    x, centroids, seen, weight = make(50, 4, 5, weighted=True)
    grid = ops.sum_grid(x, weight)
    opcheck(torch.ops.dcfast.minibatch_step.default, (x, centroids, seen, weight, *grid))
    opcheck(torch.ops.dcfast.minibatch_step.default, (x.double(), centroids.double(), seen, None, *grid))


def test_wrong_arguments_are_named():
    x, centroids, seen, _ = make(50, 4, 5)
    with pytest.raises(ValueError, match=r"x has shape \(1, 50, 4\)"):
        ops.minibatch_step(x[None], centroids[None], seen)
    with pytest.raises(ValueError, match="seen is torch"):
        ops.minibatch_step(x, centroids, seen.float())
    with pytest.raises(ValueError, match="seen is"):
        ops.minibatch_step(x, centroids, seen[:3])
    with pytest.raises(ValueError, match="centroids has 0 rows"):
        ops.minibatch_step(x, centroids[:0], seen[:0])
    with pytest.raises(ValueError, match="n_words=0"):
        torch.ops.dcfast.minibatch_step(x, centroids, seen, None, ops.sum_grid(x).low, 0)
