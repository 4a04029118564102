"""bisect over Triton's kernels gives the bits of the definition."""

import pytest
import torch

from dcfast import ops


@pytest.mark.parametrize("weighted", [False, True])
def test_halves_are_equal(weighted):
    generator = torch.Generator().manual_seed(0)
    x, rows = torch.randn(50, 3, generator=generator).round(), torch.arange(1, 50, 2)
    weight = torch.rand(50, generator=generator, dtype=torch.float64) if weighted else None
    found = ops.bisect(x, rows, x[:2], weight, max_iter=3)
    with ops.backend("reference"):
        expected = ops.bisect(x, rows, x[:2], weight, max_iter=3)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
