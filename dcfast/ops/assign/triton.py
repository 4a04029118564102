"""Labels by a float16 tensor-core pass with a bound on the error of every score, and a recheck in double of the rest.

Units. Rows and centroids are shifted by m (the mean of the centroids) and scaled by one power of two s, so that the
largest centroid element lies in [2^7, 2^8): c~ = (c - m) s, x~ = (x - m) s, c' and x' their float16 roundings, r_c
and r_x the norms of what rounding dropped. The pass computes, for every centroid j, a lower bound v_j of the score
s_j = |c~_j|^2/2 - x~.c~_j:

    v_j = ((H_j - a_j) - n b_j) - x'.c'_j, its low 7 bits replaced by j's place in the tile,    H_j = |c~_j|^2/2

With u = 2^-24, w = 1.05 2^-16, e = 0.8 2^-12 and n = max(|x'|, r_x / e), which for float16 is nearly always |x'|:
  * dropped by the rounding of operands: |x~.c~ - x'.c'| <= r_x |c~| + |x'| r_c <= n (e |c~| + r_c)
  * the sum on tensor cores, in any order, with adders that truncate: A |x'||c'|, A = g_2d(2^-23),
    g_n(u) = nu/(1-nu); above 1024 elements blocks of 1024 are summed on their own, then in float32:
    A = g_2048(2^-23) + g_blocks(2^-24)
  * three float32 operations (3 u) and the 7 bits (127 2^-23 < 0.993 2^-16) relative to H + n b + (1 + A)|x'||c'|,
    together below w
  * underflow: tau = (d + 2) 2^-120
so that a_j = w H_j + tau and b_j = (e |c~_j| + r_c + (A + w (1 + A)) |c'_j|) (1 + 2^-15) are enough. The place in the
low bits costs 4 % of the bound and makes the three lowest of a tile three plain minima.

The best, 1, is proved when v_2 > T = v_1 + 2 (a_1 + n b_1) + rho (|x~| + |c~_1|)^2 + slack, rho = (d + 4) 2^-53: then
s_2 - s_1 exceeds what the roundings of the definition's D64 could reverse. Otherwise only centroids with v_j <= T can
be nearest: two if v_3 > T, else every centroid is evaluated. `slack` is what underflow can do to D64 of float64 data;
it is infinite where such data leaves the range in which D64 neither underflows nor overflows. Rows that float16 cannot
hold (an element of 2^15 or more in these units) are evaluated against every centroid too.

The rows left open go to two lists on the device, and kernels of a fixed number of programs walk them: no
synchronisation. D64 is evaluated with fusion off: each multiplication and addition is rounded on its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dcfast.ops._native import device_of
from dcfast.ops._triton import CompileCase, block, persistent_programs, widen
from dcfast.ops.assign.anew import reassign

__all__ = ["assign", "compile_cases", "reassign"]

# Elements of x' held at a time: 256 MiB. Slices bound the memory; they do not change a label.
_SLICE_ELEMENTS = 2**27
# Elements of d that the matrix units sum before a float32 addition takes over: bounds A for large d.
_SUM_BLOCK = 1024
# From this many open rows on, each centroid loaded serves several rows; below, every row gets its own program.
_MANY_ROWS = 4096

_EXPONENT = tl.constexpr(8)  # the largest centroid element is below 2^8
_HALF_LIMIT = tl.constexpr(2.0**15)  # the largest row element that float16 is asked to hold
_W = tl.constexpr(1.05 * 2.0**-16)
_E = tl.constexpr(0.8 * 2.0**-12)
# Scores of centroids that are none (padding, duplicates, not finite), and of nothing: finite, because the low bits
# of an infinity make a NaN.
_DEAD = tl.constexpr(2.0**126)
_NONE = tl.constexpr(2.0**127)
_PLACE_BITS = tl.constexpr(127)


@triton.jit
def _up(v):
    # float64 -> float32, not below v; 0 stays 0.
    return tl.where(v == 0.0, 0.0, v * (1.0 + 2.0**-22) + 2.0**-140).to(tl.float32)


@triton.jit
def _operands(
    v_ptr,  # the rows or the centroids, (problems, rows, d), any strides
    shift_ptr,  # (all problems, d) float64
    scale_ptr,  # (all problems,) float64
    live_ptr,  # (all problems, rows) int8, whether a centroid counts; only if CENTROIDS
    half_ptr,  # out: (problems, rows_padded, d_padded) float16
    stats_ptr,  # out: CENTROIDS: H - a, b, a, |c~|; else n, |x~|; each (problems, rows_padded) float32
    stride_p,
    stride_r,
    stride_d,
    stats_stride,
    problem0,
    rows,
    rows_padded,
    d,
    d_padded,
    spread,  # A + w (1 + A), rounded up
    CENTROIDS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = rows_padded // BLOCK_R
    p = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    inside = row < rows
    scale = tl.load(scale_ptr + problem0 + p)
    keep = inside
    if CENTROIDS:
        keep = inside & (tl.load(live_ptr + (problem0 + p) * rows + row, mask=inside, other=0) != 0)
    zero = tl.zeros((BLOCK_R,), tl.float64)
    square, half_square, lost = zero, zero, zero
    infinite, too_large = tl.zeros((BLOCK_R,), tl.int32), tl.zeros((BLOCK_R,), tl.int32)
    for start in range(0, d_padded, BLOCK_D):
        col = start + tl.arange(0, BLOCK_D)
        mask = inside[:, None] & (col < d)[None, :]
        at = v_ptr + p * stride_p + row[:, None] * stride_r + col.to(tl.int64)[None, :] * stride_d
        v = widen(tl.load(at, mask=mask, other=0.0))
        m = tl.load(shift_ptr + (problem0 + p) * d + col, mask=col < d, other=0.0)
        infinite += tl.sum((tl.abs(v) < float("inf")).to(tl.int32) ^ 1, 1)
        t = tl.where(mask & keep[:, None], (v - m[None, :]) * scale, 0.0)
        fits = tl.abs(t) < _HALF_LIMIT
        too_large += tl.sum(fits.to(tl.int32) ^ 1, 1)
        t = tl.where(fits, t, 0.0)
        half = t.to(tl.float16)
        tl.store(half_ptr + (p * rows_padded + row[:, None]) * d_padded + col[None, :], half)
        w = half.to(tl.float32).to(tl.float64)
        square += tl.sum(t * t, 1)
        half_square += tl.sum(w * w, 1)
        lost += tl.sum((t - w) * (t - w), 1)
    one = tl.full((), 1.0, tl.float64)
    grow = 1.0 + (one * d + 8.0) * 2.0**-52  # the roundings of a sum of squares in double
    norm = tl.sqrt(square * grow) * (1.0 + 2.0**-50)
    half_norm = tl.sqrt(half_square * grow) * (1.0 + 2.0**-50)
    residual = tl.sqrt(lost * grow) * (1.0 + 2.0**-50) + norm * 2.0**-52
    out = stats_ptr + p * rows_padded + row
    if CENTROIDS:
        h = 0.5 * square / (grow * grow)
        a = _up(0.5 * square * grow * _W + (one * d + 2.0) * 2.0**-120)
        b = _up((norm * _E + residual + spread * half_norm) * (1.0 + 2.0**-15))
        low = h - a.to(tl.float64)
        low = (low - tl.abs(low) * 2.0**-23 - 2.0**-140).to(tl.float32)
        tl.store(out, tl.where(keep, low, _DEAD))
        tl.store(out + stats_stride, tl.where(keep, b, 0.0))
        tl.store(out + 2 * stats_stride, tl.where(keep, a, 0.0))
        tl.store(out + 3 * stats_stride, tl.where(keep, _up(norm), 0.0))
    else:
        usable = (infinite == 0) & (too_large == 0)
        tl.store(out, tl.where(usable, _up(tl.maximum(half_norm, residual / _E)), 0.0))
        # An infinite norm sends the row to the full recheck; NaN marks a row with no label.
        beyond = tl.where(infinite == 0, float("inf"), float("nan"))
        tl.store(out + stats_stride, tl.where(usable, _up(norm), beyond))


@triton.jit
def _append(list_ptr, count_ptr, items, chosen):
    # Appends the chosen items, in no particular order among programs.
    chosen = chosen.to(tl.int32)
    n = tl.sum(chosen, 0)
    if n > 0:
        base = tl.atomic_add(count_ptr, n)
        tl.store(list_ptr + base + tl.cumsum(chosen, 0) - 1, items, mask=chosen != 0)


@triton.jit
def _certify(
    rows_ptr,  # (problems, n_padded, d_padded) float16
    row_stats_ptr,
    centroids_ptr,  # (all problems, k_padded, d_padded) float16
    centroid_stats_ptr,
    slack_ptr,  # (all problems,) float64
    labels_ptr,  # out: (all problems, label_stride) int64, of the decided rows
    pair_ptr,  # out: (2, rows of the slice) int32, the two candidates
    list_ptr,  # out: (2, rows of the slice) int32, the rows left with two candidates, and with more
    count_ptr,  # out: (2,) int32, their lengths, zero before
    row_stats_stride,
    centroid_stats_stride,
    list_stride,
    problem0,
    row0,
    label_stride,
    n,
    n_padded,
    k_padded,
    d,
    d_padded,
    SUM_BLOCK: tl.constexpr,  # 0: d_padded is at most one block
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    blocks = n_padded // BLOCK_M
    p = (tl.program_id(0) // blocks).to(tl.int64)
    first_row = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK_M
    row = first_row + tl.arange(0, BLOCK_M)
    place = tl.arange(0, BLOCK_N)
    col = tl.arange(0, BLOCK_D)
    row_stats = row_stats_ptr + p * n_padded + row
    size = tl.load(row_stats)
    stats = centroid_stats_ptr + (problem0 + p) * k_padded
    x_ptr = rows_ptr + (p * n_padded + row[:, None]) * d_padded + col[None, :]
    c_ptr = centroids_ptr + ((problem0 + p) * k_padded + place[None, :]) * d_padded + col[:, None]

    v1 = tl.full((BLOCK_M,), _NONE, tl.float32)
    v2, v3 = v1, v1
    at1 = tl.zeros((BLOCK_M,), tl.int32)
    at2 = at1
    zero = tl.zeros((), tl.int64)
    for j0 in range(0, k_padded, BLOCK_N):
        # 64 bits before the product.
        c_tile = c_ptr + (zero + j0) * d_padded
        dot = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if SUM_BLOCK == 0:
            for i in range(0, d_padded, BLOCK_D):
                dot = tl.dot(tl.load(x_ptr + i), tl.load(c_tile + i), dot)
        else:
            for i0 in range(0, d_padded, SUM_BLOCK):
                part = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
                for i in range(i0, min(i0 + SUM_BLOCK, d_padded), BLOCK_D):
                    part = tl.dot(tl.load(x_ptr + i), tl.load(c_tile + i), part)
                dot += part
        h = tl.load(stats + j0 + place)
        b = tl.load(stats + centroid_stats_stride + j0 + place)
        v = (h[None, :] - size[:, None] * b[None, :]) - dot
        v = ((v.to(tl.int32, bitcast=True) & ~_PLACE_BITS) | place[None, :]).to(tl.float32, bitcast=True)

        # The three lowest of the tile; places make its values distinct.
        t1 = tl.min(v, 1)
        v = tl.where(v == t1[:, None], _NONE, v)
        t2 = tl.min(v, 1)
        v = tl.where(v == t2[:, None], _NONE, v)
        t3 = tl.min(v, 1)
        # Merged with the three lowest so far: the loser of the two heads competes with the winner's second.
        new = t1 < v1
        here1 = j0 + (t1.to(tl.int32, bitcast=True) & _PLACE_BITS)
        here2 = j0 + (t2.to(tl.int32, bitcast=True) & _PLACE_BITS)
        loser, loser_at = tl.maximum(t1, v1), tl.where(new, at1, here1)
        runner, runner_at = tl.where(new, t2, v2), tl.where(new, here2, at2)
        v3 = tl.minimum(tl.maximum(loser, runner), tl.minimum(tl.where(new, t3, v3), tl.where(new, v2, t2)))
        at1 = tl.where(new, here1, at1)
        v1 = tl.minimum(t1, v1)
        at2 = tl.where(loser < runner, loser_at, runner_at)
        v2 = tl.minimum(loser, runner)

    one = tl.full((), 1.0, tl.float64)
    b1 = tl.load(stats + centroid_stats_stride + at1).to(tl.float64)
    a1 = tl.load(stats + 2 * centroid_stats_stride + at1).to(tl.float64)
    norm = tl.load(row_stats + row_stats_stride)
    reach = norm.to(tl.float64) + tl.load(stats + 3 * centroid_stats_stride + at1).to(tl.float64)
    margin = 2.0 * (a1 + size.to(tl.float64) * b1) + ((one * d + 4.0) * 2.0**-53) * reach * reach
    limit = v1.to(tl.float64) + margin * (1.0 + 2.0**-20) + tl.load(slack_ptr + problem0 + p)
    limit += tl.abs(limit) * 2.0**-50

    inside = row < n
    unlabelled = (norm != norm) | (v1 >= _DEAD * 0.5)
    proved = v2.to(tl.float64) > limit
    pair = inside & ~unlabelled & ~proved & (v3.to(tl.float64) > limit)
    full = inside & ~unlabelled & ~proved & ~pair
    label = tl.where(unlabelled, -1, at1.to(tl.int64))
    at_label = (problem0 + p) * label_stride + row0 + row
    tl.store(labels_ptr + at_label, label, mask=inside & (unlabelled | proved))
    item = p * n + row
    tl.store(pair_ptr + item, at1, mask=pair)
    tl.store(pair_ptr + list_stride + item, at2, mask=pair)
    _append(list_ptr, count_ptr, item.to(tl.int32), pair)
    _append(list_ptr + list_stride, count_ptr + 1, item.to(tl.int32), full)


@triton.jit
def _recheck_pairs(
    x_ptr,  # (problems, n, d), any strides
    c_ptr,  # (all problems, k, d), any strides
    pair_ptr,
    list_ptr,
    count_ptr,
    labels_ptr,
    x_stride_p,
    x_stride_r,
    x_stride_d,
    c_stride_p,
    c_stride_r,
    c_stride_d,
    list_stride,
    problem0,
    row0,
    label_stride,
    n,
    d,
    BLOCK: tl.constexpr,
):
    count = tl.load(count_ptr)
    for start in range(tl.program_id(0) * BLOCK, count, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        mask = at < count
        item = tl.load(list_ptr + at, mask=mask, other=0).to(tl.int64)
        p, row = item // n, item % n
        j1 = tl.load(pair_ptr + item, mask=mask, other=0).to(tl.int64)
        j2 = tl.load(pair_ptr + list_stride + item, mask=mask, other=0).to(tl.int64)
        x_row = x_ptr + p * x_stride_p + row * x_stride_r
        c_problem = c_ptr + (problem0 + p) * c_stride_p
        acc1 = tl.zeros((BLOCK,), tl.float64)
        acc2 = acc1
        for _ in range(0, d):
            x = widen(tl.load(x_row, mask=mask, other=0.0))
            t1 = x - widen(tl.load(c_problem + j1 * c_stride_r, mask=mask, other=0.0))
            t2 = x - widen(tl.load(c_problem + j2 * c_stride_r, mask=mask, other=0.0))
            acc1 = acc1 + t1 * t1
            acc2 = acc2 + t2 * t2
            x_row += x_stride_d
            c_problem += c_stride_d
        second = (acc2 < acc1) | ((acc2 == acc1) & (j2 < j1))
        tl.store(labels_ptr + (problem0 + p) * label_stride + row0 + row, tl.where(second, j2, j1), mask=mask)


@triton.jit
def _recheck_all(
    x_ptr,  # (problems, n, d), any strides
    c_ptr,  # (all problems, d, k) contiguous: neighbouring lanes read neighbouring centroids
    live_ptr,  # (all problems, k) int8
    list_ptr,
    count_ptr,
    labels_ptr,
    x_stride_p,
    x_stride_r,
    x_stride_d,
    problem0,
    row0,
    label_stride,
    n,
    k,
    d,
    fewest,  # works only if the list holds at least so many rows
    most,  # and fewer than so many
    BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UNROLL: tl.constexpr,
):
    zero = tl.zeros((), tl.int64)
    count = tl.load(count_ptr)
    if (count >= fewest) & (count < most):
        for start in range(tl.program_id(0) * BLOCK_R, count, tl.num_programs(0) * BLOCK_R):
            at = start + tl.arange(0, BLOCK_R)
            mask = at < count
            item = tl.load(list_ptr + at, mask=mask, other=0).to(tl.int64)
            p, row = item // n, item % n
            x_row = x_ptr + p * x_stride_p + row * x_stride_r
            best = tl.full((BLOCK_R,), float("inf"), tl.float64)
            best_at = tl.zeros((BLOCK_R,), tl.int64) + k
            for j0 in range(0, k, BLOCK_K):
                j = j0 + tl.arange(0, BLOCK_K).to(tl.int64)
                live = tl.load(live_ptr + (problem0 + p)[:, None] * k + j[None, :], mask=(j < k)[None, :], other=0)
                c_col = c_ptr + (problem0 + p)[:, None] * d * k + j[None, :]
                acc = tl.zeros((BLOCK_R, BLOCK_K), tl.float64)
                for i0 in range(0, d, UNROLL):
                    for step in tl.static_range(UNROLL):
                        # Beyond d both are 0, and adding the square of 0 changes nothing.
                        i = zero + (i0 + step)
                        x = widen(tl.load(x_row + i * x_stride_d, mask=mask & (i < d), other=0.0))
                        c = widen(tl.load(c_col + i * k, mask=(live != 0) & (i < d), other=0.0))
                        t = x[:, None] - c
                        acc = acc + t * t
                acc = tl.where(live != 0, acc, float("inf"))
                low = tl.min(acc, 1)
                # Infinite distances of finite float64 data tie like any other; what does not count has index k.
                low_at = tl.min(tl.where((acc == low[:, None]) & (live != 0), j[None, :], k), 1)
                better = (low < best) | ((low == best) & (low_at < best_at))
                best = tl.where(better, low, best)
                best_at = tl.where(better, low_at, best_at)
            tl.store(labels_ptr + (problem0 + p) * label_stride + row0 + row, best_at, mask=mask)


def _live(centroids: torch.Tensor) -> torch.Tensor:
    """Which centroids count, int8 (B, k): the finite ones, of equal ones the first.

    Equal rows have equal hashes, so a stable sort by hash puts them side by side (unless an unequal row of the same
    hash lies between: then a duplicate is kept, which costs time and changes nothing).
    """
    bits = centroids.double().add(0.0).view(torch.int64)  # adding 0 makes -0 and +0 one
    odd = torch.arange(1, 2 * bits.shape[-1], 2, device=bits.device) * 0x1E3779B97F4A7C15
    mixed = (bits ^ (bits >> 29)) * odd
    order = (mixed ^ (mixed >> 32)).sum(-1).argsort(dim=-1, stable=True)
    ranked = centroids.gather(-2, order[..., None].expand_as(centroids))
    repeated = torch.zeros_like(order, dtype=torch.bool)
    repeated[:, 1:] = (ranked[:, 1:] == ranked[:, :-1]).all(-1)
    duplicate = torch.zeros_like(repeated).scatter_(-1, order, repeated)
    return (centroids.isfinite().all(-1) & ~duplicate).to(torch.int8)


def _units(centroids: torch.Tensor, live: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Shift (B, d), scale (B,) and slack (B,) of each problem, float64."""
    d = centroids.shape[-1]
    alive = live[..., None] != 0
    c = centroids.double().where(alive, 0.0)
    shift = (c / alive.sum(1, keepdim=True).clamp(min=1)).sum(1)
    shift = shift.where(shift.abs() <= 1e300, 0.0)
    largest = (c - shift[:, None]).abs().where(alive, 0.0).amax((1, 2))
    exponent = torch.frexp(largest).exponent.long()
    exponent = exponent.where((largest > 0.0) & largest.isfinite(), 0).clamp(min=-1000)
    # 2^(8 - exponent) by its bits: exact on every device.
    scale = ((1023 + _EXPONENT.value - exponent) << 52).view(torch.float64)
    # Rows reach 2^8 times the centroids, so below 2^430 no square overflows, and above 2^-430 what D64 loses to
    # underflow is bounded.
    slack = (d * 2.0**-1073 * scale * scale).where(exponent.abs() <= 430, torch.inf)
    slack = slack.where(largest.isfinite(), torch.inf)
    return shift, scale, slack


def _sum_error(d: int) -> float:
    """A: what summing d products can lose, relative to the norms of the operands."""

    def g(n: int, u: float) -> float:
        return n * u / (1.0 - n * u)

    if d <= _SUM_BLOCK:
        return g(2 * d, 2.0**-23)
    return g(2 * _SUM_BLOCK, 2.0**-23) + g(-(-d // _SUM_BLOCK), 2.0**-24)


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    return x.stride(0), x.stride(1), x.stride(2)


# With fewer warps some specialisations spill two registers.
_OPERANDS_ROWS, _OPERANDS_OPTIONS = 8, {"num_warps": 8}
_PAIR_OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}
_ALL_OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}
# (rows per program, centroids at a time): few open rows get a program each, many share what is loaded.
_FEW, _MANY = (1, 256), (16, 32)
_UNROLL = 4


def _tiles(n: int, k: int, d: int) -> tuple[int, int, int]:
    """Rows, centroids and elements per tile of the certified pass."""
    # Above one block of d there are two accumulators: a narrower tile keeps them in registers.
    return block(n, 64, 128), block(k, 32, 64 if d > _SUM_BLOCK else 128), block(d, 16, 64)


def _certify_options(rows: int) -> dict[str, int]:
    return {"num_warps": rows // 16, "num_stages": 3}


def assign(x: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    labels = torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device)
    if labels.numel() > 0:
        with device_of(x):
            if x.dim() == 2:
                _assign(x[None], centroids[None], labels[None])
            else:
                _assign(x, centroids, labels)
    return labels


def _assign(x: torch.Tensor, c: torch.Tensor, labels: torch.Tensor) -> None:
    (problems, n, d), k = x.shape, c.shape[1]
    live = _live(c)
    shift, scale, slack = _units(c, live)
    spread = _sum_error(d)
    spread = (spread + _W.value * (1.0 + spread)) * (1.0 + 2.0**-20)
    block_m, block_n, block_d = _tiles(n, k, d)
    d_padded, k_padded = -(-d // block_d) * block_d, -(-k // block_n) * block_n
    sum_block = _SUM_BLOCK if d_padded > _SUM_BLOCK else 0
    transposed = c.mT.contiguous()
    halves = torch.empty((problems, k_padded, d_padded), dtype=torch.float16, device=x.device)
    stats = torch.empty((4, problems, k_padded), dtype=torch.float32, device=x.device)

    def operands(v, half, out, problem0, rows, centroids):
        count, padded = half.shape[:2]
        # The interpreter pays per program.
        rows_at_once = _OPERANDS_ROWS if x.is_cuda else block_n if centroids else block_m
        _operands[(count * (padded // rows_at_once),)](
            v, shift, scale, live, half, out, *_strides(v), count * padded, problem0, rows, padded, d, d_padded,
            spread,
            CENTROIDS=centroids, BLOCK_R=rows_at_once, BLOCK_D=block_d, **_OPERANDS_OPTIONS,
        )  # fmt: skip

    operands(c, halves, stats, 0, k, True)
    # A slice is whole problems, or rows of one.
    slice_rows = max(1, _SLICE_ELEMENTS // d_padded // block_m) * block_m
    step_n = min(n, slice_rows)
    step_p = min(problems, max(1, slice_rows // (-(-step_n // block_m) * block_m)))
    slices = [(p0, r0) for p0 in range(0, problems, step_p) for r0 in range(0, n, step_n)]
    counts = torch.zeros((len(slices), 2), dtype=torch.int32, device=x.device)
    for (p0, r0), count in zip(slices, counts.unbind(), strict=True):
        part = x[p0 : p0 + step_p, r0 : r0 + step_n]
        n_problems, n_rows = part.shape[:2]
        n_padded, total = -(-n_rows // block_m) * block_m, n_problems * n_rows
        rows = torch.empty((n_problems, n_padded, d_padded), dtype=torch.float16, device=x.device)
        row_stats = torch.empty((2, n_problems, n_padded), dtype=torch.float32, device=x.device)
        pair = torch.empty((2, total), dtype=torch.int32, device=x.device)
        lists = torch.empty((2, total), dtype=torch.int32, device=x.device)
        operands(part, rows, row_stats, p0, n_rows, False)
        _certify[(n_problems * (n_padded // block_m),)](
            rows, row_stats, halves, stats, slack, labels, pair, lists, count, n_problems * n_padded,
            problems * k_padded, total, p0, r0, n, n_rows, n_padded, k_padded, d, d_padded,
            SUM_BLOCK=sum_block, BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d, **_certify_options(block_m),
        )  # fmt: skip
        _recheck_pairs[(persistent_programs(x, -(-total // 32)),)](
            part, c, pair, lists[0], count[0:], labels, *_strides(part), *_strides(c), total, p0, r0, n,
            n_rows, d, BLOCK=32, **_PAIR_OPTIONS,
        )  # fmt: skip
        for (block_r, block_k), fewest, most in ((_FEW, 1, _MANY_ROWS), (_MANY, _MANY_ROWS, 2**31 - 1)):
            if total < fewest:
                continue
            _recheck_all[(persistent_programs(x, -(-min(total, most) // block_r)),)](
                part, transposed, live, lists[1], count[1:], labels, *_strides(part), p0, r0, n, n_rows, k, d,
                fewest, most, BLOCK_R=block_r, BLOCK_K=block_k, UNROLL=_UNROLL, **_ALL_OPTIONS,
            )  # fmt: skip


def compile_cases() -> list[CompileCase]:
    """Representative specialisations, for compilation without a GPU."""
    sizes = dict.fromkeys(("problem0", "row0", "label_stride", "n", "d"), "i32")
    x_strides = dict.fromkeys(("x_stride_p", "x_stride_r", "x_stride_d"), "i64")
    c_strides = dict.fromkeys(("c_stride_p", "c_stride_r", "c_stride_d"), "i64")
    lists = {"list_ptr": "*i32", "count_ptr": "*i32", "labels_ptr": "*i64"}
    cases = []
    for kind in ("fp32", "fp64", "bf16"):
        for centroids in (False, True) if kind == "fp32" else (False,):
            cases.append(
                CompileCase(
                    f"operands-{'centroids' if centroids else 'rows'}-{kind}",
                    _operands,
                    {
                        "v_ptr": f"*{kind}",
                        "shift_ptr": "*fp64",
                        "scale_ptr": "*fp64",
                        "live_ptr": "*i8",
                        "half_ptr": "*fp16",
                        "stats_ptr": "*fp32",
                        **dict.fromkeys(("stride_p", "stride_r", "stride_d"), "i64"),
                        **dict.fromkeys(("stats_stride", "problem0", "rows", "rows_padded", "d", "d_padded"), "i32"),
                        "spread": "fp32",
                    },
                    {"CENTROIDS": centroids, "BLOCK_R": _OPERANDS_ROWS, "BLOCK_D": 64},
                    _OPERANDS_OPTIONS,
                    divisible=("rows_padded", "d_padded"),
                )
            )
        cases.append(
            CompileCase(
                f"recheck-pairs-d64-{kind}",
                _recheck_pairs,
                {"x_ptr": f"*{kind}", "c_ptr": f"*{kind}", "pair_ptr": "*i32"}
                | lists
                | x_strides
                | c_strides
                | sizes
                | {"list_stride": "i32"},
                {"BLOCK": 32},
                _PAIR_OPTIONS,
            )
        )
        for name, (block_r, block_k) in (("few", _FEW), ("many", _MANY)) if kind != "bf16" else ():
            cases.append(
                CompileCase(
                    f"recheck-all-{name}-d64-{kind}",
                    _recheck_all,
                    {"x_ptr": f"*{kind}", "c_ptr": f"*{kind}", "live_ptr": "*i8"}
                    | lists
                    | x_strides
                    | sizes
                    | dict.fromkeys(("k", "fewest", "most"), "i32"),
                    {"BLOCK_R": block_r, "BLOCK_K": block_k, "UNROLL": _UNROLL},
                    _ALL_OPTIONS,
                )
            )
    for n, k, d in ((100000, 1000, 256), (100000, 1000, 4096), (100, 10, 10)):
        block_m, block_n, block_d = _tiles(n, k, d)
        cases.append(
            CompileCase(
                f"certify-{n}-{k}-{d}",
                _certify,
                {
                    "rows_ptr": "*fp16",
                    "row_stats_ptr": "*fp32",
                    "centroids_ptr": "*fp16",
                    "centroid_stats_ptr": "*fp32",
                    "slack_ptr": "*fp64",
                    "labels_ptr": "*i64",
                    "pair_ptr": "*i32",
                    "list_ptr": "*i32",
                    "count_ptr": "*i32",
                    **dict.fromkeys(("row_stats_stride", "centroid_stats_stride", "list_stride"), "i32"),
                    **sizes,
                    **dict.fromkeys(("n_padded", "k_padded", "d_padded"), "i32"),
                },
                {
                    "SUM_BLOCK": _SUM_BLOCK if d > _SUM_BLOCK else 0,
                    "BLOCK_M": block_m,
                    "BLOCK_N": block_n,
                    "BLOCK_D": block_d,
                },
                _certify_options(block_m),
                divisible=("n_padded", "k_padded", "d_padded", "row_stats_stride", "centroid_stats_stride"),
                expect={80: ("HMMA",), 90: ("HGMMA",)},
            )
        )
    return cases
