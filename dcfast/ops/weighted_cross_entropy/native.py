"""Launches csrc/cpu/weighted_cross_entropy.cpp in slices of rows, and csrc/cuda/weighted_cross_entropy.cu."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dcfast.ops import _native, _validate

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
# Logits of one call: some milliseconds; float16 and bfloat16 slices are widened to 16 MiB.
_SLICE_ELEMENTS = 2**22
# Logits that take about as long (15 us) as waking one more thread.
_THREAD_ELEMENTS = 2**15


def _slices(logits: torch.Tensor, wide: torch.dtype) -> Iterator[tuple[slice, torch.Tensor]]:
    """Ranges of rows and their logits, float32 or float64, with adjacent columns."""
    n, k = logits.shape
    step = max(1, _SLICE_ELEMENTS // k)
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step))
        x = logits[rows].to(wide)
        yield rows, x if x.stride(1) == 1 else x.contiguous()


def _threads(x: torch.Tensor) -> int:
    return min(_native.threads(), 1 + x.numel() // _THREAD_ELEMENTS)


def _wide(logits: torch.Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _on_cuda(
    logits: torch.Tensor,
    target: torch.Tensor,
    sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    n, k = logits.shape
    losses = torch.empty(n, dtype=sizes.dtype, device=logits.device)
    statistics = torch.empty(2, n, dtype=sizes.dtype, device=logits.device)
    sums = torch.empty(2, dtype=sizes.dtype, device=logits.device)
    x = logits if logits.stride(1) == 1 else logits.contiguous()
    with _native.device_of(logits):
        _native.cuda().weighted_cross_entropy(
            _DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            target.data_ptr(),
            sizes.data_ptr(),
            n,
            k,
            ignore_index,
            label_smoothing,
            reduction == "mean",
            losses.data_ptr(),
            statistics[0].data_ptr(),
            statistics[1].data_ptr(),
            sums.data_ptr(),
            _native.stream(logits.device),
        )
    loss = losses if reduction == "none" else sums[0].clone()
    return loss.to(logits.dtype), statistics, sums[1].clone()


def _on_cpu(
    logits: torch.Tensor,
    target: torch.Tensor,
    sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, statistics and total weight; writes the gradient of the loss to `gradient`, unless that has no rows."""
    (n, k), wide, core = logits.shape, sizes.dtype, _native.cpu()
    losses, statistics = torch.empty(n, dtype=wide), torch.empty(2, n, dtype=wide)
    sums = torch.zeros(2, dtype=torch.float64)
    loss_sum, total_weight = sums.unbind()
    core.weighted_cross_entropy_total(
        _DTYPES[wide], target.data_ptr(), sizes.data_ptr(), n, k, ignore_index, total_weight.data_ptr()
    )
    if total_weight.isnan():
        _validate.class_indices(target, "target", k, ignore_index)
    divisor = total_weight if reduction == "mean" else total_weight.new_ones(())
    row_gradient = divisor.reciprocal().item()
    for rows, x in _slices(logits, wide):
        out = _wide_rows(gradient, rows, wide)
        core.weighted_cross_entropy(
            _DTYPES[wide],
            x.data_ptr(),
            x.stride(0),
            target[rows].data_ptr(),
            sizes.data_ptr(),
            x.shape[0],
            k,
            ignore_index,
            label_smoothing,
            losses[rows].data_ptr(),
            statistics[0, rows].data_ptr(),
            statistics[1, rows].data_ptr(),
            loss_sum.data_ptr(),
            row_gradient,
            out.data_ptr(),  # 0 if there are no rows
            _threads(x),
        )
        if out.dtype != gradient.dtype:
            gradient[rows] = out
    loss = losses if reduction == "none" else loss_sum / divisor
    return loss.to(logits.dtype), statistics, total_weight.to(wide, copy=True)


def _wide_rows(gradient: torch.Tensor, rows: slice, wide: torch.dtype) -> torch.Tensor:
    """Those rows of the gradient, or rows to be rounded to them."""
    part = gradient[rows]
    return part if part.dtype == wide else torch.empty(part.shape, dtype=wide)


def weighted_cross_entropy(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    sizes = cluster_sizes.to(_wide(logits)).contiguous()
    arguments = (logits, target.contiguous(), sizes, ignore_index, label_smoothing, reduction)
    if logits.device.type == "cuda":
        return _on_cuda(*arguments)
    return _on_cpu(*arguments, logits.new_empty(0, logits.shape[1]))


def weighted_cross_entropy_with_gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    sizes = cluster_sizes.to(_wide(logits)).contiguous()
    gradient = _native.empty(logits.shape, logits.dtype)
    arguments = (logits, target.contiguous(), sizes, ignore_index, label_smoothing, reduction)
    return *_on_cpu(*arguments, gradient), gradient


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
    (n, k), wide = logits.shape, _wide(logits)
    target, sizes = target.contiguous(), cluster_sizes.to(wide).contiguous()
    _validate.class_indices(target, "target", k, ignore_index)
    row_gradients = grad.to(wide)
    if reduction == "mean":
        row_gradients = row_gradients / total_weight
    row_gradients = row_gradients.expand(n)
    gradient = _native.empty((n, k), logits.dtype)
    for rows, x in _slices(logits, wide):
        out = _wide_rows(gradient, rows, wide)
        _native.cpu().weighted_cross_entropy_backward(
            _DTYPES[wide],
            x.data_ptr(),
            x.stride(0),
            target[rows].data_ptr(),
            sizes.data_ptr(),
            x.shape[0],
            k,
            ignore_index,
            label_smoothing,
            row_gradients[rows].data_ptr(),
            row_gradients.stride(0),
            statistics[0, rows].data_ptr(),
            statistics[1, rows].data_ptr(),
            out.data_ptr(),
            _threads(x),
        )
        if out.dtype != gradient.dtype:
            gradient[rows] = out
    return gradient
