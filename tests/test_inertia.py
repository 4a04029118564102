"""inertia, point_distances and exact_sum: one rounding, whatever the order, threads and backend."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dcfast import ops
from dcfast.ops import _native
from dcfast.ops.assign import reference as assign_reference


def make(n, d, k, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n + d + k)
    x = torch.randn(n, d, generator=generator).to(dtype)
    labels = torch.randint(-1, k, (n,), generator=generator)
    weight = torch.rand(n, generator=generator, dtype=torch.float64)
    return x, torch.randn(k, d, generator=generator).to(dtype), labels, weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (7, 3, 2), (101, 33, 9)])
def test_distances_are_those_of_assign(cpu_backend, n, d, k, dtype):
    x, c, labels, weight = make(n, d, k, dtype)
    every = assign_reference.distances(x, c)
    expected = torch.where(labels >= 0, every.gather(1, labels.clamp(min=0)[:, None])[:, 0], 0.0)
    assert torch.equal(ops.point_distances(x, c, labels), expected)
    assert torch.equal(ops.point_distances(x, c, labels, weight), weight * expected)
    assert ops.inertia(x, c, labels, weight).item() == math.fsum((weight * expected).tolist())


@given(st.lists(st.floats(-1e306, 1e306), max_size=60))
@settings(max_examples=300, deadline=None)
def test_exact_sum_is_fsum(values):
    try:
        expected = math.fsum(values)
    except OverflowError:
        expected = float(sum(map(Fraction, values)))
    for backend in ("native", "reference"):
        with ops.backend(backend):
            assert ops.exact_sum(torch.tensor(values, dtype=torch.float64)).item() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1e308, 1e308, -1e308], 1e308),
        ([1e308, 1e308], math.inf),
        ([-1e308, -1e308], -math.inf),
        ([5e-324, 5e-324, -5e-324], 5e-324),
        ([2.0**53, 1.0, 2.0**-1074], 2.0**53 + 2),
        ([2.0**53, 1.0], 2.0**53),
        ([math.inf, 1.0], math.inf),
        ([math.inf, -math.inf], math.nan),
        ([math.nan, 1.0], math.nan),
        ([], 0.0),
    ],
)
def test_exact_sum_at_the_edges(cpu_backend, values, expected):
    result = ops.exact_sum(torch.tensor(values, dtype=torch.float64)).item()
    assert result == expected or (math.isnan(result) and math.isnan(expected))


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_every_instruction_set_and_thread_count(monkeypatch, isa, threads):
    x, c, labels, weight = make(999, 19, 5)
    with ops.backend("reference"):
        expected = ops.inertia(x, c, labels, weight)
    monkeypatch.setenv("DCFAST_ISA", isa)
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
    with ops.backend("native"):
        assert torch.equal(ops.inertia(x, c, labels, weight), expected)


def test_batched_and_empty(cpu_backend):
    x, c, labels, weight = make(60, 4, 6)
    out = ops.inertia(x.view(3, 20, 4), c.view(3, 2, 4), labels.view(3, 20) % 2, weight.view(3, 20))
    for b in range(3):
        rows = slice(20 * b, 20 * b + 20)
        assert out[b] == ops.inertia(x[rows], c[2 * b : 2 * b + 2], labels[rows] % 2, weight[rows])
    assert ops.inertia(x[:0], c, labels[:0]).item() == 0


def test_errors_name_the_argument():
    x, c, labels, _ = make(5, 2, 3)
    with pytest.raises(ValueError, match="labels has shape"):
        ops.inertia(x, c, labels[:3])
    with pytest.raises(ValueError, match="columns"):
        ops.inertia(x, c[:, :1], labels)
    with pytest.raises(TypeError, match="values has dtype"):
        ops.exact_sum(torch.zeros(3))


def test_opcheck(cpu_backend):
    x, c, labels, weight = make(20, 3, 4)
    torch.library.opcheck(torch.ops.dcfast.point_distances.default, (x, c, labels, weight))
    torch.library.opcheck(torch.ops.dcfast.exact_sum.default, (weight,))
