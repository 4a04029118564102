"""linear_weighted_cross_entropy: against torch's two steps, with their own error as the measure, in bounded memory."""

import sys

import numpy as np
import pytest
import torch
from support import head_memory, memory
from support.cross_entropy import DTYPES, REDUCTIONS, longest, oracle
from torch.nn import functional as F

import dcfast
from dcfast import ops
from dcfast.ops.linear_weighted_cross_entropy import blocks

# One row, no row, and several blocks of rows (see _small_blocks), the last one shorter.
SHAPES = [(1, 1, 2), (0, 3, 5), (23, 9, 31), (40, 3, 130)]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "_LOGITS", {"cpu": 310, "cuda": 310})


def make(n, d, k, dtype, bias=True):
    generator = torch.Generator().manual_seed(n + k)
    operands = [torch.randn(*shape, generator=generator).to(dtype) for shape in ((n, d), (k, d))]
    operands.append(torch.randn(k, generator=generator).to(dtype) if bias else None)
    target = torch.randint(k, (n,), generator=generator)
    target[3::7] = -100
    sizes = torch.randint(0, 40, (k,), generator=generator)
    sizes[target[target >= 0]] += 1
    return operands, target, sizes


def ours(input, weight, bias, target, sizes, **arguments):
    return ops.linear_weighted_cross_entropy(input, weight, target, sizes, bias, **arguments)


def by_logits(input, weight, bias, target, sizes, **arguments):
    """The op that leaves the gradients to its backward, whatever the reduction."""
    losses = torch.ops.dcfast.linear_weighted_cross_entropy(
        input, weight, bias, target, sizes, -100, arguments["label_smoothing"]
    )
    loss = losses if arguments["reduction"] == "none" else losses.sum()
    if arguments["reduction"] == "mean":
        weights = ops.inverse_size_weights(sizes.double())
        loss = loss / torch.where(target == -100, 0.0, weights[target.clamp(min=0)]).sum()
    return loss.to(input.dtype)


def two_steps(input, weight, bias, target, sizes, **arguments):
    of_class = ops.inverse_size_weights(sizes.double()).to(input.dtype)
    return F.cross_entropy(F.linear(input, weight, bias), target, weight=of_class, **arguments)


def with_gradients(function, operands, target, sizes, upstream, **arguments):
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in operands]
    loss = function(*leaves, target, sizes, **arguments)
    loss.backward(upstream.to(loss.dtype).expand(loss.shape))
    return [loss.detach(), *(leaf.grad for leaf in leaves if leaf is not None)]


def exact(operands, target, sizes, upstream, **arguments):
    """The loss and its gradients in numpy's longest floats, each with what its terms come to without their signs."""
    input, weight, bias = (0 if t is None else longest(t) for t in operands)
    with np.errstate(all="ignore"):
        loss, gradient, _ = oracle(input @ weight.T + bias, target, sizes, upstream, **arguments, ignore_index=-100)
    factors = [(gradient, weight), (gradient.T, input)]
    factors += [] if operands[2] is None else [(gradient.T, np.ones(len(input)))]
    return [(loss, abs(loss)), *((a @ b, abs(a) @ abs(b)) for a, b in factors)]


def assert_accurate(results, peers, values):
    """At most twice the error of torch's two steps, and a rounding of the terms where those happen to be exact."""
    for result, peer, (value, terms) in zip(results, peers, values, strict=True):
        assert (result.dtype, result.shape) == (peer.dtype, peer.shape)
        ours, theirs = (longest(t.cpu()) for t in (result, peer))
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(value))
        if value.size > 0 and not np.isnan(value).any():
            error, allowed, size = (np.sqrt((t**2).sum()) for t in (ours - value, theirs - value, terms))
            # As for weighted_cross_entropy: three where the sums are no wider than the result.
            roundings = 3 if result.dtype == torch.float64 else 1
            assert error <= 2 * allowed + roundings * torch.finfo(result.dtype).eps * size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "d", "k"), SHAPES)
def test_error_is_at_most_twice_that_of_torch(cpu_backend, n, d, k, bias, dtype):
    operands, target, sizes = make(n, d, k, dtype, bias)
    upstream = torch.tensor(-1.5, dtype=dtype)
    for smoothing, reduction in ((0.0, "mean"), (0.1, "sum"), (0.1, "none")):
        arguments = {"label_smoothing": smoothing, "reduction": reduction}
        case = (operands, target, sizes, upstream)
        theirs, true = with_gradients(two_steps, *case, **arguments), exact(*case, **arguments)
        for function in (ours, by_logits):
            assert_accurate(with_gradients(function, *case, **arguments), theirs, true)


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_that_are_asked_for(cpu_backend, wanted):
    operands, target, sizes = make(23, 9, 31, torch.float32)
    expected = with_gradients(two_steps, operands, target, sizes, torch.tensor(1.0))[1:]
    for function in (ours, lambda *a: by_logits(*a, label_smoothing=0.0, reduction="mean")):
        leaves = [t.clone().requires_grad_(asked) for t, asked in zip(operands, wanted, strict=True)]
        function(*leaves, target, sizes).backward()
        for leaf, asked, gradient in zip(leaves, wanted, expected, strict=True):
            assert (leaf.grad is not None) == asked
            if asked:
                torch.testing.assert_close(leaf.grad, gradient)


@pytest.mark.parametrize("function", [ours, by_logits])
def test_gradcheck(cpu_backend, function):
    operands, target, sizes = make(5, 3, 4, torch.float64)
    for reduction in REDUCTIONS:
        assert torch.autograd.gradcheck(
            lambda *t, reduction=reduction: function(*t, target, sizes, label_smoothing=0.1, reduction=reduction),
            [t.requires_grad_() for t in operands],
        )


@pytest.mark.parametrize("upstream", [1.0, -0.5])
def test_a_retained_graph_gives_the_gradients_again(cpu_backend, upstream):
    operands, target, sizes = make(23, 9, 31, torch.float64)
    upstream = torch.tensor(upstream, dtype=torch.float64)
    expected = with_gradients(two_steps, operands, target, sizes, upstream)[1:]
    leaves = [t.requires_grad_() for t in operands]
    loss = ours(*leaves, target, sizes)
    for times in (1, 2, 3):
        loss.backward(upstream, retain_graph=True)  # adds to the tensors that the first one handed out
        for leaf, gradient in zip(leaves, expected, strict=True):
            torch.testing.assert_close(leaf.grad, times * gradient)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_second_derivative_is_refused(cpu_backend, reduction):
    operands, target, sizes = make(5, 3, 4, torch.float64)
    loss = ours(operands[0].requires_grad_(), *operands[1:], target, sizes, reduction=reduction).sum()
    (gradient,) = torch.autograd.grad(loss, operands[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(("dtype", "bias"), [(torch.float32, True), (torch.bfloat16, False)])
def test_opcheck(cpu_backend, dtype, bias):
    operands, target, sizes = make(12, 3, 31, dtype, bias)
    arguments = (*operands, target, sizes, -100, 0.1)
    wanted = [True, True, bias]
    torch.library.opcheck(
        torch.ops.dcfast.linear_weighted_cross_entropy_gradient.default, (torch.ones(12), *arguments, wanted)
    )
    for operand in operands[: 2 + bias]:
        operand.requires_grad_()
    torch.library.opcheck(torch.ops.dcfast.linear_weighted_cross_entropy.default, arguments)


def test_compiles_without_a_graph_break(cpu_backend):
    operands, target, sizes = make(23, 9, 31, torch.float32)
    compiled = torch.compile(lambda x, *rest: ours(2 * x, *rest), fullgraph=True, backend="aot_eager")
    case = (operands, target, sizes, torch.tensor(0.5))
    expected = with_gradients(lambda x, *rest: ours(2 * x, *rest), *case)
    for result, value in zip(with_gradients(compiled, *case), expected, strict=True):
        torch.testing.assert_close(result, value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_is_that_of_the_two_steps(cpu_backend, dtype):
    operands, target, sizes = make(23, 9, 31, dtype)
    case = (operands, target, sizes, torch.tensor(1.0))

    def cast(function):
        def run(*tensors):
            with torch.autocast("cpu", torch.bfloat16):
                return function(*tensors)

        return run

    theirs = with_gradients(cast(two_steps), *case)
    for result, peer in zip(with_gradients(cast(ours), *case), theirs, strict=True):
        assert result.dtype == peer.dtype
        torch.testing.assert_close(result, peer, **({"atol": 2e-2, "rtol": 2e-2} if dtype == torch.float32 else {}))
    with torch.autocast("cpu", torch.bfloat16):  # what is called raw comes in the dtype that it is meant to have
        raw = torch.ops.dcfast.linear_weighted_cross_entropy(*operands, target, sizes, -100, 0.0)
    assert torch.equal(raw, torch.ops.dcfast.linear_weighted_cross_entropy(*operands, target, sizes, -100, 0.0))


def test_meta_tensors_and_fakes_compute_nothing():
    loss = ops.linear_weighted_cross_entropy(*(t.to("meta") for t in (X.half(), W.half(), T, S)), reduction="none")
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (3,), torch.float16)
    loss = ops.weighted_cross_entropy(*(t.to("meta") for t in (X[:, :2].half(), T, S)))
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (), torch.float16)


def test_one_class_has_no_loss(cpu_backend):
    operands, target, sizes = make(3, 2, 1, torch.float64)
    for result in with_gradients(ours, operands, target, sizes, torch.tensor(1.0), label_smoothing=0.1):
        torch.testing.assert_close(result, torch.zeros_like(result))


def test_small_gradients_survive_float16(cpu_backend):
    """The gradient of the mean alone would underflow; a scaled loss is scaled before anything is rounded."""
    operands, target, sizes = make(40, 3, 130, torch.float16)
    upstream = torch.tensor(2.0**14)
    scaled = with_gradients(ours, operands, target, 1000 * sizes, upstream)
    expected = exact(operands, target, 1000 * sizes, upstream, label_smoothing=0.0, reduction="mean")
    for result, (value, _) in zip(scaled[1:], expected[1:], strict=True):
        np.testing.assert_allclose(longest(result), value, rtol=2e-2, atol=2e-3 * float(np.abs(value).max()))


def test_strides(cpu_backend):
    operands, target, sizes = make(23, 9, 31, torch.float32)
    expected = with_gradients(ours, operands, target, sizes, torch.tensor(1.0))
    strided = [t.repeat_interleave(2, -1)[..., ::2] for t in operands]
    leaves = [t.detach().requires_grad_() for t in strided]
    loss = ours(*leaves, target.repeat_interleave(2)[::2], sizes.repeat_interleave(2)[::2])
    loss.backward()
    for result, value in zip([loss.detach(), *(leaf.grad for leaf in leaves)], expected, strict=True):
        torch.testing.assert_close(result, value)


def test_nothing_to_average_gives_nan_as_in_torch(cpu_backend):
    operands, target, sizes = make(4, 3, 5, torch.float32)
    assert ours(*operands, torch.full_like(target, -100), sizes).isnan()
    assert ours(*operands, target, torch.zeros_like(sizes)).isnan()
    sizes[0] = 0
    assert ours(*operands, torch.zeros_like(target), sizes, label_smoothing=0.1).isnan()
    assert ours(*operands, target, torch.zeros_like(sizes), reduction="sum") == 0


X, W, T, S = torch.zeros(3, 4), torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64), torch.ones(2)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((X[0], W, T, S), ValueError, r"input has shape \(4,\): expected \(N, d\)"),
        ((X[:, :0], W[:, :0], T, S), ValueError, r"input has shape \(3, 0\)"),
        ((X.int(), W, T, S), TypeError, "input has dtype torch.int32"),
        ((X, W[:, :3], T, S), ValueError, r"linear_weight has shape \(2, 3\) and input \(3, 4\)"),
        ((X, W[:0], T, S[:0]), ValueError, r"linear_weight has shape \(0, 4\)"),
        ((X, W.double(), T, S), ValueError, "linear_weight has dtype torch.float64 and input torch.float32"),
        ((X, W.to("meta"), T, S), ValueError, "linear_weight is on meta and input on cpu"),
        ((X, W, T[:2], S), ValueError, r"target has shape \(2,\): expected \(3,\)"),
        (
            (X, W, T, S[:1]),
            ValueError,
            r"cluster_sizes has shape \(1,\): expected \(2,\), one per row of linear_weight",
        ),
        ((X, W, T, S.bool()), TypeError, "cluster_sizes has dtype torch.bool"),
        ((X, W, T, S, S[:1]), ValueError, r"linear_bias has shape \(1,\): expected \(2,\)"),
        ((X, W, T, S, S.half()), ValueError, "linear_bias has dtype torch.float16"),
        ((X, W, T, S, S, -100, 1.5), ValueError, "label_smoothing is 1.5"),
        ((X, W, T, S, S, -100, 0.0, "max"), ValueError, "reduction is 'max': choose one of"),
        ((X, W, torch.tensor([0, -100, 2]), S), ValueError, r"target\[2\] is 2: expected 0 to 1"),
    ],
)
def test_errors_name_the_argument(cpu_backend, arguments, error, match):
    with pytest.raises(error, match=match):
        ops.linear_weighted_cross_entropy(*arguments)


@pytest.mark.parametrize(
    ("position", "value", "match"),
    [
        (0, torch.ones(2), r"row_gradients has shape \(2,\)"),
        (0, torch.ones(3).double(), r"row_gradients has shape \(3,\) and dtype torch.float64"),
        (8, [True, True, True], "wanted asks for the gradient of linear_bias"),
    ],
)
def test_errors_of_the_raw_gradient(cpu_backend, position, value, match):
    arguments = [torch.ones(3), X, W, None, T, S, -100, 0.0, [True, True, False]]
    torch.ops.dcfast.linear_weighted_cross_entropy_gradient(*arguments)
    arguments[position] = value
    with pytest.raises(ValueError, match=match):
        torch.ops.dcfast.linear_weighted_cross_entropy_gradient(*arguments)


def test_module():
    _, target, sizes = make(12, 8, 5, torch.float32)
    module = dcfast.nn.InverseSizeLinearCrossEntropy(8, sizes, bias=True, label_smoothing=0.1, reduction="sum")
    x = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    expected = dcfast.nn.InverseSizeCrossEntropy(sizes, label_smoothing=0.1, reduction="sum")(module.linear(x), target)
    torch.testing.assert_close(module(x, target), expected)
    assert list(module.state_dict()) == ["cluster_sizes", "linear.weight", "linear.bias"]
    assert "label_smoothing=0.1, reduction='sum'" in repr(module)


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
@pytest.mark.parametrize(("n", "d", "k", "dtype"), [(6_000, 16, 8_000, "float32"), (7_000, 16, 8_000, "bfloat16")])
def test_memory_beyond_the_results(n, d, k, dtype):
    """All logits would be 183 and 107 MiB; a block's are 16 and 8."""
    taken, promised = memory.taken(head_memory, n, d, k, dtype), head_memory.promised(n, d, k, dtype)
    print(f"{taken / 2**20:.0f} MiB of {promised / 2**20:.0f} MiB")
    assert taken <= promised


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_on_a_gpu(backend, dtype):
    for n, d, k in SHAPES:
        operands, target, sizes = make(n, d, k, dtype)
        case = ([t.cuda() for t in operands], target.cuda(), sizes.cuda(), torch.tensor(0.5, device="cuda"))
        for smoothing, reduction in ((0.0, "mean"), (0.1, "sum"), (0.1, "none")):
            arguments = {"label_smoothing": smoothing, "reduction": reduction}
            theirs = with_gradients(two_steps, *case, **arguments)
            true = exact(operands, target, sizes, torch.tensor(0.5), **arguments)
            torch.cuda.set_sync_debug_mode("error")
            try:
                with ops.backend(backend):
                    results = with_gradients(ours, *case, **arguments)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert_accurate(results, theirs, true)
