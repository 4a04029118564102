"""The definition: the draws are made on the CPU, for data on any device."""

from dcfast.ops._triton import CompileCase
from dcfast.ops.draw_rows.numpy_draws import draw_rows

__all__ = ["compile_cases", "draw_rows"]


def compile_cases() -> list[CompileCase]:
    """None: there is no kernel."""
    return []
