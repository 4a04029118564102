"""lloyd over Triton's kernels gives the bits of the definition."""

import pytest
import torch

from dcfast import ops


@pytest.mark.parametrize("empty", ["farthest", "split", "keep"])
@pytest.mark.parametrize("weighted", [False, True])
def test_runs_are_equal(empty, weighted):
    generator = torch.Generator().manual_seed(0)
    x, offsets = torch.randn(50, 3, generator=generator).round(), torch.tensor([0, 30, 50])
    weight = torch.rand(50, generator=generator, dtype=torch.float64) if weighted else None
    starts = torch.stack([x[:5], x[30:35]])
    starts[:, 4] = 100.0
    runs = ops.lloyd(x, offsets, starts, sample_weight=weight, empty=empty, seed=2, max_iter=3)
    with ops.backend("reference"):
        expected = ops.lloyd(x, offsets, starts, sample_weight=weight, empty=empty, seed=2, max_iter=3)
    assert all(torch.equal(a, b) for a, b in zip(runs, expected, strict=True))
