"""The definition, over the other ops' kernels: none of its own yet."""

from dcfast.ops._triton import CompileCase
from dcfast.ops.bisect.halves import bisect

__all__ = ["bisect", "compile_cases"]


def compile_cases() -> list[CompileCase]:
    """None of its own: see the other ops'."""
    return []
