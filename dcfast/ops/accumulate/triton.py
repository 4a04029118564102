"""Exact sums per cluster in int64 words, and the means that they round to.

Rows are sorted by cluster first, so that a program, which holds 32 rows and 32 columns, finds few clusters among its
rows: it sums the digits of each and adds them to the cluster's words by one atomic addition per column and word.
Integer additions need no order. An element splits into words as csrc/cpu/fixed.h says: adding 1.5 2^52 rounds what is
left of it to the nearest multiple of a word's unit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dcfast.ops._dtypes import wide_dtype
from dcfast.ops._native import device_of
from dcfast.ops._triton import CompileCase, block, power_of_two, round_words, widen
from dcfast.ops.accumulate.grid import DIGIT
from dcfast.ops.accumulate.moves import accumulate_moves

__all__ = ["accumulate", "accumulate_moves", "column_range", "compile_cases", "means"]

# Rows that may be added before the words must be carried: 2^22 digits of 2^39 stay below 2^61.
_SLICE_ROWS = 2**22
_DIGIT = tl.constexpr(DIGIT)
_MAGIC = tl.constexpr(1.5 * 2.0**52)
_NO_CLUSTER = tl.constexpr(2**62)

_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


@triton.jit
def _add(
    x_ptr,  # (problems, n, d), any strides
    order_ptr,  # (items,) int64: item = problem * n + row, sorted by cluster
    cluster_ptr,  # (items,) int64, sorted: problem * k + label; `clusters` and above: none
    weight_ptr,  # (problems, n) float64 contiguous; only if WEIGHTED
    low_ptr,  # (d,) int64
    words_ptr,  # (clusters, N_WORDS, d) int64, added to
    counts_ptr,  # (clusters,) int64, added to
    stride_p,
    stride_r,
    stride_d,
    items,
    clusters,
    n,
    d,
    N_WORDS: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    column_blocks = tl.cdiv(d, BLOCK_D)
    column_block = tl.program_id(0) % column_blocks
    at = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    col = (column_block * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    cluster = tl.load(cluster_ptr + at, mask=at < items, other=_NO_CLUSTER)
    member = cluster < clusters
    item = tl.load(order_ptr + at, mask=member, other=0)
    rows = x_ptr + (item // n) * stride_p + (item % n) * stride_r
    v = widen(tl.load(rows[:, None] + col[None, :] * stride_d, mask=member[:, None] & (col < d)[None, :], other=0.0))
    if WEIGHTED:
        v = v * tl.load(weight_ptr + item, mask=member, other=0.0)[:, None]
    rest = v * power_of_two(-tl.load(low_ptr + col, mask=col < d, other=0))[None, :]
    top = tl.zeros((), tl.int64) + _DIGIT * (N_WORDS - 1)  # at most 1000
    for step in tl.static_range(N_WORDS):
        whole = (rest * power_of_two(-top + _DIGIT * step) + _MAGIC) - _MAGIC
        rest = rest - whole * power_of_two(top - _DIGIT * step)  # exact: what is left has no more bits than before
        digit = whole.to(tl.int64)
        word = N_WORDS - 1 - step
        here = tl.min(cluster, 0)
        while here < clusters:
            part = tl.sum(tl.where((cluster == here)[:, None], digit, 0), 0)
            tl.atomic_add(words_ptr + (here * N_WORDS + word) * d + col, part, mask=col < d, sem="relaxed")
            here = tl.min(tl.where(cluster > here, cluster, _NO_CLUSTER), 0)
    if column_block == 0:
        here = tl.min(cluster, 0)
        while here < clusters:
            tl.atomic_add(counts_ptr + here, tl.sum((cluster == here).to(tl.int64), 0), sem="relaxed")
            here = tl.min(tl.where(cluster > here, cluster, _NO_CLUSTER), 0)


@triton.jit
def _carry(words_ptr, sums, n_words, d, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < sums
    word_ptr = words_ptr + (at // d) * n_words * d + at % d
    up = tl.zeros((BLOCK,), tl.int64)
    for w in range(0, n_words):
        value = tl.load(word_ptr, mask=mask, other=0) + up
        up = tl.where(w + 1 < n_words, value >> _DIGIT, 0)
        tl.store(word_ptr, value - (up << _DIGIT), mask=mask)
        word_ptr += d


@triton.jit
def _range(
    x_ptr,  # (n, d), any strides
    weight_ptr,  # (n,) float64; only if WEIGHTED
    smallest_ptr,  # (d,) bits of float64, lowered
    largest_ptr,  # (d,) bits of float64, raised
    stride_r,
    stride_d,
    n,
    d,
    WEIGHTED: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    column_blocks = tl.cdiv(d, BLOCK_D)
    row = (tl.program_id(0) // column_blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    col = (tl.program_id(0) % column_blocks * BLOCK_D + tl.arange(0, BLOCK_D)).to(tl.int64)
    inside = (row < n)[:, None] & (col < d)[None, :]
    v = widen(tl.load(x_ptr + row[:, None] * stride_r + col[None, :] * stride_d, mask=inside, other=0.0))
    if WEIGHTED:
        v = v * tl.load(weight_ptr + row, mask=row < n, other=0.0)[:, None]
    bits = tl.abs(v).to(tl.int64, bitcast=True)
    some = (bits > 0) & (bits < 0x7FF0000000000000)
    tl.atomic_min(smallest_ptr + col, tl.min(tl.where(some, bits, 0x7FF0000000000000), 0), mask=col < d, sem="relaxed")
    tl.atomic_max(largest_ptr + col, tl.max(tl.where(some, bits, 0), 0), mask=col < d, sem="relaxed")


# Specialised for d = 1, its index arithmetic differs enough for the compiler to spill.
@triton.jit(do_not_specialize=["d", "n_words"])
def _means(
    words_ptr,  # (clusters, n_words, d) int64
    low_ptr,  # (d,) int64
    total_ptr,  # (clusters,) float64
    previous_ptr,  # (clusters, d) float32 or float64
    out_ptr,  # (clusters, d) of the same
    elements,
    n_words,
    d,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < elements
    cluster, col = at // d, at % d
    unit = tl.load(low_ptr + col, mask=mask, other=0)
    rounded = round_words(words_ptr + cluster * n_words * d + col, d, n_words, unit, mask, _DIGIT)
    total = tl.load(total_ptr + cluster, mask=mask, other=0.0)
    some = total > 0.0
    previous = tl.load(previous_ptr + at, mask=mask, other=0.0)
    mean = (rounded / tl.where(some, total, 1.0)).to(previous.dtype)
    tl.store(out_ptr + at, tl.where(some, mean, previous), mask=mask)


def accumulate(
    x: torch.Tensor,
    labels: torch.Tensor,
    n_clusters: int,
    sample_weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, d = x.shape[:-2], x.shape[-1]
    words = torch.zeros((*batch, n_clusters, n_words, d), dtype=torch.int64, device=x.device)
    counts = torch.zeros((*batch, n_clusters), dtype=torch.int64, device=x.device)
    if x.dim() == 2:
        x, labels = x[None], labels[None]
        sample_weight = None if sample_weight is None else sample_weight[None]
    if x.numel() > 0:
        low = low.to(x.device).contiguous()
        with device_of(x):
            for start in range(0, x.shape[1], _SLICE_ROWS):
                rows = slice(start, start + _SLICE_ROWS)
                weight = None if sample_weight is None else sample_weight[:, rows].contiguous()
                _accumulate(x[:, rows], labels[:, rows], n_clusters, weight, low, n_words, words, counts)
    return words, counts


def _accumulate(
    x: torch.Tensor,
    labels: torch.Tensor,
    k: int,
    weight: torch.Tensor | None,
    low: torch.Tensor,
    n_words: int,
    words: torch.Tensor,
    counts: torch.Tensor,
) -> None:
    n, d = x.shape[1:]
    clusters, items = counts.numel(), labels.numel()
    member = (labels >= 0) & (labels < k)
    if weight is not None:
        member &= weight != 0
    offset = torch.arange(0, clusters, k, device=x.device)[:, None]
    cluster = (labels + offset).where(member, clusters)
    # Half the passes of the sort where the keys fit.
    key = cluster.int() if clusters < 2**31 else cluster
    order = key.flatten().argsort()
    cluster = cluster.flatten()[order]
    block_r, block_d = 32, block(d, 16, 32)
    _add[(-(-items // block_r) * -(-d // block_d),)](
        x, order, cluster, weight, low, words, counts, *x.stride(), items, clusters, n, d,
        N_WORDS=n_words, WEIGHTED=weight is not None, BLOCK_R=block_r, BLOCK_D=block_d, **_OPTIONS,
    )  # fmt: skip
    sums = clusters * d
    _carry[(-(-sums // 256),)](words, sums, n_words, d, BLOCK=256, num_warps=4)


def column_range(x: torch.Tensor, sample_weight: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    d = x.shape[-1]
    x = x.flatten(0, -2)
    # Positive doubles are ordered as their bits are.
    smallest = torch.full((d,), torch.inf, dtype=torch.float64, device=x.device).view(torch.int64)
    largest = torch.zeros(d, dtype=torch.int64, device=x.device)
    weight = None if sample_weight is None else sample_weight.flatten().contiguous()
    if x.numel() > 0:
        block_d = block(d, 16, 64)
        with device_of(x):
            _range[(-(-x.shape[0] // 64) * -(-d // block_d),)](
                x, weight, smallest, largest, *x.stride(),
                x.shape[0], d, WEIGHTED=weight is not None, BLOCK_R=64, BLOCK_D=block_d, **_OPTIONS,
            )  # fmt: skip
    return smallest.view(torch.float64), largest.view(torch.float64)


def means(words: torch.Tensor, low: torch.Tensor, total: torch.Tensor, previous: torch.Tensor) -> torch.Tensor:
    wide = wide_dtype(previous.dtype)
    out = torch.empty(previous.shape, dtype=wide, device=previous.device)
    n_words, d = words.shape[-2:]
    if out.numel() > 0:
        with device_of(previous):
            _means[(-(-out.numel() // 256),)](
                words.contiguous(), low.to(out.device).contiguous(), total.contiguous(),
                previous.to(wide).contiguous(), out, out.numel(), n_words, d, BLOCK=256, num_warps=4,
            )  # fmt: skip
    return out.to(previous.dtype)


def compile_cases() -> list[CompileCase]:
    """Representative specialisations, for compilation without a GPU."""
    cases = [
        CompileCase(
            f"add-d64-{kind}-{n_words}{'-weighted' if weighted else ''}",
            _add,
            {
                "x_ptr": f"*{kind}",
                "order_ptr": "*i64",
                "cluster_ptr": "*i64",
                "weight_ptr": "*fp64",
                "low_ptr": "*i64",
                "words_ptr": "*i64",
                "counts_ptr": "*i64",
                **dict.fromkeys(("stride_p", "stride_r", "stride_d"), "i64"),
                **dict.fromkeys(("items", "clusters", "n", "d"), "i32"),
            },
            {"N_WORDS": n_words, "WEIGHTED": weighted, "BLOCK_R": 32, "BLOCK_D": 32},
            _OPTIONS,
        )
        for kind, n_words, weighted in (("fp32", 2, False), ("fp32", 3, True), ("bf16", 1, False), ("fp64", 4, True))
    ]
    cases.append(
        CompileCase(
            "carry",
            _carry,
            {"words_ptr": "*i64", "sums": "i32", "n_words": "i32", "d": "i32"},
            {"BLOCK": 256},
            {"num_warps": 4},
        )
    )
    for kind, weighted in (("fp32", False), ("bf16", True), ("fp64", True)):
        cases.append(
            CompileCase(
                f"range-{kind}{'-weighted' if weighted else ''}",
                _range,
                {
                    "x_ptr": f"*{kind}",
                    "weight_ptr": "*fp64",
                    "smallest_ptr": "*i64",
                    "largest_ptr": "*i64",
                    **dict.fromkeys(("stride_r", "stride_d"), "i64"),
                    **dict.fromkeys(("n", "d"), "i32"),
                },
                {"WEIGHTED": weighted, "BLOCK_R": 64, "BLOCK_D": 64},
                _OPTIONS,
            )
        )
    for kind in ("fp32", "fp64"):
        cases.append(
            CompileCase(
                f"means-{kind}",
                _means,
                {
                    "words_ptr": "*i64",
                    "low_ptr": "*i64",
                    "total_ptr": "*fp64",
                    "previous_ptr": f"*{kind}",
                    "out_ptr": f"*{kind}",
                    **dict.fromkeys(("elements", "n_words", "d"), "i32"),
                },
                {"BLOCK": 256},
                {"num_warps": 4},
            )
        )
    return cases
