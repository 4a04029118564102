"""Numbers as tensors on a device."""

from __future__ import annotations

import torch


def scalar(value: torch.Tensor | float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A number by a kernel that writes it, since a copy from the host waits for the device; a tensor as it is there."""
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)
