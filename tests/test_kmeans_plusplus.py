"""kmeans_plusplus: every backend chooses the rows of the definition."""

import importlib

import pytest
import torch

from dcfast import ops
from dcfast.ops import _native
from dcfast.ops.kmeans_plusplus.greedy import share

SHAPES = [(1, 1, 1), (2, 1, 2), (60, 3, 10), (500, 40, 25), (1100, 17, 9), (90, 300, 90)]
KINDS = ["normal", "lattice", "huge", "tiny", "equal", "blobs", "outlier"]


def make(n, d, k, kind, dtype, trials=4):
    generator = torch.Generator().manual_seed(n * d + k)
    x = torch.randn(n, d, generator=generator)
    if kind == "lattice":
        x = x.round()
    elif kind == "huge":
        x = x * 1e15
    elif kind == "tiny":
        x = x * 1e-20
    elif kind == "equal":
        x[:] = x[0].clone()
    elif kind == "outlier":  # which has all the potential, until it is chosen
        x[-1] = 1e15
    elif kind == "blobs":
        x = x * 1e-3 + 10 * torch.randn(7, d, generator=generator)[torch.arange(n) % 7] + 1e4
    uniform = torch.rand(k - 1, trials, generator=generator, dtype=torch.float64)
    return x.to(dtype), uniform


def reference(*args):
    with ops.backend("reference"):
        return ops.kmeans_plusplus(*args)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_are_equal(n, d, k, kind, dtype, weighted):
    x, uniform = make(n, d, k, kind, dtype)
    weight = torch.rand(n, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    if weighted and n > 2:
        weight[::3] = 0
    with ops.backend("native"):
        assert torch.equal(ops.kmeans_plusplus(x, weight, n // 2, uniform), reference(x, weight, n // 2, uniform))


@pytest.mark.parametrize("far", [slice(None), slice(5, 6), slice(0, 60)], ids=["all", "one", "half"])
def test_potentials_that_no_double_holds_count_nothing(far):
    x, uniform = make(120, 9, 6, "normal", torch.float64)
    x[far] *= 1e200
    for first in (0, 70):
        with ops.backend("native"):
            rows = ops.kmeans_plusplus(x, None, first, uniform)
        assert torch.equal(rows, reference(x, None, first, uniform))
        assert torch.equal(rows[1:], torch.zeros(5).long())  # beside them the others count nothing either


@pytest.mark.parametrize("cache", [0, 2**30])
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("isa", _native._C.isas)
def test_same_rows_however_they_are_found(monkeypatch, isa, threads, cache):
    x, uniform = make(700, 33, 40, "normal", torch.float32, trials=7)
    monkeypatch.setenv("DCFAST_ISA", isa)
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
    native = importlib.import_module("dcfast.ops.kmeans_plusplus.native")
    monkeypatch.setattr(native, "_CACHE_BYTES", cache)
    with ops.backend("native"):
        assert torch.equal(ops.kmeans_plusplus(x, None, 3, uniform), reference(x, None, 3, uniform))


def test_strides(cpu_backend):
    x, uniform = make(200, 24, 8, "normal", torch.float32)
    for view in (x[:, ::2], x[::2], x.T.contiguous().T):
        expected = reference(view.contiguous(), None, 0, uniform)
        assert torch.equal(ops.kmeans_plusplus(view, None, 0, uniform), expected)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"first": 20}, "first=20"),
        ({"uniform": torch.zeros(3)}, "uniform is"),
        ({"uniform": torch.zeros(3, 2)}, "uniform is torch.float32"),
        ({"x": torch.zeros(0, 3)}, "at least one row"),
        ({"sample_weight": torch.zeros(19, dtype=torch.float64)}, "sample_weight"),
    ],
)
def test_errors_name_the_argument(change, match):
    x, uniform = make(20, 3, 4, "normal", torch.float32)
    arguments = {"x": x, "sample_weight": None, "first": 0, "uniform": uniform} | change
    with pytest.raises(ValueError, match=match):
        ops.kmeans_plusplus(**arguments)


def test_opcheck(cpu_backend):
    x, uniform = make(30, 5, 4, "normal", torch.float32)
    torch.library.opcheck(torch.ops.dcfast.kmeans_plusplus.default, (x, None, 2, uniform))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_each_problem_of_a_batch_as_if_alone(monkeypatch, kind, dtype, weighted, threads):
    sizes, k = [9, 300, 40, 17, 130], 9
    x = torch.cat([make(n, 20, k, kind, dtype)[0] for n in sizes])
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    generator = torch.Generator().manual_seed(2)
    uniform = torch.rand(5, k - 1, 3, generator=generator, dtype=torch.float64)
    first = torch.tensor([8, 0, 7, 3, 129])
    weight = torch.rand(len(x), generator=generator, dtype=torch.float64).round() if weighted else None
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
    with ops.backend("native"):
        chosen = ops.kmeans_plusplus_batch(x, offsets, weight, first, uniform)
    for b, at in enumerate(map(slice, offsets[:-1].tolist(), offsets[1:].tolist())):
        alone = reference(x[at], None if weight is None else weight[at], int(first[b]), uniform[b])
        assert torch.equal(chosen[b], alone)


def test_batches_of_any_size(cpu_backend):
    x, uniform = make(20, 3, 4, "normal", torch.float32)
    none = ops.kmeans_plusplus_batch(x[:0], torch.tensor([0]), None, torch.zeros(0).long(), uniform[None][:0])
    assert none.shape == (0, 4)
    one = ops.kmeans_plusplus_batch(x, torch.tensor([0, 20]), None, torch.tensor([6]), uniform[None])
    assert torch.equal(one[0], ops.kmeans_plusplus(x, None, 6, uniform))
    k_1 = ops.kmeans_plusplus_batch(x, torch.tensor([0, 20]), None, torch.tensor([6]), uniform[None, :0])
    assert k_1.tolist() == [[6]]
    with pytest.raises(ValueError, match="first has a row"):
        ops.kmeans_plusplus_batch(x, torch.tensor([0, 20]), None, torch.tensor([20]), uniform[None])


def test_opcheck_of_the_batch(cpu_backend):
    x, uniform = make(30, 5, 4, "normal", torch.float32)
    arguments = (x, torch.tensor([0, 30]), None, torch.tensor([2]), uniform[None])
    torch.library.opcheck(torch.ops.dcfast.kmeans_plusplus_batch.default, arguments)


def test_shares_are_those_of_whole_numbers():
    generator = torch.Generator().manual_seed(0)
    numerators = [0, 1, 2**53 - 1, *torch.randint(2**53, (300,), generator=generator).tolist()]
    totals = [0, 1, 2**31 - 1, 2**31, 2**62, *(torch.randint(2**62, (300,), generator=generator) >> 7).tolist()]
    for total in totals:
        expected = [numerator * total >> 53 for numerator in numerators]
        assert share(torch.tensor(numerators), torch.tensor(total)).tolist() == expected
