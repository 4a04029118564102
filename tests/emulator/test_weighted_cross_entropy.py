"""csrc/cuda/weighted_cross_entropy.cu on the emulated GPU, with torch's own error as the measure."""

import pytest
import torch
from support.cross_entropy import DTYPES, KINDS, assert_as_accurate_as_torch, make

from dcfast.ops.weighted_cross_entropy import native

# By a warp, by 128 threads and by 512: no row, rows that fill no piece of 16 bytes, one that begins at every place
# between two of them.
SHAPES = [(0, 3), (5, 1), (17, 13), (5, 1111), (3, 4099), (2, 9003)]


def wide(logits, sizes):
    return sizes.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def two_kernels(logits, target, sizes, upstream, label_smoothing, reduction, ignore_index):
    sizes, options = wide(logits, sizes), (ignore_index, label_smoothing)
    loss, statistics, total = native._on_cuda(logits, target, sizes, *options, reduction, None)
    divisor = total if reduction == "mean" else None
    grad = upstream.to(sizes.dtype).expand(len(logits))
    gradient = native._backward_on_cuda(grad, logits, target, sizes, statistics, divisor, *options)
    return loss.to(logits.dtype), gradient


def in_place(logits, target, sizes, upstream, label_smoothing, reduction, ignore_index):
    """The gradient of each row's loss, and of the mean for the gradient 1."""
    sizes, x, options = wide(logits, sizes), logits.clone(), (ignore_index, label_smoothing)
    if reduction == "mean":
        assert upstream == 1
        return native._on_cuda(x, target, sizes, *options, reduction, x)[0].to(x.dtype), x
    grad = upstream.to(sizes.dtype).expand(len(x))
    losses, _ = native._rows_on_cuda(x, target, sizes, *options, False, grad, None, x)
    return (losses if reduction == "none" else losses.sum()).to(x.dtype), x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_error_is_at_most_twice_that_of_torch(n, k, dtype):
    kinds = KINDS if dtype == torch.float32 and k < 1000 else ("masked", "ignored")
    for kind in kinds:
        for smoothing, reduction, upstream in ((0.0, "mean", 1.0), (0.1, "sum", -1.5), (0.1, "none", 0.6)):
            runs = (two_kernels, in_place)
            assert_as_accurate_as_torch(runs, n, k, kind, dtype, smoothing, reduction, upstream=upstream)


@pytest.mark.parametrize(("dtype", "k"), [(torch.float32, 45_000), (torch.float64, 21_000), (torch.bfloat16, 90_000)])
def test_rows_that_shared_memory_does_not_hold(monkeypatch, dtype, k):
    monkeypatch.setenv("DCFAST_EMULATOR_CAPABILITY", "8")
    for smoothing in (0.0, 0.1):
        assert_as_accurate_as_torch((in_place,), 2, k, "normal", dtype, smoothing, "none")


@pytest.mark.parametrize("seed", ["1", "2", "3"])
@pytest.mark.parametrize("k", [300, 2500, 5000])
def test_same_bits_in_any_order_of_the_threads(monkeypatch, k, seed):
    logits, target, sizes = make(9, k, "ignored", torch.float32)
    case = (logits, target, sizes, torch.tensor(1.0), 0.1, "mean", -100)
    expected = [*two_kernels(*case), *in_place(*case)]
    monkeypatch.setenv("DCFAST_EMULATOR_SEED", seed)
    for ours, theirs in zip([*two_kernels(*case), *in_place(*case)], expected, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows_that_begin_elsewhere_than_their_gradients(dtype):
    """Padded logits: the gradient, without padding, is written an element at a time."""
    logits, target, sizes = make(6, 45, "normal", dtype)
    padded = torch.zeros(6, 50, dtype=dtype)
    padded[:, 2:47] = logits
    case = (target, sizes, torch.tensor(1.0), 0.1, "sum", -100)
    for ours, theirs in zip(two_kernels(padded[:, 2:47], *case), two_kernels(logits, *case), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("k", [4, 700])
def test_a_target_out_of_range_gives_nan(k):
    logits, target, sizes = make(5, k, "normal", torch.float32)
    target[2] = k
    case = (target, sizes, torch.tensor(1.0), 0.0)
    for run in (two_kernels, in_place):
        losses, gradient = run(logits, *case, "none", -100)
        for rows in (losses, gradient[:, 0], gradient[:, -1]):
            assert rows.isnan().tolist() == [False, False, True, False, False]
        assert run(logits, *case, "mean", -100)[0].isnan()


def test_nothing_to_average_gives_nan():
    """The targets weigh nothing, but with label smoothing other classes do."""
    logits, target, _ = make(4, 3, "normal", torch.float32)
    sizes = torch.tensor([0, 3, 4])
    for run in (two_kernels, in_place):
        for result in run(logits, torch.zeros_like(target), sizes, torch.tensor(1.0), 0.1, "mean", -100):
            assert result.isnan().all()


def test_an_unknown_dtype_and_too_many_classes_are_refused():
    from dcfast.ops import _native

    with pytest.raises(ValueError, match="no such dtype"):
        _native.cuda().weighted_cross_entropy_backward(9, 0, 0, 0, 0, 0, 1, 1, 0, 0.0, 0, 0, 0, 0, 0, 0, 0)
    with pytest.raises(ValueError, match="out of the kernel's range"):
        _native.cuda().weighted_cross_entropy_backward(0, 0, 0, 0, 0, 0, 1, 2**31, 0, 0.0, 0, 0, 0, 0, 0, 0, 0)
