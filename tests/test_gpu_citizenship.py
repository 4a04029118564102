"""On a GPU every op keeps to the rules of the house: streams, graphs, no waiting, devices, tracing, autocast, CuPy."""

import contextlib

import numpy as np
import pytest
import torch
from support.gpu import DEVICE, SERVING, bits, fitted, served_by, there
from support.sobel import SIZES
from support.sobel import make as make_images

from dcfast import KMeans, nn, ops

pytestmark = pytest.mark.gpu

N, D, K = 700, 33, 45
# Images of AlexNet's geometry; AlexNet's loss.
IMAGES = SIZES[0]

# Standard normal numbers of float32, as many as here: their units, and words to sum them.
LOW = {device: torch.full((D,), -60, device=device) for device in ("cpu", *["cuda"] * torch.cuda.is_available())}
N_WORDS = 2


def points(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator)
    return x, x[:K] + 0.25 * torch.randn(K, D, generator=generator)


def labelled(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, K, (N,), generator=generator)
    return points(seed)[0], labels, torch.rand(N, generator=generator, dtype=torch.float64)


def summed(seed):
    x, labels, _ = labelled(seed)
    with ops.backend("native"):
        sums = ops.accumulate(x, labels, K, grid=grid_like(x))
    return sums.words, sums.counts, sums.total, points(seed)[1]


def grid_like(x):
    """One that holds the rows of every seed, on the device of x."""
    return ops.Grid(LOW[x.device.type].to(x.device), N_WORDS)


def accumulate(x, labels, _):
    sums = ops.accumulate(x, labels, K, grid=grid_like(x))
    return sums.words, sums.counts, sums.total


def reassign(x, c):
    out = torch.full((N,), -7, device=x.device)
    unknown = torch.full((N,), -1, device=x.device)
    return ops.reassign(x, c, c, unknown, ops.distance_bounds(N, D, x.device), out), out


def running_sums(x, labels, _):
    running = ops.RunningSums(K, grid_like(x), device=x.device)
    running.move(x, labels, torch.full_like(labels, -1))
    running.move(x, labels.roll(1), labels)
    return running.words, running.counts


def means(words, counts, total, c):
    return ops.means(ops.ClusterSums(words, counts, total, grid_like(words)), c)


def iteration(x, c):
    """What a captured loop replays: labels, sums, means, and clusters split where they are empty."""
    labels = ops.assign(x, c)
    sums = ops.accumulate(x, labels, K, grid=grid_like(x))
    seed = torch.full((), 3, device=x.device)
    return labels, *ops.split_empty(ops.means(sums, c), sums.counts, seed, sums.counts.sum())


def images(seed, kind="bytes", dtype=torch.float32):
    return make_images(IMAGES, kind, dtype, seed)[:3]


def sobel(image, weight, bias):
    # Numbers of the caller's: they reach the device without a copy that waits.
    return ops.sobel_conv2d(image, weight, bias, IMAGES[5], IMAGES[6], (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def sobel_gradients(image, weight, bias):
    leaves = [weight.detach().requires_grad_(), bias.detach().requires_grad_()]
    output = sobel(image, *leaves)
    return torch.autograd.grad(output, leaves, torch.ones_like(output))


def sobel_image_gradient(image, weight, bias):
    image = image.detach().requires_grad_()
    output = sobel(image, weight, bias)
    return torch.autograd.grad(output, image, torch.ones_like(output))


def float_images(seed):
    return images(seed, "contiguous")


def sobel_epilogue(image, weight, bias):
    return ops.sobel_conv2d(image, weight, bias, scale=bias, shift=bias, relu=True)


def logits(seed):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(1000, (64,), generator=generator)
    return torch.randn(64, 1000, generator=generator), target, torch.randint(0, 9, (1000,), generator=generator) + 1


def loss_and_gradient(x, target, sizes):
    x = x.detach().requires_grad_()
    loss = ops.weighted_cross_entropy(x, target, sizes, label_smoothing=0.1)
    return loss.detach(), *torch.autograd.grad(loss, x)


# Name -> (call, its inputs by a seed).
CALLS = {
    "assign": (ops.assign, points),
    "reassign": (reassign, points),
    "accumulate": (accumulate, labelled),
    "accumulate_moves": (running_sums, labelled),
    "means": (means, summed),
    "column_range": (lambda x, labels, weight: ops.column_range(x, weight), labelled),
    "point_distances": (lambda x, c: ops.point_distances(x, c, torch.zeros(N, device=x.device).long()), points),
    "exact_sum": (lambda x, labels, weight: ops.exact_sum(weight), labelled),
    "inertia": (lambda x, c: ops.inertia(x, c, torch.ones(N, device=x.device).long()), points),
    "split_empty": (lambda words, counts, total, c: ops.split_empty(c, counts % 2 * counts, 3, 4), summed),
    "iteration": (iteration, points),
    "sobel_conv2d": (sobel, images),
    "sobel_conv2d_backward": (sobel_gradients, images),
    "sobel_conv2d_backward_image": (sobel_image_gradient, float_images),
    "sobel_conv2d_epilogue": (sobel_epilogue, images),
    "weighted_cross_entropy": (loss_and_gradient, logits),
    "inverse_size_weights": (lambda x, target, sizes: ops.inverse_size_weights(sizes), logits),
}
BACKWARD = ("sobel_conv2d_backward", "sobel_conv2d_backward_image")
EVERY_CALL = pytest.mark.parametrize(("call", "inputs"), CALLS.values(), ids=CALLS)


@pytest.fixture(params=SERVING, autouse=True)
def serving(request):
    """Every test by each backend."""
    return request.param


@contextlib.contextmanager
def no_waiting():
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@EVERY_CALL
def test_nothing_waits_for_the_device(serving, call, inputs):
    arguments = there(inputs(0))
    with served_by(serving):
        expected = bits(call(*arguments))  # compiles and loads what it needs
        arguments = there(inputs(0))
        torch.cuda.synchronize()
        with no_waiting():
            found = call(*arguments)
    assert bits(found) == expected


def test_a_wait_would_be_noticed():
    x = torch.ones(3, device="cuda")
    with no_waiting(), pytest.raises(RuntimeError, match="synchroniz"):
        x.sum().item()


def test_kmeans_plusplus_does_not_wait(serving):
    x = there(points(0)[0])
    uniform = torch.rand(9, 3, dtype=torch.float64)
    with served_by(serving):
        expected = ops.kmeans_plusplus(x, None, 0, uniform)
        with no_waiting():
            rows = ops.kmeans_plusplus(x, None, 0, uniform)
    assert torch.equal(rows, expected)


@EVERY_CALL
def test_a_stream_of_the_callers(serving, call, inputs):
    """The data come late and on that stream: a kernel on any other would read what was there before."""
    arguments = there(inputs(0))
    with served_by(serving):
        expected = bits(call(*there(inputs(1))))
        call(*arguments)
        new = there(inputs(1))
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(50_000_000)  # some 30 ms
            for old, replacement in zip(arguments, new, strict=True):
                old.copy_(replacement)
            found = call(*arguments)
        stream.synchronize()
        assert bits(found) == expected


@EVERY_CALL
def test_a_captured_graph_works_on_new_data(serving, call, inputs):
    static = there(inputs(0))
    with served_by(serving):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                call(*static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = call(*static)
        for seed in (1, 2):
            new = there(inputs(seed))
            for old, replacement in zip(static, new, strict=True):
                old.copy_(replacement)
            graph.replay()
            assert bits(found) == bits(call(*new))


@EVERY_CALL
def test_deterministic_mode(serving, call, inputs):
    arguments = there(inputs(0))
    with served_by(serving):
        expected = bits(call(*arguments))
        torch.use_deterministic_algorithms(True)
        try:
            assert bits(call(*arguments)) == expected
        finally:
            torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    "name",
    sorted(set(CALLS) - {*BACKWARD, "weighted_cross_entropy", "accumulate_moves"}),
)
def test_compiles_without_a_graph_break(serving, name):
    call, inputs = CALLS[name]
    arguments = there(inputs(0))
    torch.compiler.reset()
    with served_by(serving):
        expected = call(*arguments)
        found = torch.compile(call, fullgraph=True)(*arguments)
    if name == "inverse_size_weights":  # torch's own division, which its compiler rounds otherwise
        torch.testing.assert_close(found, expected)
    else:
        assert bits(found) == bits(expected)


def test_a_training_step_compiles(serving):
    image, weight, bias = there(images(0))
    target = torch.randint(12, (len(image),), device=DEVICE)
    sizes = torch.arange(1, 13, device=DEVICE)
    top = torch.randn(12, weight.shape[0], device=DEVICE)

    def loss_of(weight, bias):
        features = sobel(image, weight, bias).relu().mean((2, 3))
        return ops.weighted_cross_entropy(features @ top.T, target, sizes)

    found = []
    torch.compiler.reset()
    with served_by(serving):
        for forward in (loss_of, torch.compile(loss_of, fullgraph=True)):
            leaves = [weight.clone().requires_grad_(), bias.clone().requires_grad_()]
            loss = forward(*leaves)
            found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for eager, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, eager)


OPCHECKED = (
    *("assign", "reassign", "accumulate", "accumulate_moves", "means", "column_range", "point_distances", "exact_sum"),
    *("split_empty", "kmeans_plusplus", "sobel_conv2d", "sobel_conv2d_backward_weight", "sobel_conv2d_backward_image"),
    "weighted_cross_entropy",
)


def opcheck_arguments(name):
    """On the GPU; those that are differentiable are leaves."""
    x, labels, weight = there(labelled(0))
    c = there(points(0)[1])
    words, counts, total, _ = there(summed(0))
    low, n_words = grid_like(x)
    out, bounds = torch.zeros_like(labels), ops.distance_bounds(N, D, DEVICE)
    seed = torch.tensor(3, device=DEVICE)
    image, filters, bias = there(images(0, "contiguous"))
    leaves = [t.requires_grad_() for t in (image, filters, bias)]
    constants = (None, None)
    grad = torch.randn(sobel(*leaves).shape, device=DEVICE)
    scores, target, sizes = there(logits(0))
    return {
        "assign": (x, c),
        "reassign": (x, c + 1, c, ops.assign(x, c), bounds, out),
        "accumulate": (x, labels, K, None, low, n_words),
        "accumulate_moves": (words.clone(), counts.clone(), x, labels.flip(0), labels, None, low),
        "means": (words, low, total, c),
        "column_range": (x, weight),
        "point_distances": (x, c, labels, weight),
        "exact_sum": (weight,),
        "split_empty": (c, counts, seed, seed),
        "kmeans_plusplus": (x, weight, 0, torch.rand(4, 2, dtype=torch.float64)),
        "sobel_conv2d": (*leaves, [4, 4], [2, 2], *constants, None, None, False),
        "sobel_conv2d_backward_weight": (grad, leaves[0], [11, 11], [4, 4], [2, 2], *constants),
        "sobel_conv2d_backward_image": (grad, leaves[1], list(image.shape[2:]), [4, 4], [2, 2], None),
        "weighted_cross_entropy": (scores.requires_grad_(), target, sizes, -100, 0.1, "mean"),
    }[name]


@pytest.mark.parametrize("name", OPCHECKED)
def test_opcheck(serving, name):
    with served_by(serving):
        torch.library.opcheck(getattr(torch.ops.dcfast, name).default, opcheck_arguments(name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(serving, dtype):
    """A network's ops run in half precision; ours take what they are given, and gradients come back to the leaves."""
    torch.manual_seed(0)
    layer = nn.SobelConv2d(8, 5, stride=2, padding=2).to(DEVICE)
    top = torch.nn.Linear(8, 12).to(DEVICE)
    loss_of = nn.InverseSizeCrossEntropy(torch.arange(1, 13)).to(DEVICE)
    image, target = torch.randint(256, (6, 3, 32, 32), dtype=torch.uint8, device=DEVICE), torch.arange(6, device=DEVICE)

    def loss():
        scores = top(layer(image).relu().mean((2, 3)))
        return scores.dtype, loss_of(scores, target)

    with served_by(serving):
        _, exact = loss()
        with torch.autocast("cuda", dtype):
            half, value = loss()
        value.backward()
    assert half == dtype
    assert abs(float(value) - float(exact)) < 0.02 * abs(float(exact))
    for parameter in (*layer.parameters(), *top.parameters()):
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any()


@EVERY_CALL
def test_a_device_that_is_not_the_current_one(serving, call, inputs):
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    arguments = inputs(0)
    with served_by(serving):
        expected = bits(call(*there(arguments)))
        with torch.cuda.device(0):
            elsewhere = tuple(t.to("cuda:1") for t in arguments)
            found = call(*elsewhere)
            assert torch.cuda.current_device() == 0
    assert bits(found) == expected


def test_cupy_arrays_on_a_stream_of_cupys(serving):
    cupy = pytest.importorskip("cupy", reason="no CuPy")
    x = points(0)[0].numpy()
    expected = KMeans(12, n_init=1, random_state=0).fit(x)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream, served_by(serving):
        rows = cupy.zeros(x.shape, dtype=x.dtype)
        late = cupy.zeros((4096, 4096), dtype=cupy.float32)
        for _ in range(300):
            late = cupy.sqrt(late + 1)  # keeps the stream busy before the data come
        rows += cupy.asarray(x)
        model = KMeans(12, n_init=1, random_state=0).fit(rows)
        labels, centres = model.labels_ + 0, model.cluster_centers_ + 0
        again = model.predict(rows)
    stream.synchronize()
    for name, array in (("labels_", labels), ("cluster_centers_", centres), ("labels_", again)):
        assert isinstance(array, cupy.ndarray)
        np.testing.assert_array_equal(cupy.asnumpy(array), getattr(expected, name))
    assert float(model.inertia_) == expected.inertia_


def test_two_fits_at_once_on_two_streams(serving):
    """Nothing is shared between calls: neither workspaces nor constants."""
    x = [there(points(seed)[0]) for seed in (0, 1)]

    def fit(rows):
        return KMeans(20, n_init=1, max_iter=5, tol=0, random_state=0).fit(rows)

    with served_by(serving):
        expected = [fitted(fit(rows)) for rows in x]
        torch.cuda.synchronize()
        streams = [torch.cuda.Stream() for _ in x]
        models = []
        for _ in range(3):
            for rows, stream in zip(x, streams, strict=True):
                with torch.cuda.stream(stream):
                    models.append(fit(rows))
        torch.cuda.synchronize()
    assert [fitted(model) for model in models] == 3 * expected
