"""What the Triton backends share: device guard, persistent grids, exact widening, cases for offline compilation."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
import triton.language as tl

# Programs per multiprocessor of a kernel that walks a list whose length only the device knows.
_PROGRAMS_PER_SM = 8
# The interpreter runs programs one after the other: two suffice to walk a list with a stride.
_INTERPRETED_PROGRAMS = 2


@dataclass(frozen=True)
class CompileCase:
    """One representative specialisation of a kernel, for compilation with no GPU.

    Parameters
    ----------
    kernel : triton.JITFunction
    signature : dict of str to str
        Triton's type of every argument that is not constant, such as '*fp32' or 'i64'.
    constexprs : dict of str to int
        Values of the constant arguments.
    options : dict of str to object
        The launch options: num_warps, num_stages, enable_fp_fusion.
    definition : bool
        Whether the kernel evaluates a definition in double, so that no multiply-add may be fused in it.
    matrix_units : bool
        Whether it must use the matrix units.
    """

    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    definition: bool = False
    matrix_units: bool = False


def device_of(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the device of `x` current: Triton launches on the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def persistent_programs(x: torch.Tensor, most: int) -> int:
    """Programs of a kernel that loops over a list on the device, at most `most` (and at least 1)."""
    if x.is_cuda:
        limit = _PROGRAMS_PER_SM * torch.cuda.get_device_properties(x.device).multi_processor_count
    else:
        limit = _INTERPRETED_PROGRAMS
    return max(1, min(most, limit))


def block(size: int, smallest: int, largest: int) -> int:
    """The power of two that holds `size`, within the two limits (powers of two themselves)."""
    return min(largest, max(smallest, triton.next_power_of_2(size)))


@triton.jit
def widen(v):
    """float16, bfloat16, float32 or float64 to float64, exactly."""
    if v.dtype == tl.float64:
        return v
    # By way of float32: the interpreter does not convert bfloat16 to anything else.
    return v.to(tl.float32).to(tl.float64)
