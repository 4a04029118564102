"""The definition, over the other ops' references."""

from dcfast.ops.lloyd.loop import lloyd

__all__ = ["lloyd"]
