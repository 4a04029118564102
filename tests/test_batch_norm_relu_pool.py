"""batch_norm_relu_pool: every backend against torch's three ops in float64, its derivatives, and its determinism."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcfast import ops
from dcfast.ops import _native

# N, C, H, W, kernel, stride: windows side by side, overlapping, with gaps, none; channels around the lanes; bands.
SIZES = [
    (3, 5, 7, 9, 2, 2),
    (2, 16, 8, 8, 2, 2),
    (4, 24, 11, 12, 3, 2),
    (2, 9, 5, 6, 1, 1),
    (2, 33, 6, 6, 3, 1),
    (2, 8, 9, 9, 2, 3),
    (1, 1, 15, 15, 15, 1),
    (2, 1, 3, 3, 1, 1),
    (2, 70, 40, 41, 3, 2),
    (1, 40, 21, 50, 4, 3),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def make(size, dtype=torch.float64, layout=torch.contiguous_format, seed=0):
    n, channels, height, width, kernel, stride = size
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, channels, height, width, generator=generator, dtype=torch.float64) * 2 + 3
    weight, bias = (torch.randn(channels, generator=generator, dtype=torch.float64) for _ in range(2))
    leaves = [x.to(dtype).to(memory_format=layout), weight.to(dtype), bias.to(dtype)]
    return leaves, (kernel, stride)


def torchs(x, weight, bias, kernel, stride, mean=None, variance=None):
    mean, variance = (None if m is None else m.to(x.dtype) for m in (mean, variance))
    normal = F.batch_norm(x, mean, variance, weight, bias, training=mean is None)
    return F.max_pool2d(torch.relu(normal), kernel, stride)


def ours(x, weight, bias, kernel, stride, mean=None, variance=None):
    return ops.batch_norm_relu_pool(x, weight, bias, mean, variance, kernel_size=kernel, stride=stride)[0]


def with_gradients(op, leaves, rest, dtype):
    leaves = [leaf.to(dtype).requires_grad_() for leaf in leaves]
    output = op(*leaves, *rest)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def assert_as_good_as_torch(leaves, rest):
    """In norm at most twice torch's error, or some units of the last place."""
    dtype = leaves[0].dtype
    exact, torchs_own, found = (
        with_gradients(op, leaves, rest, kind) for op, kind in ((torchs, torch.float64), (torchs, dtype), (ours, dtype))
    )
    for one, theirs, true in zip(found, torchs_own, exact, strict=True):
        assert one.shape == true.shape
        assert error(one, true) <= max(2 * error(theirs, true), 64 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_output_and_gradients(cpu_backend, size, dtype, layout):
    assert_as_good_as_torch(*make(size, dtype, layout))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
def test_given_moments(cpu_backend, size, layout):
    (x, weight, bias), pool = make(size, torch.float32, layout)
    moments = (torch.randn(size[1]), torch.rand(size[1]) + 0.5)
    assert_as_good_as_torch([x, weight, bias], (*pool, *moments))
    _, *used = ops.batch_norm_relu_pool(x, weight, bias, *moments)
    assert all(torch.equal(a, b.double()) for a, b in zip(used, moments, strict=True))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_geometry(data):
    kernel, stride = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    height, width = (kernel + data.draw(st.integers(1, 30)) for _ in range(2))
    size = (data.draw(st.integers(2, 4)), data.draw(st.integers(1, 40)), height, width, kernel, stride)
    with ops.backend("native"):
        assert_as_good_as_torch(*make(size, torch.float64, data.draw(st.sampled_from(LAYOUTS))))


def test_layouts_of_output_and_gradient(cpu_backend):
    for layout in LAYOUTS:
        leaves, rest = make(SIZES[2], torch.float32, layout)
        output, by_x, *_ = with_gradients(ours, leaves, rest, torch.float32)
        assert output.is_contiguous(memory_format=torch.channels_last)
        assert by_x.is_contiguous(memory_format=layout)
    cut = torch.randn(2, 6, 9, 16)[..., ::2].requires_grad_()  # neither: read as contiguous
    expected = torchs(cut, *(leaf[:6] for leaf in make(SIZES[1], torch.float32)[0][1:]), 2, 2)
    found = ours(cut, *(leaf[:6] for leaf in make(SIZES[1], torch.float32)[0][1:]), 2, 2)
    torch.testing.assert_close(found, expected)


def test_a_mean_far_from_zero(cpu_backend):
    # Sums of squares of float32 would leave nothing of this variance.
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) + 1e4
    _, mean, variance = ops.batch_norm_relu_pool(x, torch.ones(3), torch.zeros(3))
    true_variance, true_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, true_mean, rtol=1e-8, atol=0)
    torch.testing.assert_close(variance, true_variance, rtol=1e-5, atol=0)


def test_equal_values_give_their_gradient_to_the_first(cpu_backend):
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    constants = (torch.ones(1), torch.zeros(1), torch.zeros(1), torch.ones(1))
    ops.batch_norm_relu_pool(x, *constants, kernel_size=2, stride=2)[0].sum().backward()
    first = torch.zeros(4, 4)
    first[::2, ::2] = 1
    torch.testing.assert_close(x.grad[0, 0], first)


def test_nan_and_infinity(cpu_backend):
    constants = (torch.ones(2), torch.zeros(2), torch.zeros(2), torch.ones(2))
    for at in itertools.product((0, 1), repeat=2):
        x = torch.randn(1, 2, 4, 4)
        x[0, 0, at[0], at[1]] = torch.nan
        output = ops.batch_norm_relu_pool(x, *constants, kernel_size=2, stride=2)[0]
        assert output[0, 0, 0, 0].isnan()
        assert int(output.isnan().sum()) == 1
    x[0, 0, at[0], at[1]] = torch.inf
    assert ops.batch_norm_relu_pool(x, *constants, kernel_size=2, stride=2)[0][0, 0, 0, 0] == torch.inf
    output, mean, _ = ops.batch_norm_relu_pool(x, torch.ones(2), torch.zeros(2))
    assert output[:, 0].isnan().any()
    assert not output[:, 1].isnan().any()
    assert not mean[0].isfinite()


def test_no_images(cpu_backend):
    x = torch.zeros(0, 3, 4, 4, requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    output = ours(x, weight, torch.zeros(3), 2, 2, torch.zeros(3), torch.ones(3))
    assert output.shape == (0, 3, 2, 2)
    output.sum().backward()
    assert x.grad.shape == x.shape
    assert torch.equal(weight.grad, torch.zeros(3))


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_bits_for_every_thread_count_slice_and_instruction_set(monkeypatch, isa, dtype, layout):
    leaves, rest = make((7, 21, 30, 31, 3, 2), dtype, layout)
    with ops.backend("native"):
        monkeypatch.setattr(_native, "threads", lambda *_: 1)
        expected = with_gradients(ours, leaves, rest, dtype)
        monkeypatch.setenv("DCFAST_ISA", isa)
        for threads in (1, 2, 3):
            monkeypatch.setattr(_native, "threads", lambda *_, threads=threads: threads)
            assert all(map(torch.equal, with_gradients(ours, leaves, rest, dtype), expected))
        monkeypatch.setattr(_native, "slices", lambda n, *_: ((i, i + 1) for i in range(n)))
        assert all(map(torch.equal, with_gradients(ours, leaves, rest, dtype), expected))


def test_gradcheck(cpu_backend):
    for size, of_batch in itertools.product(((2, 3, 5, 6, 2, 2), (2, 2, 5, 5, 3, 1)), (True, False)):
        (x, weight, bias), pool = make(size)
        moments = () if of_batch else (torch.zeros(size[1]), torch.ones(size[1]))
        leaves = [leaf.requires_grad_() for leaf in (x, weight, bias)]
        assert torch.autograd.gradcheck(lambda *leaves: ours(*leaves, *pool, *moments), leaves)  # noqa: B023


def test_a_second_derivative_is_refused(cpu_backend):
    leaves, pool = make((2, 3, 5, 6, 2, 2))
    leaves = [leaf.requires_grad_() for leaf in leaves]
    gradients = torch.autograd.grad(ours(*leaves, *pool).square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradients[0].sum().backward()


@pytest.mark.parametrize("needs", [True, False])
def test_opcheck(cpu_backend, needs):
    (x, weight, bias), pool = make((2, 5, 6, 7, 2, 2), torch.float32)
    leaves = [leaf.requires_grad_(needs) for leaf in (x, weight, bias)]
    torch.library.opcheck(torch.ops.dcfast.batch_norm_relu_pool, (*leaves, None, None, 1e-5, *pool))
    moments = (torch.zeros(5), torch.ones(5))
    torch.library.opcheck(torch.ops.dcfast.batch_norm_relu_pool, (*leaves, *moments, 1e-5, *pool))
    output, taken, mean, variance = torch.ops.dcfast.batch_norm_relu_pool(*leaves, None, None, 1e-5, *pool)
    arguments = (output.detach(), taken, x.detach(), weight.detach(), mean, variance, 1e-5, True, *pool)
    torch.library.opcheck(torch.ops.dcfast.batch_norm_relu_pool_backward, arguments)


def test_compiles_whole(cpu_backend):
    leaves, rest = make(SIZES[0], torch.float32)
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    eager, traced = (with_gradients(op, leaves, rest, torch.float32) for op in (ours, compiled))
    assert all(map(torch.equal, eager, traced))


def test_moments_have_no_derivative(cpu_backend):
    (x, weight, bias), _ = make(SIZES[0], torch.float32)
    _, mean, variance = ops.batch_norm_relu_pool(x.requires_grad_(), weight, bias)
    assert not mean.requires_grad
    assert not variance.requires_grad


X, ONE = torch.zeros(2, 3, 4, 4), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((X.half(), ONE, ONE), TypeError, "x has dtype torch.float16: expected float32 or float64"),
        ((X[0], ONE, ONE), ValueError, r"x has shape \(3, 4, 4\): expected \(N, C, H, W\)"),
        ((X, ONE[:2], ONE), ValueError, r"weight has shape \(2,\): expected \(3,\)"),
        ((X, ONE, ONE.long()), TypeError, "bias has dtype torch.int64"),
        ((X, ONE, ONE, ONE), ValueError, "mean and variance go together"),
        ((X, ONE, ONE, ONE, ONE[:1]), ValueError, r"variance has shape \(1,\)"),
        ((X, ONE, ONE, None, None, 1e-5, 5), ValueError, "kernel_size is 5 and x has shape"),
        ((X, ONE, ONE, None, None, 1e-5, 16), ValueError, "kernel_size is 16: expected 1 to 15"),
        ((X, ONE, ONE, None, None, 1e-5, 2, 0), ValueError, "stride is 0"),
        ((X[:1, :, :1, :1], ONE, ONE), ValueError, "a variance needs more than one value per channel"),
    ],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ops.batch_norm_relu_pool(*arguments)
