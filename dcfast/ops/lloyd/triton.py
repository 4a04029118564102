"""The definition, over the other ops' kernels: none of its own yet."""

from dcfast.ops._triton import CompileCase
from dcfast.ops.lloyd.loop import lloyd

__all__ = ["compile_cases", "lloyd"]


def compile_cases() -> list[CompileCase]:
    """None of its own: see the other ops'."""
    return []
