"""Launches csrc/cpu/weighted_cross_entropy.cpp in slices of rows, and csrc/cuda/weighted_cross_entropy.cu."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dcfast.ops import _native, _validate
from dcfast.ops._dtypes import wide_dtype

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
        yield rows, _native.with_adjacent_columns(x)


def _threads(x: torch.Tensor) -> int:
    return min(_native.threads(), 1 + x.numel() // _THREAD_ELEMENTS)


def _or_nan(total: torch.Tensor) -> torch.Tensor:
    """Without any weight means are NaN, as in torch, even where label smoothing leaves a loss."""
    return torch.where(total == 0, torch.nan, total)


def _weights_on_cuda(sizes: torch.Tensor, label_smoothing: float) -> torch.Tensor | None:
    """With label smoothing the weights of all classes, and then their sum."""
    if label_smoothing == 0.0:
        return None
    weights = sizes.new_empty(len(sizes) + 1)
    weights[:-1] = torch.where(sizes > 0, sizes.reciprocal(), 0.0)
    weights[-1] = weights[:-1].sum()
    return weights


def _rows_on_cuda(
    logits: torch.Tensor,
    target: torch.Tensor,
    sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    mean: bool,
    row_gradients: torch.Tensor | None,
    sums: tuple[torch.Tensor, torch.Tensor] | None,
    gradient: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and statistics of the rows; writes the sums and the gradient where they are wanted."""
    n, k = logits.shape
    losses, statistics = sizes.new_empty(n), sizes.new_empty(2, n)
    x = _native.with_adjacent_columns(logits)
    weights = _weights_on_cuda(sizes, label_smoothing)
    with _native.device_of(logits):
        _native.cuda().weighted_cross_entropy(
            _native.DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            target.data_ptr(),
            sizes.data_ptr(),
            _native.pointer(weights),
            n,
            k,
            ignore_index,
            label_smoothing,
            mean,
            _native.pointer(row_gradients),
            0 if row_gradients is None else row_gradients.stride(0),
            losses.data_ptr(),
            statistics[0].data_ptr(),
            statistics[1].data_ptr(),
            *((0, 0) if sums is None else (_native.pointer(sums[0]), _native.pointer(sums[1]))),
            _native.pointer(gradient),
            _native.stream(logits.device),
        )
    return losses, statistics


def _on_cuda(
    logits: torch.Tensor,
    target: torch.Tensor,
    sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
    gradient: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, statistics and total weight; writes the gradient of the loss to `gradient`, if there is one."""
    loss, total_weight = sums = sizes.new_empty(()), sizes.new_empty(())
    options = (ignore_index, label_smoothing, reduction == "mean")
    losses, statistics = _rows_on_cuda(logits, target, sizes, *options, None, sums, gradient)
    return losses if reduction == "none" else loss, statistics, total_weight


def _backward_on_cuda(
    row_gradients: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    sizes: torch.Tensor,
    statistics: torch.Tensor,
    divisor: torch.Tensor | None,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    n, k = logits.shape
    gradient = torch.empty(n, k, dtype=logits.dtype, device=logits.device)
    x = _native.with_adjacent_columns(logits)
    weights = _weights_on_cuda(sizes, label_smoothing)
    with _native.device_of(logits):
        _native.cuda().weighted_cross_entropy_backward(
            _native.DTYPES[x.dtype],
            x.data_ptr(),
            x.stride(0),
            target.data_ptr(),
            sizes.data_ptr(),
            _native.pointer(weights),
            n,
            k,
            ignore_index,
            label_smoothing,
            row_gradients.data_ptr(),
            row_gradients.stride(0),
            _native.pointer(divisor),
            statistics[0].data_ptr(),
            statistics[1].data_ptr(),
            gradient.data_ptr(),
            _native.stream(logits.device),
        )
    return gradient


def _rows_on_cpu(
    logits: torch.Tensor,
    target: torch.Tensor,
    sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    row_gradients: torch.Tensor,
    gradient: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The rows' losses, their sum, and statistics; writes the gradient to `gradient`, unless that has no rows."""
    (n, k), wide = logits.shape, sizes.dtype
    losses, statistics = torch.empty(n, dtype=wide), torch.empty(2, n, dtype=wide)
    loss_sum = torch.zeros((), dtype=torch.float64)
    for rows, x in _slices(logits, wide):
        out = _wide_rows(gradient, rows, wide)
        _native.cpu().weighted_cross_entropy(
            _native.DTYPES[wide],
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
            row_gradients[rows].data_ptr(),
            row_gradients.stride(0),
            out.data_ptr(),  # 0 if there are no rows
            _threads(x),
        )
        if out.dtype != gradient.dtype:
            gradient[rows] = out
    return losses, loss_sum, statistics


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
    (n, k), wide = logits.shape, sizes.dtype
    total_weight = torch.zeros((), dtype=torch.float64)
    _native.cpu().weighted_cross_entropy_total(
        _native.DTYPES[wide], target.data_ptr(), sizes.data_ptr(), n, k, ignore_index, total_weight.data_ptr()
    )
    if total_weight.isnan():
        _validate.class_indices(target, "target", k, ignore_index)
    divisor = _or_nan(total_weight) if reduction == "mean" else total_weight.new_ones(())
    row_gradients = divisor.reciprocal().to(wide).expand(n)
    losses, loss_sum, statistics = _rows_on_cpu(
        logits, target, sizes, ignore_index, label_smoothing, row_gradients, gradient
    )
    loss = losses if reduction == "none" else (loss_sum / divisor).to(wide)
    return loss, statistics, total_weight.to(wide, copy=True)


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
    sizes = cluster_sizes.to(wide_dtype(logits.dtype)).contiguous()
    arguments = (logits, target.contiguous(), sizes, ignore_index, label_smoothing, reduction)
    if logits.is_cuda:
        return _on_cuda(*arguments, None)
    return _on_cpu(*arguments, logits.new_empty(0, logits.shape[1]))


def weighted_cross_entropy_with_gradient(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    sizes = cluster_sizes.to(wide_dtype(logits.dtype)).contiguous()
    arguments = (logits, target.contiguous(), sizes, ignore_index, label_smoothing, reduction)
    if logits.is_cuda:
        gradient = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        return *_on_cuda(*arguments, gradient), gradient
    gradient = _native.empty(logits.shape, logits.dtype)
    return *_on_cpu(*arguments, gradient), gradient


def weighted_cross_entropy_gradient_(
    logits: torch.Tensor,
    target: torch.Tensor,
    cluster_sizes: torch.Tensor,
    row_gradients: torch.Tensor,
    ignore_index: int,
    label_smoothing: float,
) -> torch.Tensor:
    (n, k), target = logits.shape, target.contiguous()
    sizes = cluster_sizes.to(wide_dtype(logits.dtype)).contiguous()
    row_gradients, options = row_gradients.expand(n), (ignore_index, label_smoothing)
    if logits.is_cuda:
        return _rows_on_cuda(logits, target, sizes, *options, False, row_gradients, None, logits)[0]
    _validate.class_indices(target, "target", k, ignore_index)
    return _rows_on_cpu(logits, target, sizes, *options, row_gradients, logits)[0]


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
    (n, k), wide = logits.shape, wide_dtype(logits.dtype)
    target, sizes, statistics = target.contiguous(), cluster_sizes.to(wide).contiguous(), statistics.contiguous()
    divisor = total_weight if reduction == "mean" else None
    if logits.is_cuda:
        operands = (grad.expand(n), logits, target, sizes, statistics, divisor)
        return _backward_on_cuda(*operands, ignore_index, label_smoothing)
    _validate.class_indices(target, "target", k, ignore_index)
    row_gradients = (grad if divisor is None else grad / _or_nan(divisor)).expand(n)
    gradient = _native.empty((n, k), logits.dtype)
    for rows, x in _slices(logits, wide):
        out = _wide_rows(gradient, rows, wide)
        _native.cpu().weighted_cross_entropy_backward(
            _native.DTYPES[wide],
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
