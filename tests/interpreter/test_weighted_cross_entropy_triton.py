"""The Triton kernels of weighted_cross_entropy, interpreted, against the reference."""

import pytest
import torch

from dcfast import ops

pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning:triton")  # 1 / 0 is replaced

# One class, no row, one row, columns that fill no block, and several blocks.
SHAPES = [(5, 1), (0, 3), (1, 7), (9, 13), (3, 5001)]


def make(n, k, dtype):
    generator = torch.Generator().manual_seed(n + k)
    logits = 3 * torch.randn(n, k, generator=generator) + 100
    target = torch.randint(k, (n,), generator=generator)
    sizes = torch.randint(0, 9, (k,), generator=generator)
    if k == 5001:
        logits[:, :4500] = -torch.inf  # a whole block
        target.fill_(4700)
        sizes = sizes + 1  # smoothing with a weight of 0 is 0 * inf
    target[::4] = -100
    return logits.to(dtype), target, sizes


def run(logits, target, sizes, **arguments):
    leaf = logits.detach().clone().requires_grad_()
    loss = ops.weighted_cross_entropy(leaf, target, sizes, **arguments)
    loss.backward(torch.full_like(loss, 0.5))
    return loss.detach(), leaf.grad


# bfloat16 is cut off there, and not rounded, when it is stored.
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize(("label_smoothing", "reduction"), [(0.0, "mean"), (0.1, "sum"), (0.1, "none")])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_equals_the_reference(n, k, dtype, label_smoothing, reduction):
    operands = make(n, k, dtype)
    arguments = {"label_smoothing": label_smoothing, "reduction": reduction}
    loss, gradient = run(*operands, **arguments)
    with ops.backend("reference"):
        expected = run(*operands, **arguments)
    torch.testing.assert_close(loss, expected[0], equal_nan=True)
    torch.testing.assert_close(gradient, expected[1], equal_nan=True)
    again = run(*operands, **arguments)
    assert torch.equal(again[0].nan_to_num(7.0), loss.nan_to_num(7.0))
    assert torch.equal(again[1].nan_to_num(7.0), gradient.nan_to_num(7.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_the_gradient_takes_the_place_of_the_logits(n, k, dtype):
    logits, target, sizes = make(n, k, dtype)
    factors = torch.linspace(-1, 2, n)
    operator, results = torch.ops.dcfast.weighted_cross_entropy_gradient_, []
    for backend in ("triton", "reference"):
        x = logits.clone()
        with ops.backend(backend):
            results.append((operator(x, target, sizes, factors, -100, 0.1), x))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, equal_nan=True)


def test_the_linear_head(monkeypatch):
    from dcfast.ops.linear_weighted_cross_entropy import blocks

    monkeypatch.setattr(blocks, "_LOGITS", {"cpu": 40})
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(*shape, generator=generator) for shape in ((9, 3), (13, 3), (13,))]
    _, target, sizes = make(9, 13, torch.float32)
    results = []
    for backend in ("triton", "reference"):
        x, weight, bias = (t.clone().requires_grad_() for t in operands)
        with ops.backend(backend):
            loss = ops.linear_weighted_cross_entropy(x, weight, target, sizes, bias, label_smoothing=0.1)
            loss.backward()
        results.append((loss.detach(), x.grad, weight.grad, bias.grad))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_nothing_to_average_gives_nan():
    """The targets weigh nothing, but with label smoothing other classes do."""
    logits, target, _ = make(9, 13, torch.float32)
    sizes = torch.arange(13)
    with ops.backend("triton"):
        loss, gradient = run(logits, torch.zeros_like(target), sizes, label_smoothing=0.1)
    assert loss.isnan()
    assert gradient.isnan().all()


def test_strides():
    logits, target, sizes = make(9, 13, torch.float32)
    expected = run(logits, target, sizes)
    wide, both = torch.zeros(9, 26), torch.zeros(18, dtype=torch.int64)
    wide[:, ::2], both[::2] = logits, target
    leaf = wide[:, ::2].detach().requires_grad_()
    loss = ops.weighted_cross_entropy(leaf, both[::2], sizes)
    loss.backward(torch.tensor(0.5))
    assert torch.equal(loss.detach(), expected[0])
    assert torch.equal(leaf.grad, expected[1])


def test_a_target_out_of_range_raises():
    with pytest.raises(ValueError, match=r"target\[1\] is 2"):
        ops.weighted_cross_entropy(torch.zeros(2, 2), torch.tensor([0, 2]), torch.ones(2))
