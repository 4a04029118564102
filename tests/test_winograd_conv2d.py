"""winograd_conv2d: every backend against torch's convolution in float64, its derivatives, and its determinism."""

import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dcfast import ops
from dcfast.nn import WinogradConv2d
from dcfast.ops import _native

# N, C, F, H, W: channels and filters around the lanes and the panels; whole tiles, parts of one, less than one; chunks.
SIZES = [
    (3, 5, 7, 8, 8),
    (2, 16, 32, 12, 4),
    (2, 33, 17, 9, 5),
    (1, 1, 1, 1, 1),
    (5, 24, 40, 3, 2),
    (1, 8, 100, 13, 30),
    (60, 3, 9, 4, 4),
    (30, 9, 16, 6, 7),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]

# Row i of the matrices of F(4x4, 3x3) for the point p_i, infinity last, by their definition.
POINTS = [Fraction(p) for p in ("0", "5/8", "-5/8", "3/2", "-3/2")]


def _polynomial(roots):
    """Coefficients of the product of x - root, the constant first."""
    found = [Fraction(1)]
    for root in roots:
        found = [a - root * b for a, b in zip([Fraction(0), *found], [*found, Fraction(0)], strict=True)]
    return found


def matrices():
    """A^T (4, 6), G (6, 3) and B^T (6, 6)."""
    others = [[q for q in POINTS if q != p] for p in POINTS]
    of_output = [[p**i for p in POINTS] + [Fraction(i == 3)] for i in range(4)]
    of_filter = []
    for p, rest in zip(POINTS, others, strict=True):
        divisor = Fraction(1)
        for q in rest:
            divisor *= p - q
        of_filter.append([p**k / divisor for k in range(3)])
    of_filter.append([Fraction(0), Fraction(0), Fraction(1)])
    of_input = [[*_polynomial(rest), Fraction(0)] for rest in others] + [_polynomial(POINTS)]
    return [torch.tensor([*map(list, m)], dtype=torch.float64) for m in (of_output, of_filter, of_input)]


def make(size, dtype=torch.float64, layout=torch.contiguous_format, seed=0):
    n, channels, filters, height, width = size
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, channels, height, width), (filters, channels, 3, 3), (filters,))
    x, weight, bias = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return [x.to(memory_format=layout), weight, bias]


def torchs(x, weight, bias):
    return F.conv2d(x, weight, bias, padding=1)


def with_gradients(op, leaves):
    leaves = [leaf.detach().clone(memory_format=torch.preserve_format).requires_grad_() for leaf in leaves]
    output = op(*leaves)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def error(found, exact):
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-300))


def assert_accurate(leaves):
    """In norm within 32 units of the last place, and not much further from the truth than torch's own."""
    exact = with_gradients(torchs, [leaf.double() for leaf in leaves])
    theirs, found = (with_gradients(op, leaves) for op in (torchs, ops.winograd_conv2d))
    for one, other, true in zip(found, theirs, exact, strict=True):
        assert one.shape == true.shape
        assert one.dtype == leaves[0].dtype
        assert error(one, true) <= max(8 * error(other, true), 16 * torch.finfo(one.dtype).eps)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_output_and_gradients(cpu_backend, size, dtype, layout):
    assert_accurate(make(size, dtype, layout))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_size(data):
    n, channels, filters = (data.draw(st.integers(1, most)) for most in (20, 70, 70))
    height, width = (data.draw(st.integers(1, 20)) for _ in range(2))
    with ops.backend("native"):
        assert_accurate(make((n, channels, filters, height, width), layout=data.draw(st.sampled_from(LAYOUTS))))


def padded(values, high, wide, before):
    height, width = values.shape[2:]
    return F.pad(values, (before, wide - width - before, before, high - height - before))


@pytest.mark.parametrize("kind", ["normal", "rectified", "mixed scales", "cancelling"])
def test_errors_stay_within_the_bound_of_the_algorithm(kind):
    """Element by element: the most that rounding can do in the transforms and the sum, by the definition's matrices."""
    n, channels, filters, side = 4, 48, 20, 8
    x, weight, _ = make((n, channels, filters, side, side), torch.float32, seed=3)
    if kind == "rectified":
        x = x.relu()
    elif kind == "mixed scales":
        x = x * torch.logspace(-6, 6, channels)[:, None, None]
    elif kind == "cancelling":
        x, weight = x.abs() + 100, weight - weight.mean((1, 2, 3), keepdim=True)
    with ops.backend("native"):
        found = ops.winograd_conv2d(x, weight)
    of_output, of_filter, of_input = (m.abs() for m in matrices())
    # 6 x 6 inputs for every 4 x 4 outputs, and the same sums with every term positive.
    patches = F.pad(x.double().abs(), (1, 1, 1, 1)).unfold(2, 6, 4).unfold(3, 6, 4)
    inputs = torch.einsum("ia,nchwab,jb->nchwij", of_input, patches, of_input)
    kernels = torch.einsum("ia,fcab,jb->fcij", of_filter, weight.double().abs(), of_filter)
    sums = torch.einsum("nchwij,fcij->nfhwij", inputs, kernels)
    largest = torch.einsum("ai,nfhwij,bj->nfhawb", of_output, sums, of_output).reshape(n, filters, side, side)
    # A term passes 2 x 4 roundings of the input's transform, 1 of the filter's, one for each channel, 2 x 4 of the
    # output's and that of the constants of G.
    bound = largest * (channels + 20) * torch.finfo(torch.float32).eps
    assert ((found.double() - torchs(x.double(), weight.double(), None)).abs() <= bound).all()
    # The bound is no empty one: it tells the algorithm's float32 from rounding to bfloat16.
    coarse = torchs(x.bfloat16().double(), weight.bfloat16().double(), None)
    assert kind == "mixed scales" or ((coarse - found.double()).abs() > bound).any()


def test_layouts(cpu_backend):
    leaves = make(SIZES[2], torch.float32)
    expected = ops.winograd_conv2d(*leaves)
    assert expected.is_contiguous(memory_format=torch.channels_last)
    x, weight, bias = leaves
    cut = torch.randn(*x.shape[:3], 2 * x.shape[3])[..., ::2]
    cut.copy_(x)
    turned = weight.transpose(0, 1).contiguous().transpose(0, 1)
    spread = torch.stack([bias, bias], 1)[:, 0]
    assert torch.equal(ops.winograd_conv2d(cut, turned, spread), expected)
    last = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(ops.winograd_conv2d(x, last, bias), expected)


def test_no_bias_and_no_images(cpu_backend):
    x, weight, bias = make(SIZES[0], torch.float32)
    torch.testing.assert_close(ops.winograd_conv2d(x, weight), ops.winograd_conv2d(x, weight, torch.zeros_like(bias)))
    none, weight = x[:0].requires_grad_(), weight.requires_grad_()
    output = ops.winograd_conv2d(none, weight, bias)
    assert output.shape == (0, 7, 8, 8)
    output.sum().backward()
    assert none.grad.shape == none.shape
    assert torch.equal(weight.grad, torch.zeros_like(weight))


def test_what_is_not_finite_stays_in_its_tiles(cpu_backend):
    x, weight, _ = make((2, 3, 4, 8, 8), torch.float32)
    expected = ops.winograd_conv2d(x, weight)
    for value in (torch.nan, torch.inf):
        spoilt = x.clone()
        spoilt[1, 2, 6, 6] = value
        output = ops.winograd_conv2d(spoilt, weight)
        assert not output[1, :, 5:8, 5:8].isfinite().any()
        assert torch.equal(output[0], expected[0])
        assert torch.equal(output[1, :, :4, :4], expected[1, :, :4, :4])


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_bits_for_every_thread_count_and_slice(monkeypatch, isa, dtype):
    leaves = make((29, 21, 37, 15, 14), dtype, torch.channels_last)
    monkeypatch.setenv("DCFAST_ISA", isa)
    with ops.backend("native"):
        monkeypatch.setattr(_native, "threads", lambda *_: 1)
        expected = with_gradients(ops.winograd_conv2d, leaves)
        for threads in (1, 2, 3):
            monkeypatch.setattr(_native, "threads", lambda *_, threads=threads: threads)
            assert all(map(torch.equal, with_gradients(ops.winograd_conv2d, leaves), expected))
        monkeypatch.setattr(_native, "slices", lambda n, *_: ((i, i + 1) for i in range(n)))
        assert all(map(torch.equal, with_gradients(ops.winograd_conv2d, leaves), expected))
        alone = ops.winograd_conv2d(leaves[0][11:12], *leaves[1:])
    assert torch.equal(alone, expected[0][11:12])
    exact = with_gradients(torchs, [leaf.double() for leaf in leaves])
    assert all(error(one, true) < 64 * torch.finfo(dtype).eps for one, true in zip(expected, exact, strict=True))


def test_gradcheck(cpu_backend):
    for size in ((2, 3, 2, 5, 6), (1, 2, 3, 4, 2)):
        leaves = [leaf.requires_grad_() for leaf in make(size)]
        assert torch.autograd.gradcheck(ops.winograd_conv2d, leaves)
        assert torch.autograd.gradgradcheck(ops.winograd_conv2d, leaves)


def test_only_the_gradients_that_are_asked_for(cpu_backend, monkeypatch):
    for needed in itertools.product((True, False), repeat=3):
        leaves = [leaf.requires_grad_(need) for leaf, need in zip(make(SIZES[0]), needed, strict=True)]
        if any(needed):
            ops.winograd_conv2d(*leaves).sum().backward()
        assert tuple(leaf.grad is not None for leaf in leaves) == needed


@pytest.mark.parametrize("needs", [True, False])
def test_opcheck(cpu_backend, needs):
    leaves = [leaf.requires_grad_(needs) for leaf in make(SIZES[0], torch.float32)]
    torch.library.opcheck(torch.ops.dcfast.winograd_conv2d, leaves)
    torch.library.opcheck(torch.ops.dcfast.winograd_conv2d, (*leaves[:2], None))
    x, grad = leaves[0].detach(), torch.randn(3, 7, 8, 8)
    torch.library.opcheck(torch.ops.dcfast.winograd_conv2d_backward_weight, (x, grad))


def test_compiles_whole(cpu_backend):
    leaves = make(SIZES[0], torch.float32)
    compiled = torch.compile(ops.winograd_conv2d, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, with_gradients(compiled, leaves), with_gradients(ops.winograd_conv2d, leaves)))


@pytest.mark.parametrize("bias", [True, False])
def test_module_stands_for_torchs(monkeypatch, bias):
    torch.manual_seed(0)
    layer, plain = WinogradConv2d(5, 7, bias), torch.nn.Conv2d(5, 7, 3, padding=1, bias=bias)
    plain.load_state_dict(layer.state_dict())
    x, served, op = torch.randn(8, 5, 16, 16), [], ops.winograd_conv2d
    monkeypatch.setattr(ops, "winograd_conv2d", lambda *args: served.append(args[0].shape) or op(*args))
    torch.testing.assert_close(layer(x), plain(x))
    assert served == [x.shape]
    for size in ((2, 5, 9, 9), (999, 5, 2, 2)):  # too few tiles, and too little in each
        few = torch.randn(size)
        assert torch.equal(layer(few), plain(few))
    assert served == [x.shape]
    monkeypatch.setattr(ops, "winograd_conv2d", None)  # from here on torch's own
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer(x), plain(x))
    assert torch.equal(layer(x[0]), plain(x[0]))
    assert torch.equal(layer.bfloat16()(x.bfloat16()), plain.bfloat16()(x.bfloat16()))


X, W = torch.zeros(2, 3, 4, 4), torch.zeros(5, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ((X.half(), W), TypeError, "x has dtype torch.float16: expected float32 or float64"),
        ((X[0], W), ValueError, r"x has shape \(3, 4, 4\): expected \(N, C, H, W\)"),
        ((X[:, :, :0], W), ValueError, r"x has shape \(2, 3, 0, 4\)"),
        ((X, W[:, :2]), ValueError, r"weight has shape \(5, 2, 3, 3\): expected \(filters, 3, 3, 3\)"),
        ((X, W[..., :1]), ValueError, "weight has shape"),
        ((X, W[:0]), ValueError, "weight has shape"),
        ((X, W.double()), TypeError, "weight has dtype torch.float64: expected torch.float32, that of x"),
        ((X, W, torch.zeros(5).double()), TypeError, "bias has dtype torch.float64"),
        ((X, W, torch.zeros(4)), ValueError, r"bias has shape \(4,\): expected \(5,\), one value per filter"),
    ],
)
def test_errors(arguments, kind, message):
    with pytest.raises(kind, match=message):
        ops.winograd_conv2d(*arguments)


def test_errors_of_the_gradient():
    for grad, kind in ((X[:1], ValueError), (X[..., :2], ValueError), (X.double(), TypeError), (X[0], ValueError)):
        with pytest.raises(kind, match="grad has"):
            torch.ops.dcfast.winograd_conv2d_backward_weight(X, grad)
