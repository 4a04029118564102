"""The definition."""

from dcfast.ops.draw_rows.numpy_draws import draw_rows

__all__ = ["draw_rows"]
