"""The ops: torch functions served by native, Triton or reference kernels. `torch.ops.dcfast.*` are behind them."""

from dcfast.ops._registry import backend
from dcfast.ops.assign import assign
from dcfast.ops.sobel_conv2d import sobel_conv2d

__all__ = ["assign", "backend", "sobel_conv2d"]
