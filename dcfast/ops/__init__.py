"""The ops: torch functions served by native, Triton or reference kernels. `torch.ops.dcfast.*` are behind them."""

from dcfast.ops._registry import backend
from dcfast.ops.assign import assign

__all__ = ["assign", "backend"]
