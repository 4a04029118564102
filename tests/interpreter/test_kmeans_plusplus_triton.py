"""kmeans_plusplus over Triton's kernels chooses the rows of the definition."""

import pytest
import torch

from dcfast import ops


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_are_equal(dtype, weighted):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator).to(dtype)
    weight = torch.rand(60, generator=generator, dtype=torch.float64) if weighted else None
    uniform = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    rows = ops.kmeans_plusplus(x, weight, 7, uniform)
    with ops.backend("reference"):
        assert torch.equal(rows, ops.kmeans_plusplus(x, weight, 7, uniform))
