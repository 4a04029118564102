"""Cross-entropy cases that hurt, their exact answers, and torch's own error as the measure of ours."""

import numpy as np
import torch
from torch.nn import functional as F

from dcfast import ops

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
REDUCTIONS = ["mean", "sum", "none"]
KINDS = ["normal", "huge", "offset", "masked", "ignored", "empty"]


def make(n, k, kind, dtype):
    generator = torch.Generator().manual_seed(1000 * n + k)
    logits = 3 * torch.randn(n, k, generator=generator)
    target = torch.randint(k, (n,), generator=generator)
    sizes = torch.randint(1, 60, (k,), generator=generator)
    if kind == "huge":
        logits = 1e4 * logits
    elif kind == "offset":  # log-sum-exp 1e4, where a float32 keeps three decimals
        logits = logits + 1e4
    elif kind == "masked":  # -inf in two thirds of the columns and in the first 2000, never in the last
        masked = ((torch.arange(k) - k + 1) % 3 != 0) | (torch.arange(k) < min(2000, k - 1))
        logits[:, masked] = -torch.inf
        target = torch.full((n,), int((~masked).nonzero()[0]))
    elif kind == "ignored":
        target[::2] = -100
    elif kind == "empty" and k > 1:
        sizes[::3] = 0
    return logits.to(dtype), target, sizes


def torch_loss(logits, target, sizes, **arguments):
    weight = ops.inverse_size_weights(sizes.double()).to(logits.dtype)
    return F.cross_entropy(logits, target, weight=weight, **arguments)


def with_gradient(function, logits, target, sizes, upstream, **arguments):
    """The loss and the gradient in the logits, for a gradient of the loss that is not 1."""
    leaf = logits.detach().clone().requires_grad_()
    loss = function(leaf, target, sizes, **arguments)
    loss.backward(upstream.to(loss.dtype).expand(loss.shape))
    return loss.detach(), leaf.grad


def longest(values):
    return values.double().numpy().astype(np.longdouble) if isinstance(values, torch.Tensor) else values


def oracle(logits, target, sizes, upstream, label_smoothing, reduction, ignore_index):
    """The definition in numpy's longest floats: the loss, its gradient, and what a row's gradient is made of."""
    x, upstream = longest(logits), np.longdouble(upstream.item())
    size = sizes.numpy().astype(np.longdouble)
    w = np.where(size > 0, 1 / np.maximum(size, 1), 0)
    y, rows, k = target.numpy(), np.arange(len(x)), x.shape[1]
    active = y != ignore_index
    y = np.where(active, y, 0)
    shifted = x - x.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    hit = np.where(active, w[y], 0)
    smoothing = np.longdouble(label_smoothing)
    losses = -(1 - smoothing) * hit * log_p[rows, y]
    gradient = hit[:, None] * np.exp(log_p)
    gradient[rows, y] -= hit
    gradient *= 1 - smoothing
    if smoothing > 0:
        losses -= smoothing / k * (w * log_p).sum(1)
        gradient += smoothing / k * (w.sum() * np.exp(log_p) - w)
    losses, total = np.where(active, losses, 0), hit.sum() if reduction == "mean" else 1
    loss = losses if reduction == "none" else losses.sum() / total
    return loss, np.where(active[:, None], upstream / total * gradient, 0), abs(upstream / total) * hit


def assert_accurate(ours, theirs, exact, scale):
    """NaN and infinity where the oracle has them; elsewhere at most twice torch's error and the result's rounding."""
    assert ours.dtype == theirs.dtype
    assert ours.shape == exact.shape
    ours_dtype, eps = ours.dtype, torch.finfo(ours.dtype).eps
    ours, theirs = (t.double().numpy().astype(np.longdouble) for t in (ours, theirs))
    finite = np.isfinite(exact)
    np.testing.assert_array_equal(ours[~finite], exact[~finite])
    if finite.any():
        error, allowed = (np.abs(t - exact)[finite].max() for t in (ours, theirs))
        # float64 is summed in float64, the others in double: three roundings instead of one.
        assert error <= 2 * allowed + (3 if ours_dtype == torch.float64 else 1) * eps * scale


def largest(values):
    return np.abs(values[np.isfinite(values)]).max(initial=0)


def assert_as_accurate_as_torch(runs, n, k, kind, dtype, label_smoothing, reduction, ignore_index=-100, upstream=-1.5):
    """Each of `runs` gives the loss and the gradient, for a gradient of the loss that is `upstream`."""
    logits, target, sizes = make(n, k, kind, dtype)
    upstream = torch.tensor(upstream, dtype=dtype)
    arguments = {"label_smoothing": label_smoothing, "reduction": reduction, "ignore_index": ignore_index}
    theirs = with_gradient(torch_loss, logits, target, sizes, upstream, **arguments)
    with np.errstate(all="ignore"):
        loss, gradient, terms = oracle(logits, target, sizes, upstream, **arguments)
    for run in runs:
        ours = run(logits, target, sizes, upstream, **arguments)
        assert_accurate(ours[0], theirs[0], loss, largest(loss))
        assert_accurate(ours[1], theirs[1], gradient, max(largest(gradient), largest(terms)))
