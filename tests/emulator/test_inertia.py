"""Distances to the own centroid and exact sums as CUDA computes them: to the bit those of the reference."""

import math

import pytest
import torch

from dcfast.ops.inertia import native, reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def make(n, d, k, dtype=torch.float32, *, scale=1.0, problems=None):
    generator = torch.Generator().manual_seed(n * d + k)
    batch = () if problems is None else (problems,)
    x = torch.randn(*batch, n, d, generator=generator, dtype=torch.float64) * scale
    c = torch.randn(*batch, k, d, generator=generator, dtype=torch.float64) * scale
    labels = torch.randint(-1, k + 1, (*batch, n), generator=generator)
    return x.to(dtype), c.to(dtype), labels, torch.rand(*batch, n, generator=generator, dtype=torch.float64)


def agrees(x, c, labels, weight):
    return torch.equal(
        native._point_distances_on_cuda(x, c, labels, weight), reference.point_distances(x, c, labels, weight)
    )


@pytest.mark.parametrize("seed", ["0", "1", "2"])
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (70, 3, 5), (33, 32, 33), (130, 45, 2), (40, 200, 7)])
def test_distances_equal_the_reference(monkeypatch, seed, n, d, k):
    monkeypatch.setenv("DCFAST_EMULATOR_SEED", seed)
    x, c, labels, weight = make(n, d, k)
    assert agrees(x, c, labels, None)
    assert agrees(x, c, labels, weight)


@pytest.mark.parametrize("d", [40, 41])  # read 16 bytes at a time, and not
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, d):
    assert agrees(*make(50, d, 4, dtype))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_magnitudes(scale):
    for dtype in DTYPES[:2]:
        assert agrees(*make(40, 9, 3, dtype, scale=scale))


def test_layouts_and_batches():
    x, c, labels, weight = make(40, 12, 3, problems=3)
    assert agrees(x, c, labels, weight)
    wide = torch.zeros(3, 40, 20)
    for view in (wide[..., 4:16], wide[..., 3:15], torch.zeros(40, 3, 12).transpose(0, 1), torch.zeros(3, 12, 40).mT):
        assert agrees(view.copy_(x), c, labels, weight)
    assert agrees(x[:, :0], c, labels[:, :0], None)


HARD = [
    [1.0, 2.0**-60, -1.0],
    [2.0**53, 1.0, 2.0**-1074],
    [1e308, 1e308, -1e308],
    [1e308, 1e308],
    [-1e308, -1e308],
    [5e-324] * 7,
    [2.0**-1022, -5e-324],
    [-1.0, 5e-324],
    [math.inf, 1.0],
    [-math.inf, 1.0],
    [math.inf, -math.inf],
    [math.nan, math.inf],
    [0.0, -0.0],
    [],
]


@pytest.mark.parametrize("values", HARD)
def test_hard_sums(values):
    values = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(native._exact_sum_on_cuda(values).isnan(), reference.exact_sum(values).isnan())
    assert torch.equal(native._exact_sum_on_cuda(values).nan_to_num(7), reference.exact_sum(values).nan_to_num(7))


@pytest.mark.parametrize("seed", ["0", "1"])
@pytest.mark.parametrize("shape", [(1,), (33,), (5000,), (3, 70), (2, 2, 10)])
def test_sums(monkeypatch, seed, shape):
    monkeypatch.setenv("DCFAST_EMULATOR_SEED", seed)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(shape[-1]), dtype=torch.float64) ** 9
    assert torch.equal(native._exact_sum_on_cuda(values), reference.exact_sum(values))


def test_sums_of_any_doubles():
    bits = torch.randint(-(2**63), 2**63 - 1, (3, 300), generator=torch.Generator().manual_seed(0))
    values = bits.view(torch.float64).where((bits >> 52 & 0x7FF) < 0x7F0, 0.0)
    assert torch.equal(native._exact_sum_on_cuda(values), reference.exact_sum(values))
