"""The ops: torch functions served by native, Triton or reference kernels. `torch.ops.dcfast.*` are behind them."""

from dcfast.ops._registry import backend
from dcfast.ops.assign import assign
from dcfast.ops.weighted_cross_entropy import inverse_size_weights, weighted_cross_entropy

__all__ = ["assign", "backend", "inverse_size_weights", "weighted_cross_entropy"]
