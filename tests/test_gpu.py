"""On a GPU: every op and every estimator finds what it finds on the CPU, to the bit."""

import warnings

import pytest
import torch
from support.gpu import DEVICE, DTYPES, SERVING, bits, fitted, served_by, there
from support.sobel import SIZES
from support.sobel import make as make_images

from dcfast import BisectingKMeans, KMeans, MiniBatchKMeans, PCAWhiten, info, ops
from dcfast.cluster import replay
from dcfast.cluster.sphere import unit

pytestmark = pytest.mark.gpu

# Problems, rows, columns, clusters: one of everything; ragged tiles; several blocks of each; more than 1024 columns; a
# single column; many problems.
SHAPES = [(1, 1, 1), (37, 5, 3), (1000, 64, 100), (513, 17, 300), (300, 1100, 7), (4097, 1, 9)]
BATCHED = [(3, 130, 17, 9), (40, 33, 8, 5)]
KINDS = ["normal", "lattice", "huge", "tiny", "duplicates", "offset", "outlier", "nonfinite", "equal", "strided"]


def make(shape, kind="normal", dtype=torch.float32):
    """Rows (..., N, d) and centroids (..., k, d) on the CPU."""
    *batch, n, d, k = shape
    generator = torch.Generator().manual_seed(n * d + k)
    x = torch.randn(*batch, n, d, generator=generator)
    c = torch.randn(*batch, k, d, generator=generator)
    if kind == "lattice":  # ties everywhere
        x, c = (2 * x).round(), (2 * c).round()
    elif kind in ("huge", "tiny"):
        scale = {"huge": 1e4, "tiny": 1e-4} if dtype == torch.float16 else {"huge": 1e18, "tiny": 1e-18}
        x, c = x * scale[kind], c * scale[kind]
    elif kind == "duplicates":
        c = c[..., torch.arange(k) // 3, :]
        x[..., : min(n, k), :] = c[..., : min(n, k), :]
    elif kind == "offset":
        x, c = x + 100, c + 100
    elif kind == "outlier":
        x[..., n // 2, :] *= 1e3 if dtype == torch.float16 else 1e15
    elif kind == "nonfinite":
        c[..., 0, 0], c[..., -1, -1] = torch.nan, torch.inf
        x[..., n // 2, 0], x[..., n // 3, -1] = -torch.inf, torch.nan
    elif kind == "equal":
        x, c = torch.ones_like(x), torch.ones_like(c)
    x, c = x.to(dtype), c.to(dtype)
    if kind == "strided":
        x = x.repeat_interleave(2, -1)[..., ::2]
        c = c.mT.contiguous().mT
    return x, c


def weights(shape):
    generator = torch.Generator().manual_seed(1)
    weight = torch.rand(*shape[:-2], generator=generator, dtype=torch.float64)
    weight[..., ::7] = 0
    return weight


def labels_for(shape, generator=None):
    """-1 and k among them: rows of no cluster."""
    generator = generator or torch.Generator().manual_seed(2)
    return torch.randint(-1, shape[-1] + 1, shape[:-2], generator=generator)


def assert_same(serving, call, *inputs):
    """`call` on the CPU and on the GPU: the same bits."""
    expected = bits(call(*inputs))
    with served_by(serving):
        assert bits(call(*there(inputs))) == expected


@pytest.fixture(params=SERVING)
def serving(request):
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES + BATCHED, ids=str)
def test_assign(serving, shape, kind, dtype):
    assert_same(serving, ops.assign, *make(shape, kind, dtype))


@pytest.mark.parametrize("shape", [(0, 3, 4), (0, 7, 3, 4), (5, 0, 3, 4)], ids=str)
def test_no_rows(serving, shape):
    x, c = make(shape)
    assert_same(serving, ops.assign, x, c)
    assert_same(serving, lambda x, c: ops.accumulate(x, ops.assign(x, c), shape[-1])[:3], x, c)
    assert_same(serving, lambda x, c: ops.inertia(x, c, ops.assign(x, c)), x, c)


def near_ties(n=3000, d=96, k=400):
    """Rows half-way between two centroids, but for the last bits: no pass in half precision can tell."""
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(k, d, generator=generator)
    pairs = torch.randint(k, (2, n), generator=generator)
    x = (c[pairs[0]] + c[pairs[1]]) / 2
    x[:, 0] += torch.randint(-2, 3, (n,), generator=generator) * 2.0**-24
    return x, c


@pytest.mark.parametrize("dtype", DTYPES)
def test_near_ties(serving, dtype):
    assert_same(serving, ops.assign, *(t.to(dtype) for t in near_ties()))


# What only large problems reach: two row tiles a block with several pieces of the columns; tiles of 128 rows for up to
# 1,024 columns; consumers without turns; sums that are promoted, with bounds of several tiles. In each a block takes
# more than one item of work.
LARGE = [(40_000, 200, 300), (36_000, 700, 140), (20_000, 448, 300), (20_000, 1100, 700)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["normal", "lattice"])
@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_assign_of_large_problems(serving, shape, kind, dtype):
    assert_same(serving, ops.assign, *make(shape, kind, dtype))


@pytest.mark.parametrize("batch", [(), (3,)], ids=str)
def test_many_open_rows_are_rechecked_together(serving, batch):
    # More than 4,096 rows half-way between two centroids that a third ties with: every one needs every centroid.
    c = torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 1.0]]).repeat(*batch, 1, 1)
    x = torch.tensor([[1.0, 0.0]]).repeat(*batch, 4200, 1)
    x[..., 7, :] = 5.0
    assert_same(serving, ops.assign, x, c)


def test_subnormal_numbers_of_half_precision_count(serving):
    # One centroid a million times as long as the others: scaled to it they are subnormal or zero in float16.
    x, c = make((3000, 40, 60))
    c[7] *= 1e6
    assert_same(serving, ops.assign, x, c)


def test_more_than_two_to_the_31_elements():
    n, d, k = 2**27 + 5, 17, 3
    generator = torch.Generator(DEVICE).manual_seed(0)
    x = torch.randn(n, d, generator=generator, device=DEVICE, dtype=torch.float16)
    assert x.numel() > 2**31
    c = x[:: n // k][:k].clone()
    labels = ops.assign(x, c)
    for rows in (slice(0, 5000), slice(n // 2, n // 2 + 5000), slice(n - 5000, n)):
        assert torch.equal(labels[rows].cpu(), ops.assign(x[rows].cpu(), c.cpu()))
    grid = ops.sum_grid(x)
    whole = ops.accumulate(x, labels, k, grid=grid)
    parts = ops.RunningSums(k, grid, device=DEVICE)
    for part, own in zip(x.split(n // 3), labels.split(n // 3), strict=True):
        parts.move(part, own, torch.full_like(own, -1))
    assert torch.equal(whole.words, parts.words)
    assert torch.equal(whole.counts, parts.counts)
    assert int(whole.counts.sum()) == n


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reassign_over_iterations(serving, shape, dtype):
    def iterations(x, c):
        found = []
        n, d, _ = shape
        bounds, labels = ops.distance_bounds(n, d, x.device), torch.full((n,), -1, device=x.device)
        before = c
        for step in range(4):
            out = torch.empty_like(labels)
            moved = ops.reassign(x, c, before, labels, bounds, out)
            found.append((moved, out))
            labels, before = out, c
            c = c.clone()
            c[step % 2 :: 3] *= 1.125  # some centroids stay where they are
        return found

    assert_same(serving, iterations, *make(shape, dtype=dtype))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "outlier", "tiny", "equal", "strided"])
@pytest.mark.parametrize("shape", SHAPES + BATCHED, ids=str)
def test_accumulate_and_means(serving, shape, kind, dtype, weighted):
    def update(x, c, labels, weight):
        sums = ops.accumulate(x, labels, shape[-1], weight)
        return *sums[:3], *sums.grid, ops.means(sums, c), ops.column_range(x, weight)

    x, c = make(shape, kind, dtype)
    assert_same(serving, update, x, c, labels_for(shape), weights(shape) if weighted else None)


def test_sums_of_more_rows_than_a_slice(serving):
    x, _ = make((2**22 + 77, 3, 2))
    assert_same(serving, lambda x, labels: ops.accumulate(x, labels, 5)[:3], x, labels_for((2**22 + 77, 3, 5)))


def test_rows_that_are_not_finite_are_refused(serving):
    x, _ = make((50, 3, 2), "nonfinite")
    with served_by(serving), pytest.raises(ValueError, match="non-finite rows with a label"):
        ops.accumulate(x.to(DEVICE), torch.zeros(50, dtype=torch.int64, device=DEVICE), 2)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(300, 40, 7), (4097, 17, 300)], ids=str)
def test_running_sums(serving, shape, dtype, weighted):
    def follow(x, weight, *steps):
        weight_grid = None if weight is None else ops.sum_grid(weight[:, None])
        running = ops.RunningSums(shape[-1], ops.sum_grid(x, weight), weight_grid, x.device)
        previous = torch.full_like(steps[0], -1)
        found = []
        for labels in steps:
            running.move(x, labels, previous, weight)
            sums = running.sums()
            found.append((sums.words.clone(), sums.counts.clone(), sums.total.clone()))
            previous = labels
        return found

    generator = torch.Generator().manual_seed(3)
    first, second = labels_for(shape, generator), labels_for(shape, generator)
    mostly_first = torch.where(torch.arange(shape[0]) % 10 == 0, second, first)
    weight = weights(shape) if weighted else None
    assert_same(serving, follow, make(shape, dtype=dtype)[0], weight, first, mostly_first, first, second)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "huge", "strided"])
@pytest.mark.parametrize("shape", SHAPES + BATCHED, ids=str)
def test_distances_and_inertia(serving, shape, kind, dtype, weighted):
    def distances(*inputs):
        return ops.point_distances(*inputs), ops.inertia(*inputs)

    weight = weights(shape) if weighted else None
    assert_same(serving, distances, *make(shape, kind, dtype), labels_for(shape), weight)


@pytest.mark.parametrize("special", [[], [torch.inf], [torch.inf, -torch.inf], [torch.nan]])
def test_exact_sums(serving, special):
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randint(-1000, 1000, (5, 3001), generator=generator)
    values = torch.randn(5, 3001, generator=generator, dtype=torch.float64) * torch.exp2(exponents.double())
    values[:, : len(special)] = torch.tensor(special, dtype=torch.float64)
    values[0, -1] = 5e-324
    with served_by(serving):
        found = ops.exact_sum(values.to(DEVICE)).cpu()
    assert torch.equal(found.nan_to_num(7.0), ops.exact_sum(values).nan_to_num(7.0))
    assert torch.equal(found.isnan(), ops.exact_sum(values).isnan())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 2, 40), (1, 5, 2000), (1, 33, 130), (6, 1, 3, 25)], ids=str)
def test_split_empty(serving, shape, dtype):
    *batch, _, d, k = shape
    generator = torch.Generator().manual_seed(k)
    centroids = torch.randn(*batch, k, d, generator=generator).to(dtype)
    counts = torch.randint(0, 9, (*batch, k), generator=generator) * torch.randint(
        0, 2, (*batch, k), generator=generator
    )
    seeds = torch.randint(2**40, (*batch,), generator=generator)
    assert_same(serving, ops.split_empty, centroids, counts, seeds, torch.tensor(2**33 + 1))
    assert_same(serving, ops.split_empty, centroids, counts, 5, 6)
    assert_same(
        serving, ops.split_empty, centroids, torch.ones_like(counts) - (counts > 3).long(), 5, 6
    )  # none to give


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["normal", "lattice", "equal", "offset"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (60, 3, 10), (1100, 17, 40)], ids=str)
def test_kmeans_plusplus(serving, shape, kind, dtype, weighted):
    n, _, k = shape
    x, _ = make(shape, kind, dtype)
    weight = weights(shape) if weighted and n > 1 else None
    uniform = torch.rand(k - 1, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = ops.kmeans_plusplus(x, weight, n // 2, uniform)
    with served_by(serving):
        assert torch.equal(ops.kmeans_plusplus(*there((x, weight)), n // 2, uniform).cpu(), expected)


def test_kmeans_plusplus_of_millions_of_rows(serving):
    """More totals of 1024 rows than threads that draw, and more candidates than read the rows together."""
    x, _ = make((2_200_000, 2, 4), "lattice")
    uniform = torch.rand(3, 17, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = ops.kmeans_plusplus(x, None, 0, uniform)
    with served_by(serving):
        assert torch.equal(ops.kmeans_plusplus(x.to(DEVICE), None, 0, uniform).cpu(), expected)


def test_kmeans_plusplus_of_many_problems(serving):
    x, _ = make((90, 5, 4))
    offsets, first = torch.tensor([0, 20, 60, 90]), torch.tensor([3, 0, 29])
    uniform = torch.rand(3, 3, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = ops.kmeans_plusplus_batch(x, offsets, None, first, uniform)
    with served_by(serving):
        found = ops.kmeans_plusplus_batch(x.to(DEVICE), offsets, None, first, uniform)
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
def test_lloyd(serving, empty, dtype, weighted):
    x, c = make((150, 6, 12), dtype=dtype)
    offsets = torch.tensor([0, 40, 41, 150])
    starts = c.expand(3, 12, 6).clone()
    starts[:, 6:] += 50  # most of these begin without a row
    weight = weights((150, 6, 12)) if weighted else None
    arguments = {"max_iter": 8, "tol": 1e-3, "empty": empty, "seed": 3}
    expected = bits(tuple(ops.lloyd(x, offsets, starts, sample_weight=weight, **arguments)))
    with served_by(serving):
        found = ops.lloyd(x.to(DEVICE), offsets, starts.to(DEVICE), sample_weight=there(weight), **arguments)
    assert bits(tuple(found)) == expected


def assert_same_fit(serving, model, x, weight=None):
    """The same attributes from rows on either device, and from weights on either."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a fit has not converged, or found fewer clusters
        expected = fitted(model().fit(x, sample_weight=weight))
        with served_by(serving):
            found = model().fit(x.to(DEVICE), sample_weight=there(weight))
    assert found.cluster_centers_.is_cuda
    assert fitted(found) == expected
    with served_by(serving):
        assert torch.equal(found.predict(x.to(DEVICE)), found.labels_)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
def test_fits_with_clusters_that_empty(serving, empty, dtype, weighted):
    shape = (2000, 24, 60)
    x, c = make(shape, dtype=dtype)
    c[40:] += 30  # these begin without a row
    weight = weights(shape) if weighted else None
    assert_same_fit(
        serving, lambda: KMeans(60, init=c, n_init=1, max_iter=9, tol=0, empty=empty, random_state=2), x, weight
    )


@pytest.mark.parametrize("kind", ["normal", "lattice", "duplicates", "offset", "tiny", "equal"])
@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_fits_of_hard_data(serving, init, kind):
    x, _ = make((1500, 20, 1500), kind)
    assert_same_fit(serving, lambda: KMeans(17, init=init, n_init=2, max_iter=20, random_state=1), x)


@pytest.mark.parametrize("options", [{"spherical": True}, {"early_stop_threshold": 1e-4}, {"tol": 1e-2}], ids=str)
def test_fits_with_options(serving, options):
    x, _ = make((1500, 20, 8))
    x = unit(x) if "spherical" in options else x
    assert_same_fit(serving, lambda: KMeans(23, n_init=1, max_iter=30, random_state=0, **options), x)


@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
def test_a_small_fit_replays_a_graph(monkeypatch, serving, empty):
    capture, graphs = replay.capture, []

    def counted(*arguments):
        graphs.append(capture(*arguments))
        return graphs[-1]

    monkeypatch.setattr(replay, "capture", counted)
    x = make((2000, 24, 40))[0]
    assert_same_fit(serving, lambda: KMeans(40, random_state=0, tol=0, empty=empty), x)
    assert len(graphs) == 1


def test_a_fit_of_many_problems(serving):
    x, _ = make((7, 120, 10, 5))
    assert_same_fit(serving, lambda: KMeans(5, n_init=2, max_iter=10, random_state=0), x)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", [BisectingKMeans, MiniBatchKMeans])
def test_other_estimators(serving, kind, weighted):
    x, _ = make((900, 12, 6))
    options = {"batch_size": 128, "max_iter": 3} if kind is MiniBatchKMeans else {}
    weight = weights((900, 12, 6)) if weighted else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = kind(6, random_state=3, **options).fit(x, sample_weight=weight)
        with served_by(serving):
            found = kind(6, random_state=3, **options).fit(x.to(DEVICE), sample_weight=there(weight))
    for name in ("cluster_centers_", "labels_"):
        assert bits(getattr(found, name)) == bits(getattr(expected, name))
    assert float(found.inertia_) == float(expected.inertia_)


def test_whitening():
    """Products and eigenvectors are torch's, which adds up in another order there."""
    x, _ = make((5000, 40, 2))
    expected = PCAWhiten(16).fit_transform(x)
    found = PCAWhiten(16).fit_transform(x.to(DEVICE))
    assert bits(PCAWhiten(16).fit_transform(x.to(DEVICE))) == bits(found)
    torch.testing.assert_close(found.cpu(), expected)


@pytest.mark.parametrize("options", [{}, {"spherical": True}, {"init_method": 2}], ids=str)
def test_the_place_of_faiss(options):
    from dcfast import faiss

    x = make((5000, 9, 2))[0].numpy()
    results = []
    for gpu, data in ((False, x), (True, x), (False, torch.tensor(x, device=DEVICE))):
        model = faiss.Kmeans(9, 40, gpu=gpu, niter=6, **options)
        model.train(data)
        distances, labels = model.assign(x)
        results.append((model.centroids.tobytes(), model.obj.tobytes(), labels.tobytes(), distances.tobytes()))
    assert results[0] == results[1] == results[2]


def test_what_serves_a_gpu_is_told():
    facts = info.machine()
    assert torch.cuda.get_device_name(0) in facts["GPU"]
    assert facts["driver"].startswith("CUDA ")
    serving = {op: backend for op, (backend, _) in info.serving("cuda").items()}
    on_the_cpu_alone = [op for op, backend in serving.items() if backend is None]
    assert all(op.startswith(("batch_norm_relu_pool", "csr_", "winograd_conv2d")) for op in on_the_cpu_alone)
    assert set(serving.values()) == {"native", "triton", None}


# sobel_conv2d sums in another order than the CPU: it is compared with float64.


def _close(ours, exact, dtype):
    """Within the rounding of the operands, of the Sobel values and of the sum."""
    error = (ours.detach().double() - exact).norm() / exact.norm().clamp(min=1e-300)
    return bool(error <= {torch.float32: 2e-6, torch.float64: 1e-13, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype])


def _with_gradients(arguments, dtype):
    image, weight, bias, *rest = arguments
    leaves = [
        t if t is None or t.dtype == torch.uint8 else t.detach().to(dtype).requires_grad_()
        for t in (image, weight, bias)
    ]
    output = ops.sobel_conv2d(*leaves, *rest)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(0)).to(arguments[1].dtype)
    wanted = [t for t in leaves if t is not None and t.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad.to(output))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["contiguous", "channels_last", "strided", "bytes"])
@pytest.mark.parametrize("size", [*SIZES, (5, 224, 224, 96, (11, 11), (4, 4), (2, 2))], ids=str)
def test_sobel_conv2d_and_its_gradients(serving, size, kind, dtype):
    arguments = make_images(size, kind, dtype)
    exact = _with_gradients(arguments, torch.float64)
    with served_by(serving):
        ours, again = (_with_gradients(there(arguments), dtype) for _ in range(2))
    assert bits(ours) == bits(again)
    assert all(_close(mine.cpu(), true, dtype) for mine, true in zip(ours, exact, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("size", "filters", "kernel", "stride", "padding"),
    [
        ((33, 127), 3, (3, 4), [3, 5], [1, 2]),  # several tiles, runs that are not full
        ((70, 150), 2, (5, 7), [33, 70], [4, 3]),  # strides longer than a tile
        ((60, 70), 20, (35, 70), [1, 1], [16, 34]),  # a kernel of several parts
    ],
)
def test_image_gradients_of_any_kernel_and_stride(size, filters, kernel, stride, padding, dtype):
    generator = torch.Generator().manual_seed(0)
    out = [(i + 2 * p - k) // s + 1 for i, k, s, p in zip(size, kernel, stride, padding, strict=True)]
    grad = torch.randn(2, filters, *out, generator=generator).to(dtype)
    weight = torch.randn(filters, 2, *kernel, generator=generator).to(dtype)
    backward = torch.ops.dcfast.sobel_conv2d_backward_image
    exact = backward(grad.double(), weight.double(), size, stride, padding, None)
    ours = backward(grad.to(DEVICE), weight.to(DEVICE), size, stride, padding, None)
    assert _close(ours.cpu(), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_epilogue_of_sobel_conv2d(serving, dtype):
    arguments = make_images(SIZES[0], "bytes", dtype)
    generator = torch.Generator().manual_seed(1)
    scale, shift = (torch.randn(SIZES[0][3], generator=generator) for _ in range(2))
    wide = [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in arguments]
    exact = ops.sobel_conv2d(*wide, scale=scale, shift=shift, relu=True)
    with served_by(serving):
        ours = ops.sobel_conv2d(*there(arguments), scale=there(scale), shift=there(shift), relu=True)
    assert _close(ours.cpu(), exact, dtype)
