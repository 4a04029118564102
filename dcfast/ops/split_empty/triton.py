"""Donors for empty clusters: one program per problem walks the empty clusters in order, all on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dcfast.ops._native import device_of
from dcfast.ops._triton import CompileCase, block

_OPTIONS = {"num_warps": 8, "enable_fp_fusion": False}


@triton.jit
def _spare(counts_ptr, at, k):
    return tl.maximum(tl.load(counts_ptr + at, mask=at < k, other=0) - 1, 0)


@triton.jit
def _split_empty(
    centroids_ptr,  # (problems, k, d) float32 or float64, changed in place
    counts_ptr,  # (problems, k) int64, changed in place
    seed_ptr,  # (problems,) int64
    iteration_ptr,  # (problems,) int64
    k,
    d,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    p = tl.program_id(0).to(tl.int64)
    centroids, counts = centroids_ptr + p * k * d, counts_ptr + p * k
    seed = tl.load(seed_ptr + p)
    iteration = tl.load(iteration_ptr + p)
    lane = tl.arange(0, BLOCK_K).to(tl.int64)
    total = tl.zeros((), tl.int64)
    for j0 in range(0, k, BLOCK_K):
        total += tl.sum(_spare(counts, j0 + lane, k), 0)
    for j0 in range(0, k, BLOCK_K):
        # Which clusters are empty is settled at the start: a split fills one and leaves the donor at least one.
        empties = (tl.load(counts + j0 + lane, mask=j0 + lane < k, other=1) == 0).to(tl.int32)
        # All have read the counts before any is changed.
        tl.debug_barrier()
        while (tl.max(empties, 0) > 0) & (total > 0):
            place = tl.argmax(empties, 0, tie_break_left=True)
            empties = tl.where(lane == place, 0, empties)
            empty = p * 0 + j0 + place
            c0, c1, _, _ = tl.philox(
                seed,
                (iteration & 0xFFFFFFFF).to(tl.uint32),
                ((iteration >> 32) & 0xFFFFFFFF).to(tl.uint32),
                (empty & 0xFFFFFFFF).to(tl.uint32),
                ((empty >> 32) & 0xFFFFFFFF).to(tl.uint32),
            )
            word = (c1.to(tl.uint64) << 32) | c0.to(tl.uint64)
            draw = tl.umulhi(word, total.to(tl.uint64)).to(tl.int64)
            # The donor is the first whose prefix sum exceeds the draw.
            donor = tl.zeros((), tl.int64)
            prefix = tl.zeros((), tl.int64)
            i0 = tl.zeros((), tl.int64)
            while prefix <= draw:
                spare = _spare(counts, i0 + lane, k)
                prefixes = prefix + tl.cumsum(spare, 0)
                donor += tl.sum((prefixes <= draw).to(tl.int64), 0)
                prefix += tl.sum(spare, 0)
                i0 += BLOCK_K
            count = tl.load(counts + donor)
            for i in range(0, d, BLOCK_D):
                col = i + tl.arange(0, BLOCK_D)
                source = tl.load(centroids + donor * d + col, mask=col < d)
                up, down = source * (1.0 + 2.0**-10), source * (1.0 - 2.0**-10)
                even = col % 2 == 0
                tl.store(centroids + empty * d + col, tl.where(even, up, down), mask=col < d)
                tl.store(centroids + donor * d + col, tl.where(even, down, up), mask=col < d)
            # All threads have read the counts before they change, and see the change before they read them again.
            tl.debug_barrier()
            tl.store(counts + empty, count // 2)
            tl.store(counts + donor, count - count // 2)
            tl.debug_barrier()
            total -= 1


def _blocks(k: int, d: int) -> tuple[int, int]:
    return block(k, 32, 1024), block(d, 32, 512)


def split_empty(
    centroids: torch.Tensor, counts: torch.Tensor, seed: torch.Tensor, iteration: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    k, d = centroids.shape[-2:]
    narrow = centroids.dtype in (torch.float16, torch.bfloat16)
    wide = centroids.to(torch.float32 if narrow else centroids.dtype, copy=True, memory_format=torch.contiguous_format)
    counts = counts.clone(memory_format=torch.contiguous_format)
    problems = centroids.shape[:-2].numel()
    if counts.numel() > 0:
        seeds, iterations = (key.to(wide.device).expand(problems).contiguous() for key in (seed, iteration))
        block_k, block_d = _blocks(k, d)
        with device_of(wide):
            _split_empty[(problems,)](
                wide, counts, seeds, iterations, k, d, BLOCK_K=block_k, BLOCK_D=block_d, **_OPTIONS
            )
    return wide.to(centroids.dtype), counts


def compile_cases() -> list[CompileCase]:
    """Representative specialisations, for compilation without a GPU."""
    cases = []
    for kind in ("fp32", "fp64"):
        block_k, block_d = _blocks(10000, 256)
        cases.append(
            CompileCase(
                f"split-{kind}",
                _split_empty,
                {
                    "centroids_ptr": f"*{kind}",
                    "counts_ptr": "*i64",
                    "seed_ptr": "*i64",
                    "iteration_ptr": "*i64",
                    "k": "i32",
                    "d": "i32",
                },
                {"BLOCK_K": block_k, "BLOCK_D": block_d},
                _OPTIONS,
            )
        )
    return cases
