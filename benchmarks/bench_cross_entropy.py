"""weighted_cross_entropy and the linear head with it, against torch's own in eager mode, compiled and in chunks."""

import pytest
import torch
from torch.nn import functional as F

from dcfast import ops

SHAPES = [(256, 10_000), (4_096, 1_000)]
# Rows, columns of the input and classes: AlexNet's head, and one whose logits (1.6 GB) are far more than the weight.
HEADS = [(256, 4_096, 10_000), (4_096, 256, 100_000)]


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "forward+backward"])
@pytest.mark.parametrize(("n", "k"), SHAPES)
def test_cross_entropy(compare, n, k, backward):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(n, k, generator=generator, requires_grad=backward)
    target = torch.randint(k, (n,), generator=generator)
    sizes = torch.randint(1, 100, (k,), generator=generator)
    weight = ops.inverse_size_weights(sizes)
    quality = {}

    def eager(x):
        return F.cross_entropy(x, target, weight=weight)

    exact = F.cross_entropy(logits.detach().double(), target, weight=weight.double()).item()
    losses = {"dcfast": lambda x: ops.weighted_cross_entropy(x, target, sizes), "eager": eager}
    losses["torch.compile"] = torch.compile(eager)

    def step(name):
        logits.grad = None
        loss = losses[name](logits)
        if backward:
            loss.backward()
        quality[name] = f"error {abs(loss.item() / exact - 1):.1e}"

    compare(
        lambda: step("dcfast"),
        {name: lambda name=name: step(name) for name in ("eager", "torch.compile")},
        moved=4.0 * n * k * (3 if backward else 1),  # the logits once each way, and the gradient
        quality=quality,
        rounds=20,
    )


@pytest.mark.parametrize(("n", "d", "k"), HEADS)
def test_linear_cross_entropy(compare, n, d, k):
    """Forward and backward, against logits in memory and, where torch has it, its own op that works in chunks."""
    generator = torch.Generator().manual_seed(0)
    x, head = (torch.randn(rows, d, generator=generator).requires_grad_() for rows in (n, k))
    target = torch.randint(k, (n,), generator=generator)
    sizes = torch.randint(1, 100, (k,), generator=generator)
    weight = ops.inverse_size_weights(sizes)
    scale = d**-0.5
    exact = F.cross_entropy(F.linear(scale * x.detach(), head.detach()), target, weight=weight).item()
    losses = {
        "dcfast": lambda: ops.linear_weighted_cross_entropy(scale * x, head, target, sizes),
        "linear + cross_entropy": lambda: F.cross_entropy(F.linear(scale * x, head), target, weight=weight),
    }
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        losses["linear_cross_entropy"] = lambda: F.linear_cross_entropy(
            scale * x, head, target, weight=weight, options=options
        )
    quality = {}

    def step(name):
        x.grad = head.grad = None
        loss = losses[name]()
        loss.backward()
        quality[name] = f"distance {abs(loss.item() / exact - 1):.1e}"

    compare(
        lambda: step("dcfast"),
        {name: lambda name=name: step(name) for name in losses if name != "dcfast"},
        operations=6.0 * n * d * k,  # the logits, and each factor's gradient
        quality=quality,
        rounds=3,
    )
