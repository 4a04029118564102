"""What the Triton backends share: device guard, block sizes, cases for offline compilation."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton


@dataclass(frozen=True)
class CompileCase:
    """One specialisation of a kernel, as its launcher would ask for it on a GPU.

    Every `dcfast.ops.<op>.triton` offers `compile_cases() -> list[CompileCase]` with at least one case for each
    kernel that it launches; `tests/offline` compiles them for sm_80 and sm_90 and reads the machine code.

    Parameters
    ----------
    name : str
        Unique within the op. A name that contains 'd64' promises that no multiplication and addition in double
        are fused: its machine code must hold no DFMA.
    kernel : triton.JITFunction
        What `@triton.jit` made.
    signature : mapping of str to str
        The Triton type of every argument that is not a constexpr, in the order of the kernel's arguments:
        '*fp32', '*fp64', '*fp16', '*bf16', '*i64', '*u8', 'i64', 'i32', 'fp32', ...
    constexprs : mapping of str to object
        The value of every constexpr argument.
    options : mapping of str to object
        What the launcher passes beside the arguments: num_warps, num_stages, enable_fp_fusion, ...
    divisible : tuple of str
        Integer arguments that are multiples of 16. Pointers always are: torch aligns what it allocates.
    expect : mapping of int to tuple of str
        Architecture (80, 90) to the opcodes that must appear, such as {80: ('HMMA',), 90: ('HGMMA',)}. An opcode
        also stands for its variants: 'HMMA' for 'HMMA.16816.F32'.
    forbid : tuple of str
        Opcodes that must not appear on any architecture.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    divisible: tuple[str, ...] = ()
    expect: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    forbid: tuple[str, ...] = ()


def device_of(x: torch.Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the device of `x` current: Triton launches on the current one."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def block(size: int, smallest: int, largest: int) -> int:
    """The power of two that holds `size`, within the two limits (powers of two themselves)."""
    return min(largest, max(smallest, triton.next_power_of_2(size)))
