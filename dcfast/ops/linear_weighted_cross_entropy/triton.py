"""Blocks of rows by torch's products and the Triton kernels of weighted_cross_entropy: none of its own."""

from dcfast.ops._triton import CompileCase
from dcfast.ops.linear_weighted_cross_entropy.blocks import (
    linear_weighted_cross_entropy,
    linear_weighted_cross_entropy_gradient,
)

__all__ = ["compile_cases", "linear_weighted_cross_entropy", "linear_weighted_cross_entropy_gradient"]


def compile_cases() -> list[CompileCase]:
    """None of its own: see those of weighted_cross_entropy."""
    return []
