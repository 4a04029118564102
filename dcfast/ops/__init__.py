"""The ops: torch functions served by native, Triton or reference kernels. `torch.ops.dcfast.*` are behind them."""

from dcfast.ops._registry import backend
from dcfast.ops.accumulate import ClusterSums, Grid, accumulate, means, sum_grid
from dcfast.ops.assign import assign
from dcfast.ops.inertia import exact_sum, inertia, point_distances
from dcfast.ops.sobel_conv2d import sobel_conv2d
from dcfast.ops.split_empty import split_empty
from dcfast.ops.weighted_cross_entropy import inverse_size_weights, weighted_cross_entropy

__all__ = [
    "ClusterSums",
    "Grid",
    "accumulate",
    "assign",
    "backend",
    "exact_sum",
    "inertia",
    "inverse_size_weights",
    "means",
    "point_distances",
    "sobel_conv2d",
    "split_empty",
    "sum_grid",
    "weighted_cross_entropy",
]
