"""kmeans_plusplus as CUDA computes it: the rows of the reference."""

import pytest
import torch
from support.emulated import fenced

from dcfast.ops.kmeans_plusplus import native, reference

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def make(n, d, k, dtype=torch.float32, *, trials=3, scale=1.0, offset=0.0):
    generator = torch.Generator().manual_seed(n * d + k)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64) * scale + offset
    return x.to(dtype), torch.rand(k - 1, trials, generator=generator, dtype=torch.float64)


def agrees(x, uniform, weight=None, first=0):
    inputs = fenced(x), None if weight is None else fenced(weight), first, uniform
    return torch.equal(native._on_cuda(*inputs), reference.kmeans_plusplus(x, weight, first, uniform))


@pytest.mark.parametrize("seed", ["0", "1"])
@pytest.mark.parametrize(("n", "d", "k", "trials"), [(1, 1, 1, 1), (2, 1, 2, 2), (150, 5, 6, 3), (40, 70, 4, 17)])
def test_equals_the_reference(monkeypatch, seed, n, d, k, trials):
    monkeypatch.setenv("DCFAST_EMULATOR_SEED", seed)
    assert agrees(*make(n, d, k, trials=trials), first=n // 2)


@pytest.mark.parametrize("d", [8, 9])  # read 16 bytes at a time, and not
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_weights(dtype, d):
    x, uniform = make(60, d, 4, dtype)
    weight = torch.rand(60, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight[::3] = 0
    assert agrees(x, uniform, weight, first=59)


def test_an_outlier_leaves_the_others_their_digits():
    x, uniform = make(60, 3, 6)
    x[-1] = 1e15
    assert agrees(x, uniform)
    assert len(set(native._on_cuda(x, None, 0, uniform).tolist())) == 6


def test_more_rows_than_are_drawn_together():
    assert agrees(*make(2100, 2, 4, trials=2))


@pytest.mark.parametrize(("u", "row"), [(0, 1), (1022, 1023), (1023, 1024), (1024, 1025), (2048 - 2**-42, 2048)])
def test_draws_on_the_edge(u, row):
    """All rows but the first are as likely, and 1024 have a total for the draws."""
    x = torch.ones(2049, 1)
    x[0] = 0
    assert native._on_cuda(x, None, 0, torch.full((1, 1), u / 2048, dtype=torch.float64)).tolist() == [0, row]


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(
    ("scale", "offset"),
    [(1e-3, 1e4), (1e-20, 0.0), (1e-25, 0.0), (1e19, 0.0)],  # cancels; falls below float32 and rises above it
)
def test_magnitudes(dtype, scale, offset):
    assert agrees(*make(40, 6, 5, dtype, scale=scale, offset=offset))


def test_every_row_is_chosen_once():
    x, uniform = make(12, 3, 12)
    assert agrees(x, uniform)
    assert native._on_cuda(x, None, 5, uniform).sort().values.tolist() == list(range(12))


def test_equal_rows_and_ties():
    x, uniform = make(30, 2, 6)
    assert agrees(torch.ones_like(x), uniform, first=7)
    assert agrees(torch.ones_like(x), uniform, torch.zeros(30, dtype=torch.float64))
    assert agrees(x[torch.arange(30) // 10], uniform)  # fewer different rows than are asked for
    lattice = torch.cartesian_prod(torch.arange(6.0), torch.arange(5.0))
    assert agrees(lattice, uniform)
    # Mirror images leave the same potential: the first of them is taken.
    mirrored = torch.tensor([0.0, -1.0, 1.0, -1.0, 1.0])[:, None]
    assert agrees(mirrored, torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64))


@pytest.mark.parametrize(
    "scale", [1.0, 2.0**-73, 2.0**62]
)  # the squares fall below float32, and their sums rise above it
def test_nearer_by_one_bit(scale):
    """Half-way from the first row to the last candidate but for a bit: if that is lost, the one before it ties."""
    generator = torch.Generator().manual_seed(0)
    uniform = torch.tensor([[0.6, 0.2]], dtype=torch.float64)
    for column in range(8):
        candidate = torch.rand(60, generator=generator) + 1
        between = candidate / 2
        between[column] = between[column].nextafter(candidate[column])
        x = torch.zeros(4, 120)
        x[1, :60] = x[2, 60:] = candidate
        x[3, :60] = between
        assert native._on_cuda(x * scale, None, 0, uniform).tolist() == [0, 1]


def test_layouts():
    x, uniform = make(30, 12, 3)
    wide = torch.zeros(30, 20)
    for view in (wide[:, 4:16], wide[:, 3:15], torch.zeros(60, 12)[::2], torch.zeros(12, 30).T):
        view.copy_(x)
        assert torch.equal(native._on_cuda(view, None, 0, uniform), reference.kmeans_plusplus(x, None, 0, uniform))
