"""weighted_cross_entropy, forward and with its backward, against torch's own in eager mode and compiled."""

import pytest
import torch
from torch.nn import functional as F

from dcfast import ops

SHAPES = [(256, 10_000), (4_096, 1_000)]


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
