"""accumulate, its moves, means and column_range as CUDA computes them: to the bit those of the reference."""

import pytest
import torch

from dcfast.ops.accumulate import native, reference, sum_grid

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SEEDS = ["0", "1", "2"]


def make(n, d, k, dtype=torch.float32, *, scale=1.0, weighted=False, problems=None):
    generator = torch.Generator().manual_seed(n * d + k)
    shape = (n, d) if problems is None else (problems, n, d)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
    if dtype in (torch.float32, torch.float64) and n > 0:
        x[..., 0, :] *= 1e6  # an outlier must not cost the others their low bits
        x[..., -1, :] *= 1e-6
    weight = torch.rand(shape[:-1], generator=generator, dtype=torch.float64) if weighted else None
    if weighted:
        weight[..., ::7] = 0
    return x.to(dtype), torch.randint(-1, k + 1, shape[:-1], generator=generator), weight


def agrees(x, labels, k, weight, grid=None):
    grid = grid or sum_grid(x, weight)
    expected = reference.accumulate(x, labels, k, weight, *grid)
    words, counts = native._accumulate_on_cuda(x, labels, k, weight, *grid)
    return torch.equal(words, expected[0]) and torch.equal(counts, expected[1])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("n", "d", "k"), [(1, 1, 1), (40, 3, 40), (300, 64, 5), (150, 132, 1), (33, 260, 4)])
def test_equals_the_reference(monkeypatch, seed, n, d, k):
    monkeypatch.setenv("DCFAST_EMULATOR_SEED", seed)
    assert agrees(*make(n, d, k)[:2], k, None)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("d", [8, 9, 70])  # read 16 bytes at a time, and not
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype, d, weighted):
    x, labels, weight = make(90, d, 3, dtype, weighted=weighted)
    assert agrees(x, labels, 3, weight)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_magnitudes(dtype, scale):
    x, labels, _ = make(70, 6, 3, dtype, scale=scale)
    assert agrees(x, labels, 3, None)


@pytest.mark.parametrize("spread", [1, 1e9, 1e20, 1e60, 1e120, 1e130])
def test_any_number_of_words(spread):
    x, labels, weight = make(50, 5, 2, torch.float64, weighted=True)
    x[:9] *= spread
    x[9:20] /= spread
    grid = sum_grid(x, weight)
    assert agrees(x, labels, 2, weight, grid)
    assert agrees(x, labels, 2, weight, grid._replace(n_words=grid.n_words + 1))


def test_one_word():
    x, labels, _ = make(64, 4, 3)
    x = (x.clamp(-2, 2) * 1024).round()
    grid = sum_grid(x)
    assert grid.n_words == 1
    assert agrees(x, labels, 3, None, grid)
    assert agrees(x, labels, 3, None, grid._replace(n_words=2))


def test_layouts():
    x, labels, _ = make(60, 24, 4)
    wide = torch.zeros(60, 40)
    for view in (wide[:, 8:32], wide[:, 3:27], torch.zeros(120, 24)[::2], torch.zeros(24, 60).t()):
        view.copy_(x)
        assert agrees(view, labels, 4, None)


@pytest.mark.parametrize("weighted", [False, True])
def test_batched(weighted):
    x, labels, weight = make(50, 12, 3, weighted=weighted, problems=4)
    assert agrees(x, labels, 3, weight)
    assert agrees(x.transpose(0, 1).contiguous().transpose(0, 1), labels, 3, weight)


def test_no_rows():
    x, labels, _ = make(0, 3, 2)
    assert agrees(x, labels, 2, None)


def test_slices_of_rows(monkeypatch):
    monkeypatch.setattr(native, "_MAX_CUDA_ROWS", 64)
    x, labels, weight = make(70, 4, 3, weighted=True, problems=2)
    assert agrees(x, labels, 3, weight)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("moved", "weighted"), [(0, False), (5, False), (200, True), (400, False)])
def test_moves(monkeypatch, seed, moved, weighted):
    monkeypatch.setenv("DCFAST_EMULATOR_SEED", seed)
    x, before, weight = make(400, 20, 6, weighted=weighted)
    labels = before.clone()
    labels[:moved] = before[:moved].roll(1)
    grid = sum_grid(x, weight)
    words, counts = reference.accumulate(x, before, 6, weight, *grid)
    native._add_on_cuda(words, counts, x, labels, before, weight, grid.low, fresh=False)
    expected = reference.accumulate(x, labels, 6, weight, *grid)
    assert torch.equal(words, expected[0])
    assert torch.equal(counts, expected[1])


def test_moves_into_nothing():
    x, labels, _ = make(100, 7, 3)
    grid = sum_grid(x)
    expected = reference.accumulate(x, labels, 3, None, *grid)
    words, counts = torch.zeros_like(expected[0]), torch.zeros_like(expected[1])
    nowhere = torch.full_like(labels, -1)
    native._add_on_cuda(words, counts, x, labels, nowhere, None, grid.low, fresh=False)
    assert torch.equal(words, expected[0])
    assert torch.equal(counts, expected[1])
    native._add_on_cuda(words, counts, x, nowhere, labels, None, grid.low, fresh=False)
    assert not words.any()
    assert not counts.any()


@pytest.mark.parametrize("spread", [1, 1e10, 1e60, 1e120])
@pytest.mark.parametrize("dtype", DTYPES[:2])
def test_means(dtype, spread):
    x, labels, weight = make(80, 9, 7, torch.float64, weighted=True)
    x[:9] *= spread
    x[9:20] /= spread
    grid = sum_grid(x, weight)
    words, counts = reference.accumulate(x, labels.clamp(max=5), 7, weight, *grid)
    previous, total = torch.randn(7, 9, dtype=dtype), counts.double() / 3
    for sums in (words, words - (words << 1)):  # not carried: those of -x
        expected = reference.means(sums, grid.low, total, previous)
        assert torch.equal(native._means_on_cuda(sums, grid.low, total, previous), expected)
    assert counts[6] == 0


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "words",
    [
        [2**13, 1, 0],  # from the top; the second has half of the last bit of a double
        [2**13, 1, 1],
        [2**13, 3, 0],
        [2**13, 1, 0, 1],
        [2**30, 2**17, 0],
        [2**30, 2**17, 1],
        [2**30, 3 * 2**17, 0],
        [1, 0, 2**27],
        [1, 0, 2**27, 1],
    ],
)
def test_means_of_halves_at_the_boundary_of_a_double(words, sign):
    words, one = sign * torch.tensor(words[::-1]).view(1, -1, 1), torch.ones(1, dtype=torch.float64)
    expected = reference.means(words, torch.tensor([-60]), one, one[:, None])
    assert torch.equal(native._means_on_cuda(words, torch.tensor([-60]), one, one[:, None]), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d"), [(1, 1), (500, 1), (70, 9), (130, 12), (20, 300)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_column_range(dtype, n, d, weighted):
    x, _, weight = make(n, d, 1, dtype, weighted=weighted)
    x[0, 0], x[n // 2, d - 1] = torch.nan, -torch.inf
    x[:, d // 2] = 0
    expected = reference.column_range(x, weight)
    for result, right in zip(native._column_range_on_cuda(x, weight), expected, strict=True):
        assert torch.equal(result, right)


def test_column_range_of_denormals_and_of_no_rows():
    x = torch.tensor([[1e-40, -1e-45], [0.0, 1e38]])
    for rows in (x, x[:0], x.t()):
        expected = reference.column_range(rows, None)
        for result, right in zip(native._column_range_on_cuda(rows, None), expected, strict=True):
            assert torch.equal(result, right)
