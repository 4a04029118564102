"""accumulate and means: the exact real sum, whatever the order, threads, chunks, backend and instruction set."""

from fractions import Fraction

import pytest
import torch

from dcfast import ops
from dcfast.ops import _native
from dcfast.ops.accumulate.grid import DIGIT

SHAPES = [(1, 1, 1), (50, 3, 4), (300, 40, 7), (200, 17, 300), (64, 129, 2)]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def make(n, d, k, dtype, *, scale=1.0, weighted=False):
    generator = torch.Generator().manual_seed(n * d + k)
    x = torch.randn(n, d, generator=generator) * scale
    if dtype in (torch.float32, torch.float64):
        x[0] *= 1e10  # an outlier must not cost the others their low bits
        x[-1] *= 1e-12
    weight = torch.rand(n, generator=generator, dtype=torch.float64) if weighted else None
    if weighted:
        weight[::7] = 0
    labels = torch.randint(-1, k, (n,), generator=generator)
    return x.to(dtype), labels, weight


def exact(words, low):
    """The sums as fractions: (k, d)."""
    return [
        [Fraction(2) ** low[i] * sum(row[w][i] * 2 ** (DIGIT * w) for w in range(len(row))) for i in range(len(row[0]))]
        for row in words.tolist()
    ]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_are_the_exact_real_sums(cpu_backend, dtype, weighted):
    x, labels, weight = make(60, 3, 4, dtype, weighted=weighted)
    sums = ops.accumulate(x, labels, 4, weight)
    expected = [[Fraction(0)] * 3 for _ in range(4)]
    total = [Fraction(0)] * 4
    members = [0] * 4
    for i, label in enumerate(labels.tolist()):
        w = 1.0 if weight is None else float(weight[i])
        if label < 0 or w == 0:
            continue
        members[label] += 1
        total[label] += Fraction(w)
        for c, v in enumerate(x[i].tolist()):
            expected[label][c] += Fraction(v * w)
    assert exact(sums.words, sums.grid.low.tolist()) == expected
    assert sums.counts.tolist() == members
    assert sums.total.tolist() == [float(t) for t in total]


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_equals_the_reference(dtype, n, d, k, weighted, scale):
    x, labels, weight = make(n, d, k, dtype, scale=scale, weighted=weighted)
    previous = torch.randn(k, d).to(dtype)
    results = []
    for backend in ("reference", "native"):
        with ops.backend(backend):
            sums = ops.accumulate(x, labels, k, weight)
            results.append((sums.words, sums.counts, sums.total, ops.means(sums, previous)))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_means_are_rounded_once_from_the_exact_sum(cpu_backend, dtype):
    x, labels, _ = make(200, 5, 3, dtype)
    sums = ops.accumulate(x, labels, 3)
    exact_rows = exact(sums.words, sums.grid.low.tolist())
    expected = torch.tensor(
        [
            [float(v) / float(t) for v in row] if t else [0.0] * 5
            for row, t in zip(exact_rows, sums.total.tolist(), strict=True)
        ],
        dtype=torch.float64,
    ).to(dtype)
    assert torch.equal(ops.means(sums, torch.zeros(3, 5, dtype=dtype)), expected)


def test_means_of_halves_at_the_boundary_of_a_double(cpu_backend):
    # 2^53 + 1 lies halfway between two doubles: the tie goes to even, and the smallest bit below breaks it.
    for tail, expected in ((0.0, 2.0**53), (2.0**-60, 2.0**53 + 2)):
        x = torch.tensor([[2.0**53], [1.0], [tail]], dtype=torch.float64)
        for sign in (1, -1):
            sums = ops.accumulate(sign * x, torch.zeros(3, dtype=torch.int64), 1)
            one = sums._replace(total=torch.ones(1, dtype=torch.float64))
            assert ops.means(one, torch.zeros(1, 1, dtype=torch.float64)).item() == sign * expected


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("d", [3, 37, 96])
def test_same_words_for_every_instruction_set_and_thread_count(monkeypatch, isa, threads, d):
    x, labels, weight = make(500, d, 11, torch.float32, weighted=True)
    with ops.backend("reference"):
        expected = ops.accumulate(x, labels, 11, weight)
    monkeypatch.setenv("DCFAST_ISA", isa)
    monkeypatch.setattr(_native, "threads", lambda *_: threads)
    with ops.backend("native"):
        sums = ops.accumulate(x, labels, 11, weight)
    assert torch.equal(sums.words, expected.words)
    assert torch.equal(sums.counts, expected.counts)


def test_order_and_chunks_do_not_matter(cpu_backend):
    x, labels, _ = make(300, 6, 5, torch.float32)
    grid = ops.sum_grid(x)
    whole = ops.accumulate(x, labels, 5, grid=grid)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    shuffled = ops.accumulate(x[order], labels[order], 5, grid=grid)
    assert torch.equal(whole.words, shuffled.words)
    parts = [ops.accumulate(x[rows], labels[rows], 5, grid=grid) for rows in torch.arange(300).split(70)]
    merged = whole._replace(words=sum(p.words for p in parts))
    assert torch.equal(ops.means(merged, torch.zeros(5, 6)), ops.means(whole, torch.zeros(5, 6)))


def test_many_rows_carry(cpu_backend):
    # 2^40 - 1 in every low digit: without a carry the digit would overflow what the reference expects.
    x = torch.full((5000, 1), float(2**24 - 1))
    x[0] = 2.0**-16
    sums = ops.accumulate(x, torch.zeros(5000, dtype=torch.int64), 1)
    assert sums.words.shape[1] == 2
    assert exact(sums.words, sums.grid.low.tolist())[0][0] == 4999 * (2**24 - 1) + Fraction(1, 2**16)


def test_clusters_without_weight_keep_their_centroid(cpu_backend):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    sums = ops.accumulate(x, torch.tensor([0, 2]), 4, torch.tensor([1.0, 0.0], dtype=torch.float64))
    previous = torch.arange(8.0).view(4, 2)
    expected = previous.clone()
    expected[0] = x[0]
    assert torch.equal(ops.means(sums, previous), expected)
    assert sums.counts.tolist() == [1, 0, 0, 0]


def test_batched(cpu_backend):
    x, labels, weight = make(120, 6, 4, torch.float32, weighted=True)
    grid = ops.sum_grid(x.view(3, 40, 6), weight.view(3, 40))
    batched = ops.accumulate(x.view(3, 40, 6), labels.view(3, 40), 4, weight.view(3, 40), grid=grid)
    means = ops.means(batched, torch.zeros(3, 4, 6))
    for b in range(3):
        rows = slice(40 * b, 40 * b + 40)
        one = ops.accumulate(x[rows], labels[rows], 4, weight[rows], grid=grid)
        assert torch.equal(batched.words[b], one.words)
        assert torch.equal(batched.counts[b], one.counts)
        assert torch.equal(means[b], ops.means(one, torch.zeros(4, 6)))


def test_empty_input(cpu_backend):
    sums = ops.accumulate(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2)
    assert sums.counts.tolist() == [0, 0]
    assert torch.equal(sums.words, torch.zeros_like(sums.words))


def test_running_sums_of_weights_need_their_grid(cpu_backend):
    x, labels, none = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), torch.full((3,), -1)
    weight = torch.ones(3, dtype=torch.float64)
    with pytest.raises(ValueError, match="sample_weight is given and weight_grid is not"):
        ops.RunningSums(1, ops.sum_grid(x)).move(x, labels, none, weight)
    with pytest.raises(ValueError, match="weight_grid is given and sample_weight is not"):
        ops.RunningSums(1, ops.sum_grid(x), ops.sum_grid(weight[:, None])).move(x, labels, none)


def test_moves_need_contiguous_sums(cpu_backend):
    x, labels, none = torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), torch.full((3,), -1)
    words, counts = torch.zeros(4, 1, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64)
    low = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="words has strides"):
        torch.ops.dcfast.accumulate_moves(words[::2], counts[:2], x, labels, none, None, low)
    with pytest.raises(ValueError, match="counts has strides"):
        torch.ops.dcfast.accumulate_moves(words[:2].contiguous(), counts[::2], x, labels, none, None, low)


def test_non_finite_rows_need_the_label_minus_one(cpu_backend):
    x = torch.tensor([[1.0], [torch.nan]])
    assert ops.accumulate(x, torch.tensor([0, -1]), 1).counts.tolist() == [1]
    with pytest.raises(ValueError, match="non-finite rows"):
        ops.accumulate(x, torch.tensor([0, 0]), 1)
    sparse = ops.Csr(torch.tensor([0, 1, 2]), torch.tensor([0, 0]), x[:, 0].clone(), 1)
    assert ops.accumulate(sparse, torch.tensor([0, -1]), 1).counts.tolist() == [1]
    with pytest.raises(ValueError, match="non-finite rows"):
        ops.accumulate(sparse, torch.tensor([0, 0]), 1)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((torch.zeros(3, 2), torch.zeros(3), 1), TypeError, "labels has dtype"),
        ((torch.zeros(3, 2), torch.zeros(2).long(), 1), ValueError, "labels has shape"),
        ((torch.zeros(3, 2), torch.zeros(3).long(), 0), ValueError, "n_clusters=0"),
        ((torch.zeros(3, 2), torch.zeros(3).long(), 1, torch.ones(3)), TypeError, "sample_weight has dtype"),
        ((torch.full((3, 2), 1e300, dtype=torch.float64), torch.zeros(3).long(), 1), ValueError, "rescale"),
    ],
)
def test_errors_name_the_argument(arguments, error, match):
    with pytest.raises(error, match=match):
        ops.accumulate(*arguments)


def test_opcheck(cpu_backend):
    x, labels, weight = make(20, 5, 3, torch.float32, weighted=True)
    grid = ops.sum_grid(x, weight)
    torch.library.opcheck(torch.ops.dcfast.accumulate.default, (x, labels, 3, weight, *grid))
    sums = ops.accumulate(x, labels, 3, weight)
    torch.library.opcheck(torch.ops.dcfast.means.default, (sums.words, grid.low, sums.total, torch.zeros(3, 5)))
    moved = (sums.words.clone(), sums.counts.clone(), x, labels.flip(0), labels, weight, grid.low)
    torch.library.opcheck(torch.ops.dcfast.accumulate_moves.default, moved)
    torch.library.opcheck(torch.ops.dcfast.column_range.default, (x, weight))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_running_sums_follow_the_labels(cpu_backend, n, d, k, dtype, weighted):
    x, labels, weight = make(n, d, k, dtype, weighted=weighted)
    weight_grid = ops.sum_grid(weight[:, None]) if weighted else None
    running = ops.RunningSums(k, ops.sum_grid(x, weight), weight_grid)
    previous = torch.full_like(labels, -1)
    generator = torch.Generator().manual_seed(n)
    for share in (1.0, 0.3, 0.0, 1.0):
        moves = torch.rand(n, generator=generator) < share
        labels = torch.where(moves, torch.randint(-1, k, (n,), generator=generator), labels)
        half = n // 2  # in two parts
        for rows in (slice(0, half), slice(half, n)):
            own = None if weight is None else weight[rows]
            running.move(x[rows], labels[rows], previous[rows], own)
        expected, result = ops.accumulate(x, labels, k, weight), running.sums()
        assert torch.equal(result.words, expected.words)
        assert torch.equal(result.counts, expected.counts)
        assert torch.equal(result.total, expected.total)
        previous = labels


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "d"), [(0, 3), (1, 1), (1000, 1), (1001, 3), (300, 40), (5, 700)])
def test_column_range(cpu_backend, n, d, dtype, weighted):
    x, _, weight = make(max(n, 1), d, 2, dtype, weighted=weighted)
    x = x[:n]
    weight = None if weight is None else weight[:n]
    if n > 4:
        x[1], x[2, 0], x[3, -1], x[4] = 0, torch.nan, -torch.inf, -x[4].abs()
    smallest, largest = ops.column_range(x, weight)
    for i in range(min(d, 5)):
        column = x[:, i].double() * (1 if weight is None else weight)
        magnitudes = [abs(v) for v in column.tolist() if 0 < abs(v) < float("inf")]
        assert smallest[i] == min(magnitudes, default=float("inf"))
        assert largest[i] == max(magnitudes, default=0)
