"""Weighted cross-entropy, a program per row: the softmax "online", one pass over the logits each way.

A row's maximum starts at -inf, and what is subtracted before exp is that maximum or, while it is -inf, 0: so rows that
begin with -inf leave no inf - inf. A last program sums losses and weights in double, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dcfast.ops import _validate
from dcfast.ops._dtypes import wide_dtype
from dcfast.ops._native import device_of
from dcfast.ops._triton import CompileCase, block
from dcfast.ops.weighted_cross_entropy.with_gradient import weighted_cross_entropy_with_gradient

__all__ = [
    "compile_cases",
    "weighted_cross_entropy",
    "weighted_cross_entropy_backward",
    "weighted_cross_entropy_gradient_",
    "weighted_cross_entropy_with_gradient",
]

_LARGEST_BLOCK = 4096
_TOTALS_BLOCK = 1024


@triton.jit
def _divide(a, b):
    """a / b rounded to nearest: the operator is an approximation in float32."""
    if b.dtype == tl.float64:
        quotient = a / b
    else:
        quotient = tl.div_rn(a, b)
    return quotient


@triton.jit
def _weight(size):
    return tl.where(size > 0, _divide(1.0, size), 0.0)


@triton.jit
def _weight_of_row(target, sizes_ptr, k, ignore_index):
    """1 / size of the target's cluster; 0 where it is `ignore_index`, NaN where it is no class."""
    inside = (target >= 0) & (target < k)
    weight = tl.where(inside, _weight(tl.load(sizes_ptr + target, mask=inside, other=1.0)), float("nan"))
    return tl.where(target == ignore_index, 0.0, weight)


@triton.jit
def _row_losses(
    logits_ptr,
    target_ptr,
    sizes_ptr,
    losses_ptr,
    maxima_ptr,
    log_sums_ptr,
    row_stride,
    k,
    ignore_index,
    LABEL_SMOOTHING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wide = losses_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    x_ptr = logits_ptr + row * row_stride
    target = tl.load(target_ptr + row)
    ignored = target == ignore_index
    maximum = tl.full((), float("-inf"), wide)
    shift = tl.zeros((), wide)
    exponentials = tl.zeros((), wide)
    weighted = tl.zeros((), wide)
    weights = tl.zeros((), wide)
    for start in range(0, tl.where(ignored, 0, k), BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < k
        x = tl.load(x_ptr + columns, mask=mask, other=float("-inf")).to(wide)
        higher = tl.maximum(maximum, tl.max(x, 0))
        new_shift = tl.where(higher == float("-inf"), 0.0, higher)
        exponentials = exponentials * tl.exp(maximum - new_shift) + tl.sum(tl.exp(x - new_shift), 0)
        if LABEL_SMOOTHING > 0:
            w = _weight(tl.load(sizes_ptr + columns, mask=mask, other=0.0))
            weighted += weights * (shift - new_shift) + tl.sum(tl.where(mask, w * (x - new_shift), 0.0), 0)
            weights += tl.sum(w, 0)
        maximum = higher
        shift = new_shift
    inside = (target >= 0) & (target < k)
    hit = tl.load(x_ptr + target, mask=inside, other=0.0).to(wide)
    log_sum = tl.log(tl.where(ignored, 1.0, exponentials))
    loss = _weight_of_row(target, sizes_ptr, k, ignore_index) * ((shift - hit) + log_sum)
    if LABEL_SMOOTHING > 0:
        loss = (1 - LABEL_SMOOTHING) * loss + (weights * log_sum - weighted) * LABEL_SMOOTHING / k
    tl.store(losses_ptr + row, tl.where(ignored, 0.0, loss))
    tl.store(maxima_ptr + row, shift)
    tl.store(log_sums_ptr + row, log_sum)


@triton.jit
def _totals(
    losses_ptr,
    target_ptr,
    sizes_ptr,
    sums_ptr,  # out: the sum of the losses, over that of the weights if MEAN; the sum of the weights
    n,
    k,
    ignore_index,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    loss = tl.zeros((BLOCK,), tl.float64)
    weight = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        rows = start + tl.arange(0, BLOCK)
        mask = rows < n
        loss += tl.load(losses_ptr + rows, mask=mask, other=0.0).to(tl.float64)
        target = tl.load(target_ptr + rows, mask=mask, other=0)
        row_weight = _weight_of_row(target, sizes_ptr, k, ignore_index)
        weight += tl.where(mask, row_weight, 0.0).to(tl.float64)
    total_loss = tl.sum(loss, 0)
    total_weight = tl.sum(weight, 0)
    if MEAN:
        # Without any weight it is NaN, even where label smoothing leaves a loss.
        total_loss = tl.where(total_weight == 0.0, float("nan"), total_loss / total_weight)
    tl.store(sums_ptr, total_loss)
    tl.store(sums_ptr + 1, total_weight)


@triton.jit
def _gradient(
    grad_ptr,
    logits_ptr,
    target_ptr,
    sizes_ptr,
    maxima_ptr,
    log_sums_ptr,
    total_weight_ptr,
    gradient_ptr,
    grad_stride,
    row_stride,
    k,
    ignore_index,
    LABEL_SMOOTHING: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    wide = maxima_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64)
    x_ptr = logits_ptr + row * row_stride
    out_ptr = gradient_ptr + row * k
    target = tl.load(target_ptr + row)
    active = target != ignore_index
    shift = tl.load(maxima_ptr + row)
    log_sum = tl.load(log_sums_ptr + row)
    grad = tl.load(grad_ptr + row * grad_stride).to(wide)
    if MEAN:
        total_weight = tl.load(total_weight_ptr)
        grad = tl.where(total_weight == 0.0, float("nan"), _divide(grad, total_weight))
    hit = (1 - LABEL_SMOOTHING) * grad * _weight_of_row(target, sizes_ptr, k, ignore_index)
    softmax = hit
    uniform = grad * LABEL_SMOOTHING / k
    if LABEL_SMOOTHING > 0:
        weights = tl.zeros((), wide)
        for start in range(0, k, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            weights += tl.sum(_weight(tl.load(sizes_ptr + columns, mask=columns < k, other=0.0)), 0)
        softmax += uniform * weights
    for start in range(0, k, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        mask = columns < k
        x = tl.load(x_ptr + columns, mask=mask & active, other=0.0).to(wide)
        gradient = softmax * tl.exp((x - shift) - log_sum) - tl.where(columns == target, hit, 0.0)
        if LABEL_SMOOTHING > 0:
            gradient -= uniform * _weight(tl.load(sizes_ptr + columns, mask=mask, other=0.0))
        tl.store(out_ptr + columns, tl.where(active, gradient, 0.0).to(gradient_ptr.dtype.element_ty), mask=mask)


def _columns(k: int) -> tuple[int, int]:
    """Columns at a time, and the warps that share them: 16 elements per thread and more."""
    columns = block(k, 64, _LARGEST_BLOCK)
    return columns, max(1, min(8, columns // 512))


def _operands(
    logits: torch.Tensor, target: torch.Tensor, cluster_sizes: torch.Tensor, ignore_index: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits with adjacent columns, adjacent targets, and adjacent sizes in the dtype of the sums."""
    if target.device.type == "cpu":
        _validate.class_indices(target, "target", logits.shape[1], ignore_index)
    wide = wide_dtype(logits.dtype)
    x = logits if logits.stride(1) == 1 else logits.contiguous()
    return x, target.contiguous(), cluster_sizes.to(wide).contiguous()


def _losses(
    x: torch.Tensor, target: torch.Tensor, sizes: torch.Tensor, ignore_index: int, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and statistics of the rows."""
    n, k = x.shape
    losses = torch.empty(n, dtype=sizes.dtype, device=x.device)
    statistics = torch.empty(2, n, dtype=sizes.dtype, device=x.device)
    columns, num_warps = _columns(k)
    if n > 0:
        with device_of(x):
            _row_losses[(n,)](
                x,
                target,
                sizes,
                losses,
                statistics[0],
                statistics[1],
                x.stride(0),
                k,
                ignore_index,
                LABEL_SMOOTHING=label_smoothing,
                BLOCK=columns,
                num_warps=num_warps,
            )
    return losses, statistics


def _write_gradient(
    row_gradients: torch.Tensor,
    x: torch.Tensor,
    target: torch.Tensor,
    sizes: torch.Tensor,
    statistics: torch.Tensor,
    total_weight: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    mean: bool,
    gradient: torch.Tensor,
) -> None:
    n, k = x.shape
    columns, num_warps = _columns(k)
    if n > 0:
        with device_of(x):
            _gradient[(n,)](
                row_gradients,
                x,
                target,
                sizes,
                statistics[0],
                statistics[1],
                total_weight,
                gradient,
                row_gradients.stride(0),
                x.stride(0),
                k,
                ignore_index,
                LABEL_SMOOTHING=label_smoothing,
                MEAN=mean,
                BLOCK=columns,
                num_warps=num_warps,
            )


def weighted_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, target, sizes = _operands(logits, target, cluster_sizes, ignore_index)
    losses, statistics = _losses(x, target, sizes, ignore_index, label_smoothing)
    sums = torch.empty(2, dtype=sizes.dtype, device=x.device)
    options = {"MEAN": reduction == "mean", "BLOCK": _TOTALS_BLOCK, "num_warps": 8}
    with device_of(x):
        _totals[(1,)](losses, target, sizes, sums, *x.shape, ignore_index, **options)
    return losses if reduction == "none" else sums[0].clone(), statistics, sums[1].clone()


def weighted_cross_entropy_backward(
    grad: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    statistics: torch.Tensor,
    total_weight: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> torch.Tensor:
    operands = _operands(logits, target, cluster_sizes, ignore_index)
    gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    grad, mean = grad.expand(len(logits)), reduction == "mean"
    saved = (statistics.contiguous(), total_weight)
    _write_gradient(grad, *operands, *saved, ignore_index, label_smoothing, mean, gradient)
    return gradient


def weighted_cross_entropy_gradient_(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    row_gradients: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    operands = _operands(logits, target, cluster_sizes, ignore_index)
    losses, statistics = _losses(*operands, ignore_index, label_smoothing)
    factors = row_gradients.expand(len(logits))
    # (Of the total weight, which is not asked for, only the type counts.)
    _write_gradient(factors, *operands, statistics, losses, ignore_index, label_smoothing, False, logits)
    return losses


def compile_cases() -> list[CompileCase]:
    cases = []
    for name, wide in (("fp32", "fp32"), ("fp64", "fp64"), ("fp16", "fp32"), ("bf16", "fp32")):
        element, sums = f"*{name}", f"*{wide}"
        common = {"target_ptr": "*i64", "sizes_ptr": sums}
        if name == wide:
            cases.append(
                CompileCase(
                    f"totals-{name}",
                    _totals,
                    {"losses_ptr": sums, **common, "sums_ptr": sums, "n": "i32", "k": "i32", "ignore_index": "i32"},
                    {"MEAN": True, "BLOCK": _TOTALS_BLOCK},
                    {"num_warps": 8},
                )
            )
        # Smoothing takes the most registers, a short row has the fewest threads.
        for k, label_smoothing in ((10_000, 0.1), (10_000, 0.0), (1000, 0.0))[: 3 if name == "fp32" else 1]:
            columns, num_warps = _columns(k)
            constants = {"LABEL_SMOOTHING": label_smoothing, "BLOCK": columns}
            saved = {"maxima_ptr": sums, "log_sums_ptr": sums}
            sizes = {"row_stride": "i32", "k": "i32", "ignore_index": "i32"}
            cases.append(
                CompileCase(
                    f"row_losses-{name}-{k}-{label_smoothing}",
                    _row_losses,
                    {"logits_ptr": element, **common, "losses_ptr": sums, **saved, **sizes},
                    constants,
                    {"num_warps": num_warps},
                )
            )
            cases.append(
                CompileCase(
                    f"gradient-{name}-{k}-{label_smoothing}",
                    _gradient,
                    {
                        "grad_ptr": sums,
                        "logits_ptr": element,
                        **common,
                        **saved,
                        "total_weight_ptr": sums,
                        "gradient_ptr": element,
                        "grad_stride": "i32",
                        **sizes,
                    },
                    {**constants, "MEAN": True},
                    {"num_warps": num_warps},
                )
            )
    return cases
