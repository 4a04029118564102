"""The ops: torch functions served by native, Triton or reference kernels. `torch.ops.dcfast.*` are behind them."""

from dcfast.ops._registry import backend
from dcfast.ops.accumulate import ClusterSums, Grid, RunningSums, accumulate, column_range, grid_of, means, sum_grid
from dcfast.ops.assign import assign, distance_bounds, reassign
from dcfast.ops.batch_norm_relu_pool import batch_norm_relu_pool
from dcfast.ops.bisect import Bisection, bisect
from dcfast.ops.csr import Csr, csr_closer
from dcfast.ops.draw_rows import draw_rows
from dcfast.ops.inertia import exact_sum, inertia, point_distances
from dcfast.ops.kmeans_plusplus import kmeans_plusplus, kmeans_plusplus_batch
from dcfast.ops.linear_weighted_cross_entropy import linear_weighted_cross_entropy
from dcfast.ops.lloyd import Runs, lloyd
from dcfast.ops.minibatch_step import minibatch_step
from dcfast.ops.sobel_conv2d import sobel_conv2d
from dcfast.ops.split_empty import split_empty
from dcfast.ops.weighted_cross_entropy import inverse_size_weights, weighted_cross_entropy
from dcfast.ops.winograd_conv2d import winograd_conv2d

__all__ = [
    "Bisection",
    "ClusterSums",
    "Csr",
    "Grid",
    "RunningSums",
    "Runs",
    "accumulate",
    "assign",
    "backend",
    "batch_norm_relu_pool",
    "bisect",
    "column_range",
    "csr_closer",
    "distance_bounds",
    "draw_rows",
    "exact_sum",
    "grid_of",
    "inertia",
    "inverse_size_weights",
    "kmeans_plusplus",
    "kmeans_plusplus_batch",
    "linear_weighted_cross_entropy",
    "lloyd",
    "means",
    "minibatch_step",
    "point_distances",
    "reassign",
    "sobel_conv2d",
    "split_empty",
    "sum_grid",
    "weighted_cross_entropy",
    "winograd_conv2d",
]
