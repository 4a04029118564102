"""The definition, over the other ops' kernels: none of its own yet."""

from dcfast.ops._triton import CompileCase
from dcfast.ops.minibatch_step.step import minibatch_step

__all__ = ["compile_cases", "minibatch_step"]


def compile_cases() -> list[CompileCase]:
    """None of its own: see the other ops'."""
    return []
