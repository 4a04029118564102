"""The definition, over the other ops' references."""

from dcfast.ops.minibatch_step.step import minibatch_step

__all__ = ["minibatch_step"]
