"""What the Triton backends share: descriptions for compilation without a GPU, launches, exact widening."""

from __future__ import annotations

from collections.abc import Mapping
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


@triton.jit
def power_of_two(n):
    """2^n in double, by its bits, for int64 n in [-1022, 1023]."""
    return ((n + 1023) << 52).to(tl.float64, bitcast=True)


@triton.jit
def round_words(words_ptr, stride, n_words, unit, mask, DIGIT: tl.constexpr):
    """RN64 of the sum over w of word[w] 2^(unit + DIGIT w), signed words that need not be carried.

    One number for every element of `words_ptr`, its words `stride` apart. Two passes over the words, both carrying
    from the lowest: the first finds the sign, the second runs over the words of |S| and keeps the three digits
    from the highest that is not zero, and whether anything lies below them.
    """
    zero = unit * 0
    digit_mask = (zero + 1 << DIGIT) - 1
    carry, value = zero, zero
    for w in range(0, n_words):
        value = tl.load(words_ptr + (zero + w) * stride, mask=mask, other=0) + carry
        carry = value >> DIGIT
    sign = tl.where(value < 0, -1, 1).to(tl.int64)
    carry, last, last_but_one = zero, zero, zero
    d0, d1, d2, top = zero, zero, zero, zero
    passed, below = zero, zero
    for w in range(0, n_words):
        value = sign * tl.load(words_ptr + (zero + w) * stride, mask=mask, other=0) + carry
        carry = value >> DIGIT
        digit = tl.where(w + 1 < n_words, value & digit_mask, value)
        leads = digit != 0
        d0 = tl.where(leads, digit, d0)
        d1 = tl.where(leads, last, d1)
        d2 = tl.where(leads, last_but_one, d2)
        top = tl.where(leads, w, top)
        below = tl.where(leads, passed, below)
        passed = passed | last_but_one
        last_but_one = last
        last = digit
    # The leading 62 bits as one integer whose lowest bit also says whether anything lies below: its conversion
    # rounds to nearest even, once. (The length may come out one too long, which leaves 61 bits.)
    length = (d0.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1022
    shift = tl.minimum(tl.maximum(62 - length, 0), 61)
    near = tl.minimum(shift, DIGIT)
    far = shift - near
    rest1 = -near + DIGIT
    rest2 = -far + DIGIT
    leading = (d0 << shift) | ((d1 >> rest1) << far) | tl.where(far > 0, d2 >> rest2, 0)
    rest = (d1 & ((zero + 1 << rest1) - 1)) | tl.where(far > 0, d2 & ((zero + 1 << rest2) - 1), d2) | below
    leading = leading | tl.where(rest != 0, 1, 0).to(tl.int64)
    exponent = unit + top * DIGIT - shift
    half = exponent >> 1
    return (sign * leading).to(tl.float64) * power_of_two(half) * power_of_two(exponent - half)
