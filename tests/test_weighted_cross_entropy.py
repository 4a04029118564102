"""weighted_cross_entropy: against the definition, with torch's own error as the measure, where it hurts."""

import functools
import itertools
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.cross_entropy import (
    DTYPES,
    KINDS,
    REDUCTIONS,
    assert_as_accurate_as_torch,
    make,
    torch_loss,
    with_gradient,
)
from torch.nn import functional as F

import dcfast
from dcfast import ops
from dcfast.ops import _native

# One class; no row; one row; columns that fill no vector, a chunk of 1024 and one element, several chunks.
SHAPES = [(5, 1), (0, 3), (1, 7), (33, 13), (7, 1025), (3, 5001)]


def two_passes(logits, target, sizes, ignore_index=-100, label_smoothing=0.0, reduction="mean"):
    """The op that leaves the gradient to its backward; the public function makes it on the way where it can."""
    arguments = (ignore_index, label_smoothing, reduction)
    return torch.ops.dcfast.weighted_cross_entropy(logits, target, sizes, *arguments)[0].to(logits.dtype)


RUNS = [functools.partial(with_gradient, function) for function in (ops.weighted_cross_entropy, two_passes)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_error_is_at_most_twice_that_of_torch(cpu_backend, n, k, kind, dtype):
    if kind == "huge" and dtype == torch.float16:
        kind = "offset"  # 1e4 times normal numbers overflow float16
    for label_smoothing, reduction in itertools.product([0.0, 0.1], REDUCTIONS):
        assert_as_accurate_as_torch(RUNS, n, k, kind, dtype, label_smoothing, reduction)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3, 1.0])
def test_full_smoothing_and_an_ignored_class(cpu_backend, label_smoothing):
    for reduction in REDUCTIONS:
        assert_as_accurate_as_torch(RUNS, 40, 9, "empty", torch.float32, label_smoothing, reduction, ignore_index=4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_values_that_are_not_finite_act_as_in_torch(cpu_backend, value):
    logits, target, sizes = make(6, 37, "normal", torch.float32)
    logits[1, 20] = value
    logits[2, int(target[2])] = value
    logits[3] = value
    for label_smoothing in (0.0, 0.2):
        arguments = {"reduction": "none", "label_smoothing": label_smoothing}
        ours = ops.weighted_cross_entropy(logits, target, sizes, **arguments)
        torch.testing.assert_close(ours, torch_loss(logits, target, sizes, **arguments), equal_nan=True)


def test_nothing_to_average_gives_nan_as_in_torch(cpu_backend):
    logits, target, sizes = make(4, 3, "normal", torch.float32)
    assert ops.weighted_cross_entropy(logits[:0], target[:0], sizes).isnan()
    for t, s in ((torch.full_like(target, -100), sizes), (target, torch.zeros_like(sizes))):
        assert ops.weighted_cross_entropy(logits, t, s).isnan()
        assert ops.weighted_cross_entropy(logits, t, s, reduction="sum") == 0
        assert torch.equal(ops.weighted_cross_entropy(logits, t, s, reduction="none"), torch.zeros(4))
    # The targets weigh nothing, but with smoothing other classes do.
    nothing = torch.tensor([0, 3, 4])
    leaf = logits.clone().requires_grad_()
    loss = ops.weighted_cross_entropy(leaf, torch.zeros_like(target), nothing, label_smoothing=0.1)
    loss.backward()
    assert loss.isnan()
    assert leaf.grad.isnan().all()


def test_ignored_rows_have_no_gradient_whatever_they_hold(cpu_backend):
    logits, target, sizes = make(6, 5, "ignored", torch.float32)
    logits[::2] = torch.nan
    for function in (ops.weighted_cross_entropy, two_passes):
        loss, gradient = with_gradient(function, logits, target, sizes, torch.tensor(1.0))
        assert loss.isfinite()
        assert torch.equal(gradient[::2], torch.zeros(3, 5))
        assert gradient[1::2].isfinite().all()
        assert (gradient[1::2] != 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strides(cpu_backend, dtype):
    logits, target, sizes = make(40, 30, "normal", dtype)
    wide, both = torch.zeros(40, 60, dtype=dtype), torch.zeros(80, dtype=torch.int64)
    wide[:, ::2], both[::2] = logits, target
    padded = torch.zeros(40, 31, dtype=dtype)
    padded[:, :30] = logits
    expected = with_gradient(ops.weighted_cross_entropy, logits, target, sizes, torch.tensor(1.0))
    for view in (wide[:, ::2], padded[:, :30], logits.T.contiguous().T, logits.flip(0).flip(0)):
        leaf = view.detach().requires_grad_()
        loss = ops.weighted_cross_entropy(leaf, both[::2], sizes.repeat_interleave(2)[::2])
        loss.backward()
        # torch's sums, and with them the reference, follow the layout.
        torch.testing.assert_close(loss.detach(), expected[0])
        torch.testing.assert_close(leaf.grad, expected[1])
    one = logits[:1].expand(40, 30)
    expected = ops.weighted_cross_entropy(one.contiguous(), target, sizes)
    assert torch.equal(ops.weighted_cross_entropy(one, target, sizes), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64, torch.float16])
def test_sizes_of_any_number_type(cpu_backend, dtype):
    logits, target, sizes = make(20, 11, "empty", torch.float32)
    expected = ops.weighted_cross_entropy(logits, target, sizes)
    assert torch.equal(ops.weighted_cross_entropy(logits, target, sizes.to(dtype)), expected)


@pytest.mark.parametrize("function", [ops.weighted_cross_entropy, two_passes])
@pytest.mark.parametrize("isa", _native._C.isas)
def test_same_bits_for_every_thread_count(monkeypatch, isa, function):
    monkeypatch.setenv("DCFAST_ISA", isa)
    logits, target, sizes = make(67, 1500, "normal", torch.float32)
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(_native, "threads", lambda threads=threads: threads)
        with ops.backend("native"):
            results.append(with_gradient(function, logits, target, sizes, torch.tensor(1.0), label_smoothing=0.1))
    for result in results[1:]:
        assert torch.equal(result[0], results[0][0])
        assert torch.equal(result[1], results[0][1])


@pytest.mark.parametrize("isa", _native._C.isas)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_instruction_set_is_accurate(monkeypatch, isa, dtype):
    monkeypatch.setenv("DCFAST_ISA", isa)
    with ops.backend("native"):
        for kind in KINDS:
            assert_as_accurate_as_torch(RUNS, 9, 1037, kind, dtype, 0.1, "mean")


@pytest.mark.parametrize("function", [ops.weighted_cross_entropy, two_passes])
@pytest.mark.parametrize("dtype", DTYPES)
def test_slices_of_rows_add_up(monkeypatch, dtype, function):
    from importlib import import_module

    logits, target, sizes = make(50, 20, "ignored", dtype)
    with ops.backend("native"):
        expected = with_gradient(function, logits, target, sizes, torch.tensor(1.0))
        monkeypatch.setattr(import_module("dcfast.ops.weighted_cross_entropy.native"), "_SLICE_ELEMENTS", 140)
        sliced = with_gradient(function, logits, target, sizes, torch.tensor(1.0))
    assert torch.equal(sliced[0], expected[0])
    assert torch.equal(sliced[1], expected[1])


# (Where the gradient is there already, torch scales it, and torch's own arithmetic follows its flush mode.)
@pytest.mark.parametrize(("function", "upstream"), [(ops.weighted_cross_entropy, 1.0), (two_passes, 1e-3)])
def test_flushed_denormals_change_nothing(function, upstream):
    logits, target, sizes = make(20, 50, "normal", torch.float32)
    logits[:, 1:] -= 90.0  # some of the gradient is denormal
    upstream = torch.tensor(upstream)
    with ops.backend("native"):
        expected = with_gradient(function, logits, target, sizes, upstream)
        assert ((expected[1] != 0) & (expected[1].abs() < torch.finfo(torch.float32).tiny)).any()
        torch.set_flush_denormal(True)
        try:
            flushed = with_gradient(function, logits, target, sizes, upstream)
        finally:
            torch.set_flush_denormal(False)
    assert torch.equal(flushed[0], expected[0])
    assert torch.equal(flushed[1], expected[1])


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 2**32),
    backend=st.sampled_from(["native", "reference"]),
)
def test_equals_sampling_uniformly_over_clusters(sizes, seed, backend):
    """Over a whole set the loss is the mean over the non-empty clusters of their mean losses."""
    sizes = torch.tensor(sizes)
    target = torch.arange(len(sizes)).repeat_interleave(sizes)
    generator = torch.Generator().manual_seed(seed)
    target = target[torch.randperm(len(target), generator=generator)]
    logits = torch.randn(len(target), len(sizes), generator=generator, dtype=torch.float64)
    nll = F.cross_entropy(logits, target, reduction="none")
    per_cluster = torch.stack([nll[target == j].mean() for j in range(len(sizes)) if sizes[j] > 0])
    with ops.backend(backend):
        torch.testing.assert_close(ops.weighted_cross_entropy(logits, target, sizes), per_cluster.mean())


@pytest.mark.parametrize(("label_smoothing", "reduction"), [(0.0, "mean"), (0.2, "sum"), (0.2, "none")])
def test_gradcheck(cpu_backend, label_smoothing, reduction):
    logits, target, sizes = make(3, 4, "ignored", torch.float64)
    arguments = (target, sizes, -100, label_smoothing, reduction)
    assert torch.autograd.gradcheck(
        lambda x: torch.ops.dcfast.weighted_cross_entropy(x, *arguments)[0], logits.requires_grad_()
    )


@pytest.mark.parametrize("upstream", [1.0, -0.5])
def test_a_retained_graph_gives_the_gradient_again(cpu_backend, upstream):
    logits, target, sizes = make(6, 5, "normal", torch.float64)
    upstream = torch.tensor(upstream, dtype=torch.float64)
    expected = with_gradient(torch_loss, logits, target, sizes, upstream)[1]
    loss = ops.weighted_cross_entropy(logits.requires_grad_(), target, sizes)
    for times in (1, 2, 3):
        loss.backward(upstream, retain_graph=True)  # adds to the tensor that the first one handed out
        torch.testing.assert_close(logits.grad, times * expected)


def test_the_gradient_is_made_along_only_where_it_may_be(monkeypatch):
    calls = []
    module = sys.modules["dcfast.ops.weighted_cross_entropy"]
    along = module._op_with_gradient
    monkeypatch.setattr(module, "_op_with_gradient", lambda *a: calls.append(a) or along(*a))
    logits, target, sizes = make(6, 5, "normal", torch.float32)
    ops.weighted_cross_entropy(logits, target, sizes)
    leaf = logits.clone().requires_grad_()
    with torch.no_grad():
        ops.weighted_cross_entropy(leaf, target, sizes)
    ops.weighted_cross_entropy(leaf, target, sizes, reduction="none").sum().backward()
    half = logits.half().requires_grad_()
    ops.weighted_cross_entropy(half, target, sizes).backward()
    assert calls == []
    ops.weighted_cross_entropy(leaf, target, sizes).backward()
    ops.weighted_cross_entropy(torch.nn.Parameter(logits), target, sizes, reduction="sum").backward()
    assert len(calls) == 2


@pytest.mark.parametrize("function", [ops.weighted_cross_entropy, two_passes])
def test_a_second_derivative_is_refused(cpu_backend, function):
    logits, target, sizes = make(6, 5, "normal", torch.float64)
    loss = function(logits.requires_grad_(), target, sizes)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize(("dtype", "reduction"), [(torch.float32, "mean"), (torch.bfloat16, "none")])
def test_opcheck(cpu_backend, dtype, reduction):
    logits, target, sizes = make(6, 5, "ignored", dtype)
    arguments = (target, sizes, -100, 0.1, reduction)
    torch.library.opcheck(torch.ops.dcfast.weighted_cross_entropy.default, (logits.requires_grad_(), *arguments))
    logits = logits.detach()
    loss, *saved = torch.ops.dcfast.weighted_cross_entropy(logits, *arguments)
    torch.library.opcheck(
        torch.ops.dcfast.weighted_cross_entropy_backward.default,
        (torch.ones_like(loss), logits, target, sizes, *saved, -100, 0.1, reduction),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_op_with_gradient_equals_the_two_ops(cpu_backend, dtype, reduction):
    logits, target, sizes = make(7, 1025, "ignored", dtype)
    arguments = (target, sizes, -100, 0.1, reduction)
    loss, *saved = torch.ops.dcfast.weighted_cross_entropy(logits, *arguments)
    gradient = torch.ops.dcfast.weighted_cross_entropy_backward(
        torch.ones_like(loss), logits, target, sizes, *saved, *arguments[2:]
    )
    operator = torch.ops.dcfast.weighted_cross_entropy_with_gradient
    for ours, expected in zip(operator(logits, *arguments), (loss, *saved, gradient), strict=True):
        torch.testing.assert_close(ours, expected)
    torch.library.opcheck(operator.default, (logits, *arguments))
    with pytest.raises(ValueError, match="reduction is 'none': the gradient is that of one number"):
        operator(logits, *arguments[:-1], "none")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_the_gradient_takes_the_place_of_the_logits(cpu_backend, dtype, label_smoothing):
    logits, target, sizes = make(7, 1025, "ignored", dtype)
    options = (-100, label_smoothing)
    operator = torch.ops.dcfast.weighted_cross_entropy_gradient_
    losses, *saved = torch.ops.dcfast.weighted_cross_entropy(logits, target, sizes, *options, "none")
    for factors in (torch.linspace(-1, 2, 7, dtype=losses.dtype), torch.tensor(0.5, dtype=losses.dtype)):
        expected = torch.ops.dcfast.weighted_cross_entropy_backward(
            factors.expand(7).contiguous(), logits, target, sizes, *saved, *options, "none"
        )
        x = logits.clone()
        torch.testing.assert_close(operator(x, target, sizes, factors, *options), losses)
        torch.testing.assert_close(x, expected)
        torch.library.opcheck(operator.default, (logits.clone(), target, sizes, factors, *options))


@pytest.mark.parametrize(
    ("position", "value", "match"),
    [
        (0, torch.zeros(2, 3).T, r"logits has strides \(1, 3\): the gradient replaces them"),
        (3, torch.ones(2), r"row_gradients has shape \(2,\)"),
        (3, torch.ones(3).double(), r"row_gradients has shape \(3,\) and dtype torch.float64"),
    ],
)
def test_errors_of_the_gradient_in_place(cpu_backend, position, value, match):
    arguments = [torch.zeros(3, 2), T, S, torch.ones(3), -100, 0.0]
    torch.ops.dcfast.weighted_cross_entropy_gradient_(*arguments)
    arguments[position] = value
    with pytest.raises(ValueError, match=match):
        torch.ops.dcfast.weighted_cross_entropy_gradient_(*arguments)


def test_autocast_gives_a_float32_loss_as_torch_does(cpu_backend):
    logits, target, sizes = make(7, 25, "normal", torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        ours = ops.weighted_cross_entropy(logits, target, sizes)
        theirs = F.cross_entropy(logits, target, weight=ops.inverse_size_weights(sizes))
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs)


def test_compiles_without_a_graph_break(cpu_backend):
    logits, target, sizes = make(30, 17, "ignored", torch.float32)
    compiled = torch.compile(
        lambda x, t, s: ops.weighted_cross_entropy(2 * x, t, s), fullgraph=True, backend="aot_eager"
    )
    expected = with_gradient(lambda x, t, s: two_passes(2 * x, t, s), logits, target, sizes, torch.tensor(1.0))
    loss, gradient = with_gradient(compiled, logits, target, sizes, torch.tensor(1.0))
    assert torch.equal(loss, expected[0])
    assert torch.equal(gradient, expected[1])


X, T, S = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64), torch.ones(2)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((X[0], T, S), ValueError, r"logits has shape \(2,\): expected \(N, k\)"),
        ((X[:, :0], T, S[:0]), ValueError, r"logits has shape \(3, 0\)"),
        ((X.int(), T, S), TypeError, "logits has dtype torch.int32"),
        ((X, T[:2], S), ValueError, r"target has shape \(2,\): expected \(3,\)"),
        ((X, T.int(), S), TypeError, "target has dtype torch.int32: expected int64"),
        ((X, T, S[:1]), ValueError, r"cluster_sizes has shape \(1,\): expected \(2,\), one per column of logits"),
        ((X, T, torch.ones(2, 1)), ValueError, r"cluster_sizes has shape \(2, 1\): expected \(k,\)"),
        ((X, T, S.bool()), TypeError, "cluster_sizes has dtype torch.bool"),
        ((X, T, S.to("meta")), ValueError, "cluster_sizes is on meta and logits on cpu"),
        ((X, T.to("meta"), S), ValueError, "target is on meta and logits on cpu"),
        ((X, T, S, -100, 1.5), ValueError, "label_smoothing is 1.5: expected 0.0 to 1.0"),
        ((X, T, S, -100, 0.0, "max"), ValueError, "reduction is 'max': choose one of"),
        ((X, T + 2, S), ValueError, r"target\[0\] is 2: expected 0 to 1, or ignore_index=-100"),
        ((X, torch.tensor([0, -100, -1]), S), ValueError, r"target\[2\] is -1"),
    ],
)
def test_errors_name_the_argument(cpu_backend, arguments, error, match):
    with pytest.raises(error, match=match):
        ops.weighted_cross_entropy(*arguments)


@pytest.mark.parametrize(
    ("position", "value", "match"),
    [
        (0, torch.ones(3), r"grad has shape \(3,\)"),
        (0, torch.ones((), dtype=torch.float16), "grad has shape .* dtype torch.float16: expected .* torch.float32"),
        (4, torch.ones(3), r"statistics has shape \(3,\)"),
        (5, torch.ones((), dtype=torch.float64), "total_weight has shape .* dtype torch.float64"),
    ],
)
def test_errors_of_the_raw_backward(cpu_backend, position, value, match):
    loss, *saved = torch.ops.dcfast.weighted_cross_entropy(X, T, S, -100, 0.0, "mean")
    arguments = [loss, X, T, S, *saved, -100, 0.0, "mean"]
    torch.ops.dcfast.weighted_cross_entropy_backward(*arguments)
    arguments[position] = value
    with pytest.raises(ValueError, match=match):
        torch.ops.dcfast.weighted_cross_entropy_backward(*arguments)


def test_inverse_size_weights():
    for dtype in (torch.int32, torch.int64, torch.float16, torch.float32, torch.float64):
        weights = ops.inverse_size_weights(torch.tensor([4, 0, 1], dtype=dtype))
        assert weights.dtype == (dtype if dtype.is_floating_point else torch.float32)
        assert weights.tolist() == [0.25, 0.0, 1.0]
    assert ops.inverse_size_weights(torch.zeros(0)).shape == (0,)
    with pytest.raises(TypeError, match=r"cluster_sizes has dtype torch\.bool"):
        ops.inverse_size_weights(torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"cluster_sizes has shape \(1, 2\)"):
        ops.inverse_size_weights(torch.ones(1, 2))


def test_module():
    logits, target, sizes = make(12, 5, "ignored", torch.float32)
    module = dcfast.nn.InverseSizeCrossEntropy(sizes, label_smoothing=0.1, reduction="sum")
    expected = ops.weighted_cross_entropy(logits, target, sizes, label_smoothing=0.1, reduction="sum")
    assert torch.equal(module(logits, target), expected)
    assert list(module.state_dict()) == ["cluster_sizes"]
    assert repr(module) == (
        "InverseSizeCrossEntropy(n_clusters=5, ignore_index=-100, label_smoothing=0.1, reduction='sum')"
    )


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_on_a_gpu(backend, dtype, n, k):
    for kind, label_smoothing, reduction in itertools.product(KINDS, [0.0, 0.1], REDUCTIONS):
        logits, target, sizes = (t.cuda() for t in make(n, k, kind, dtype))
        upstream = torch.tensor(0.6, dtype=dtype, device="cuda")
        arguments = {"label_smoothing": label_smoothing, "reduction": reduction}
        leaf = logits.clone().requires_grad_()
        with ops.backend(backend):
            loss = ops.weighted_cross_entropy(leaf, target, sizes, **arguments)
            again = ops.weighted_cross_entropy(leaf, target, sizes, **arguments)
            loss.backward(upstream.expand(loss.shape))
        assert torch.equal(loss.nan_to_num(7.0), again.nan_to_num(7.0))
        with ops.backend("reference"):
            exact = with_gradient(
                ops.weighted_cross_entropy, logits.double(), target, sizes, upstream.double(), **arguments
            )
        torch.testing.assert_close(loss.detach(), exact[0].to(dtype), equal_nan=True)
        torch.testing.assert_close(leaf.grad, exact[1].to(dtype), equal_nan=True)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_a_target_out_of_range_gives_nan_on_a_gpu(backend):
    logits, target, sizes = (t.cuda() for t in make(5, 4, "normal", torch.float32))
    target[2] = 4
    with ops.backend(backend):
        rows = ops.weighted_cross_entropy(logits, target, sizes, reduction="none")
        assert ops.weighted_cross_entropy(logits, target, sizes).isnan()
    assert rows.isnan().tolist() == [False, False, True, False, False]
