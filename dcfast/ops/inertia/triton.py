"""D64 of every row to its own centroid, and exact sums of doubles.

The sum of arbitrary doubles needs every exponent from 2^-1074 to 2^1023: digits of 32 bits, each in an int64, as in
csrc/cpu/inertia.cpp. A program adds up what its values put into the same digits and adds that by atomics: integers,
so the order does not matter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dcfast.ops._native import device_of
from dcfast.ops._triton import CompileCase, round_words, widen

_DIGIT = tl.constexpr(32)
_DIGITS = 68  # 2^-1074 ... 2^1023 and 62 bits for the carries of 2^62 additions
_SPECIALS = tl.constexpr(77)  # words 77, 78 and 79 count +inf, -inf and NaN
_WORDS = 80
# Additions of 2^32 into an int64 before the digits must be carried.
_SLICE = 2**30
_NO_DIGIT = tl.constexpr(2**30)

_BLOCK = 128
_SUM_BLOCK = 1024
_DISTANCE_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _point_distances(
    x_ptr,  # (problems, n, d), any strides
    c_ptr,  # (problems, k, d), any strides
    labels_ptr,  # (problems, n) int64
    weight_ptr,  # (problems, n) float64; only if WEIGHTED
    out_ptr,  # (problems, n) float64
    x_stride_p,
    x_stride_r,
    x_stride_d,
    c_stride_p,
    c_stride_r,
    c_stride_d,
    items,
    n,
    k,
    d,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels_ptr + at, mask=at < items, other=-1)
    inside = (label >= 0) & (label < k)
    p, row = at // n, at % n
    x = x_ptr + p * x_stride_p + row * x_stride_r
    c = c_ptr + p * c_stride_p + label * c_stride_r
    acc = tl.zeros((BLOCK,), tl.float64)
    for _ in range(0, d):
        t = widen(tl.load(x, mask=inside, other=0.0)) - widen(tl.load(c, mask=inside, other=0.0))
        acc = acc + t * t
        x += x_stride_d
        c += c_stride_d
    if WEIGHTED:
        acc = tl.load(weight_ptr + at, mask=at < items, other=0.0) * acc
    tl.store(out_ptr + at, acc, mask=at < items)


@triton.jit
def _sum_add(values_ptr, words_ptr, first, stop, length, N_WORDS: tl.constexpr, BLOCK: tl.constexpr):
    # Adds the values first <= i < stop of every row (of that length) to the row's words.
    blocks = tl.cdiv(stop - first, BLOCK)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    at = first + (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    words = words_ptr + row * N_WORDS
    bits = tl.load(values_ptr + row * length + at, mask=at < stop, other=0.0).to(tl.int64, bitcast=True)
    biased = (bits >> 52) & 0x7FF
    mantissa = bits & ((1 << 52) - 1)
    negative = bits < 0
    special = biased == 0x7FF
    if tl.max(special.to(tl.int32), 0) > 0:
        kind = tl.where(mantissa != 0, 2, tl.where(negative, 1, 0))
        for which in tl.static_range(3):
            n = tl.sum((special & (kind == which)).to(tl.int64), 0)
            tl.atomic_add(words + _SPECIALS + which, n, sem="relaxed")
    # A subnormal has the exponent of the smallest normal number: units of 2^-1074 either way.
    mantissa = tl.where(special, 0, tl.where(biased > 0, mantissa | (1 << 52), mantissa))
    biased = tl.maximum(biased - 1, 0)
    shift = biased % _DIGIT
    sign = tl.where(negative, -1, 1).to(tl.int64)
    low = sign * ((mantissa << shift) & 0xFFFFFFFF)
    # In two steps: a shift by 64 has no value.
    high = (mantissa >> 1) >> (31 - shift)
    middle = sign * (high & 0xFFFFFFFF)
    high = sign * (high >> 32)
    digit = tl.where(mantissa != 0, biased // _DIGIT, _NO_DIGIT)
    here = tl.min(digit, 0)
    while here < _NO_DIGIT:
        own = digit == here
        tl.atomic_add(words + here, tl.sum(tl.where(own, low, 0), 0), sem="relaxed")
        tl.atomic_add(words + here + 1, tl.sum(tl.where(own, middle, 0), 0), sem="relaxed")
        tl.atomic_add(words + here + 2, tl.sum(tl.where(own, high, 0), 0), sem="relaxed")
        here = tl.min(tl.where(digit > here, digit, _NO_DIGIT), 0)


@triton.jit
def _sum_carry(words_ptr, rows, N_WORDS: tl.constexpr, N_DIGITS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    up = tl.zeros((BLOCK,), tl.int64)
    for w in range(0, N_DIGITS):
        at = words_ptr + row * N_WORDS + w
        value = tl.load(at, mask=row < rows, other=0) + up
        up = tl.where(w + 1 < N_DIGITS, value >> _DIGIT, 0)
        tl.store(at, value - (up << _DIGIT), mask=row < rows)


@triton.jit
def _sum_round(words_ptr, out_ptr, rows, N_WORDS: tl.constexpr, N_DIGITS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = row < rows
    words = words_ptr + row * N_WORDS
    unit = tl.full((BLOCK,), -1074, tl.int64)
    total = round_words(words, 1, N_DIGITS, unit, mask, _DIGIT)
    up = tl.load(words + _SPECIALS, mask=mask, other=0) > 0
    down = tl.load(words + _SPECIALS + 1, mask=mask, other=0) > 0
    nan = tl.load(words + _SPECIALS + 2, mask=mask, other=0) > 0
    total = tl.where(up, float("inf"), tl.where(down, float("-inf"), total))
    tl.store(out_ptr + row, tl.where(nan | (up & down), float("nan"), total), mask=mask)


def point_distances(
    x: torch.Tensor, centroids: torch.Tensor, labels: torch.Tensor, sample_weight: torch.Tensor | None
) -> torch.Tensor:
    out = torch.empty(x.shape[:-1], dtype=torch.float64, device=x.device)
    if out.numel() == 0:
        return out
    if x.dim() == 2:
        x, centroids = x[None], centroids[None]
    weight = None if sample_weight is None else sample_weight.contiguous()
    with device_of(x):
        _point_distances[(-(-out.numel() // _BLOCK),)](
            x, centroids, labels.contiguous(), weight, out, *x.stride(), *centroids.stride(), out.numel(),
            x.shape[1], centroids.shape[1], x.shape[2],
            WEIGHTED=weight is not None, BLOCK=_BLOCK, **_DISTANCE_OPTIONS,
        )  # fmt: skip
    return out


def exact_sum(values: torch.Tensor) -> torch.Tensor:
    out = torch.empty(values.shape[:-1], dtype=torch.float64, device=values.device)
    rows, length = out.numel(), values.shape[-1]
    if rows == 0:
        return out
    values = values.contiguous()
    words = torch.zeros((rows, _WORDS), dtype=torch.int64, device=values.device)
    with device_of(values):
        for first in range(0, length, _SLICE):
            stop = min(first + _SLICE, length)
            _sum_add[(rows * -(-(stop - first) // _SUM_BLOCK),)](
                values, words, first, stop, length, N_WORDS=_WORDS, BLOCK=_SUM_BLOCK, num_warps=4
            )
            if stop < length:
                _sum_carry[(-(-rows // 32),)](words, rows, N_WORDS=_WORDS, N_DIGITS=_DIGITS, BLOCK=32, num_warps=1)
        _sum_round[(-(-rows // 32),)](words, out, rows, N_WORDS=_WORDS, N_DIGITS=_DIGITS, BLOCK=32, num_warps=1)
    return out


def compile_cases() -> list[CompileCase]:
    """Representative specialisations, for compilation without a GPU."""
    cases = []
    for kind, weighted in (("fp32", True), ("fp64", False), ("bf16", False)):
        cases.append(
            CompileCase(
                f"point-distances-d64-{kind}",
                _point_distances,
                {
                    "x_ptr": f"*{kind}",
                    "c_ptr": f"*{kind}",
                    "labels_ptr": "*i64",
                    "weight_ptr": "*fp64",
                    "out_ptr": "*fp64",
                    **{f"{which}_stride_{axis}": "i64" for which in "xc" for axis in "prd"},
                    **dict.fromkeys(("items", "n", "k", "d"), "i32"),
                },
                {"WEIGHTED": weighted, "BLOCK": _BLOCK},
                _DISTANCE_OPTIONS,
            )
        )
    words = {"N_WORDS": _WORDS, "N_DIGITS": _DIGITS, "BLOCK": 32}
    cases += [
        CompileCase(
            "sum-add",
            _sum_add,
            {"values_ptr": "*fp64", "words_ptr": "*i64", "first": "i64", "stop": "i64", "length": "i64"},
            {"N_WORDS": _WORDS, "BLOCK": _SUM_BLOCK},
            {"num_warps": 4},
        ),
        CompileCase("sum-carry", _sum_carry, {"words_ptr": "*i64", "rows": "i32"}, words, {"num_warps": 1}),
        CompileCase(
            "sum-round", _sum_round, {"words_ptr": "*i64", "out_ptr": "*fp64", "rows": "i32"}, words, {"num_warps": 1}
        ),
    ]
    return cases
