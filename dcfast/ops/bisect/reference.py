"""The definition, over the other ops' references."""

from dcfast.ops.bisect.halves import bisect

__all__ = ["bisect"]
