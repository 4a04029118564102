"""reassign by `assign`, which looks at every centroid, on any device: the definition of the op."""

from __future__ import annotations

import torch


def reassign(
    x: torch.Tensor,
    centroids: torch.Tensor,
    previous: torch.Tensor,
    labels: torch.Tensor,
    bounds: torch.Tensor,
    out: torch.Tensor,
) -> torch.Tensor:
    bounds.zero_()  # nothing is known of any group
    out.copy_(torch.ops.dcfast.assign(x, centroids))
    return torch.count_nonzero(out != labels)
