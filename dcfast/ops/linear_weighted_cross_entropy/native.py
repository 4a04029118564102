"""Blocks of rows by torch's products and the native kernels of weighted_cross_entropy."""

from dcfast.ops.linear_weighted_cross_entropy.blocks import (
    linear_weighted_cross_entropy,
    linear_weighted_cross_entropy_gradient,
)

__all__ = ["linear_weighted_cross_entropy", "linear_weighted_cross_entropy_gradient"]
